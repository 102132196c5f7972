"""Memory for native code: aligned, one user at a time, and not hoarded."""

from __future__ import annotations

import gc

import pytest
from torch import Tensor

from trpo_fast.backends.cpu import workspace
from trpo_fast.backends.cpu.workspace import SPARE_LEAST, SPARE_MOST, Workspace


@pytest.mark.parametrize("nbytes", [0, 1, 63, 4097, SPARE_LEAST])
def test_it_is_aligned_and_large_enough(nbytes: int) -> None:
    made = Workspace(nbytes)
    start = made.memory.data_ptr()
    assert made.address % 64 == 0
    assert start <= made.address
    assert made.address + nbytes <= start + made.memory.nbytes


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[int, Tensor]:
    """What is kept, nothing at first."""
    gc.collect()  # or what other tests left would come in between
    found: dict[int, Tensor] = {}
    monkeypatch.setattr(workspace, "_SPARE", found)
    return found


def test_memory_passes_from_one_user_to_the_next(kept: dict[int, Tensor]) -> None:
    first, second = Workspace(SPARE_LEAST), Workspace(SPARE_LEAST)
    assert first.address != second.address
    addresses = {first.memory.data_ptr(), second.memory.data_ptr()}
    del second
    gc.collect()
    third, other = Workspace(SPARE_LEAST), Workspace(SPARE_LEAST + 64)
    assert third.memory.data_ptr() in addresses
    assert third.address != first.address
    assert len({w.memory.data_ptr() for w in (first, third, other)}) == 3


def sizes_of(kept: dict[int, Tensor]) -> list[int]:
    return [memory.nbytes - workspace.ALIGNMENT for memory in kept.values()]


def test_the_smallest_piece_that_is_enough_serves_and_none_far_larger(
    kept: dict[int, Tensor],
) -> None:
    pieces = [Workspace(n * SPARE_LEAST) for n in (3, 2, 5)]
    small, large = pieces[1].address, pieces[2].address
    del pieces
    assert sorted(sizes_of(kept)) == [n * SPARE_LEAST for n in (2, 3, 5)]
    batch = Workspace(2 * SPARE_LEAST - 100)
    assert batch.address == small
    other = Workspace(4 * SPARE_LEAST)
    assert other.address == large
    assert sizes_of(kept) == [3 * SPARE_LEAST]
    tiny = Workspace(SPARE_LEAST)
    assert sizes_of(kept) == [3 * SPARE_LEAST]
    assert tiny.memory.nbytes == SPARE_LEAST + workspace.ALIGNMENT


def test_pieces_of_the_same_size_are_both_kept(kept: dict[int, Tensor]) -> None:
    pieces = [Workspace(SPARE_LEAST) for _ in range(2)]
    addresses = {piece.address for piece in pieces}
    del pieces
    assert {Workspace(SPARE_LEAST).address} < addresses
    pieces = [Workspace(SPARE_LEAST) for _ in range(2)]
    assert {piece.address for piece in pieces} == addresses


def test_little_and_not_the_largest_is_kept(kept: dict[int, Tensor]) -> None:
    for nbytes in (SPARE_LEAST // 2, SPARE_MOST + 1):
        Workspace(nbytes)
    assert not kept
    for nbytes in (SPARE_MOST // 4 * 3, SPARE_MOST // 4 - 1000, SPARE_LEAST):
        Workspace(nbytes)
    assert sizes_of(kept) == [SPARE_MOST // 4 - 1000, SPARE_LEAST]
