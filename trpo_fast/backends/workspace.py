"""Memory that native code works in."""

from __future__ import annotations

import torch
from torch import Tensor

ALIGNMENT = 64  # kAlignment of csrc/cpu/slabs.h
# What is kept of memory that is not used any more: pieces of so many bytes, and in all: more than
# an update of 4096 rows works in where two layers are 1024 wide.
SPARE_LEAST, SPARE_MOST = 1 << 20, 256 << 20
_SPARE: dict[int, Tensor] = {}  # by size


class Workspace:
    """Uninitialised memory from torch's allocator, which the next one of its size takes over.

    A system hands out fresh memory page by page, which costs a large update a seventh of its time.

    Args:
        nbytes: How much.
    """

    def __init__(self, nbytes: int) -> None:
        spare = _SPARE.pop(nbytes, None)
        if spare is None:
            spare = torch.empty(nbytes + ALIGNMENT, dtype=torch.uint8, device="cpu")
        self.memory = spare

    @property
    def address(self) -> int:
        """Aligned."""
        address = self.memory.data_ptr()
        return address + -address % ALIGNMENT

    def __del__(self) -> None:
        """Keep the memory for the next one, in place of the oldest kept."""
        memory = getattr(self, "memory", None)  # none where there was not enough
        if memory is not None and SPARE_LEAST <= memory.nbytes <= SPARE_MOST:
            _SPARE[memory.nbytes - ALIGNMENT] = memory
            while sum(_SPARE) > SPARE_MOST:
                _SPARE.pop(next(iter(_SPARE), 0), None)
