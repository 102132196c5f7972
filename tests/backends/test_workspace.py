"""Memory for native code: aligned, one user at a time, and not hoarded."""

from __future__ import annotations

import gc

import pytest

from trpo_fast.backends import workspace
from trpo_fast.backends.workspace import SPARE_LEAST, SPARE_MOST, Workspace


@pytest.mark.parametrize("nbytes", [0, 1, 63, 4097, SPARE_LEAST])
def test_it_is_aligned_and_large_enough(nbytes: int) -> None:
    made = Workspace(nbytes)
    start = made.memory.data_ptr()
    assert made.address % 64 == 0
    assert start <= made.address
    assert made.address + nbytes <= start + made.memory.nbytes


def test_memory_passes_from_one_user_to_the_next_of_its_size() -> None:
    first, second = Workspace(SPARE_LEAST), Workspace(SPARE_LEAST)
    assert first.address != second.address
    addresses = {first.memory.data_ptr(), second.memory.data_ptr()}
    del second
    gc.collect()
    third, other = Workspace(SPARE_LEAST), Workspace(SPARE_LEAST + 64)
    assert third.memory.data_ptr() in addresses
    assert third.address != first.address
    assert len({w.memory.data_ptr() for w in (first, third, other)}) == 3


def test_little_and_not_the_largest_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[int, object] = {}
    monkeypatch.setattr(workspace, "_SPARE", kept)
    for nbytes in (SPARE_LEAST // 2, SPARE_MOST + 1):
        Workspace(nbytes)
    assert not kept
    sizes = [SPARE_MOST // 2 + extra for extra in range(0, 256, 64)]
    for nbytes in sizes:
        Workspace(nbytes)
    assert list(kept) == sizes[-1:]
    Workspace(SPARE_LEAST)
    assert list(kept) == [sizes[-1], SPARE_LEAST]
