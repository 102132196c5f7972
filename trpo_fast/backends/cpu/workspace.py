"""Memory that native code works in."""

from __future__ import annotations

import torch
from torch import Tensor

ALIGNMENT = 64  # kAlignment of csrc/cpu/kernels/slabs.h
# What is kept of memory that is not used any more: pieces of so many bytes, and in all: more than
# an update of 4096 rows works in where two layers are 1024 wide.
SPARE_LEAST, SPARE_MOST = 1 << 20, 256 << 20
_SPARE: dict[int, Tensor] = {}  # by address, the oldest first


class Workspace:
    """Uninitialised memory from torch's allocator, which the next one takes over.

    A system hands out fresh memory page by page, which costs a large update a seventh of its time.

    Args:
        nbytes: How much.
    """

    def __init__(self, nbytes: int) -> None:
        size = nbytes + ALIGNMENT
        spare = _spare(size)
        if spare is None:
            spare = torch.empty(size, dtype=torch.uint8, device="cpu")
        self.memory = spare

    @property
    def address(self) -> int:
        """Where the memory begins, aligned to ``ALIGNMENT`` bytes."""
        address = self.memory.data_ptr()
        return address + -address % ALIGNMENT

    def __del__(self) -> None:
        """Keep the memory for the next one, and drop the oldest kept where that is too much."""
        memory = getattr(self, "memory", None)  # none where there was not enough
        if memory is not None and SPARE_LEAST <= memory.nbytes <= SPARE_MOST:
            _SPARE[memory.data_ptr()] = memory
            while sum(t.nbytes for t in list(_SPARE.values())) > SPARE_MOST:
                _SPARE.pop(next(iter(_SPARE), 0), None)


def _spare(size: int) -> Tensor | None:
    """The smallest kept piece of at least ``size`` bytes, and of at most twice as many."""
    fits = [(t.nbytes, at) for at, t in list(_SPARE.items()) if size <= t.nbytes <= 2 * size]
    return _SPARE.pop(min(fits)[1], None) if fits else None
