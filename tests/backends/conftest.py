"""Fixtures of the backends' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from emulated_cuda import KIB, emulated


@pytest.fixture(autouse=True)
def usual_machine() -> Iterator[None]:
    """Leaves the emulated device as the next test expects it."""
    yield
    if emulated is not None:
        emulated.set_device(3, 160 * KIB)
        emulated.set_order(0)
