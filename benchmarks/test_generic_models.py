"""The generic path and tianshou take the same step on the same model; nothing is timed here."""

from __future__ import annotations

import importlib.util

import generic_models
import pytest


@pytest.mark.filterwarnings("ignore")  # tianshou's own
@pytest.mark.parametrize("name", ["CNN, 2 convolutions", "GRU 64"])
def test_same_step(name: str) -> None:
    if importlib.util.find_spec("tianshou") is None:
        pytest.skip("tianshou is not installed: pip install 'trpo-fast[bench]'")
    assert generic_models.compare(name, turns=1).agreement < 1e-3
