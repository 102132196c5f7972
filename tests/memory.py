"""What a process holds, counted: how much of it is resident depends on the system's pages."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import pytest


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def held() -> tuple[int, int, int]:
    """File handles; bytes that malloc gave and did not get back; blocks of Python's own."""
    count = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if count is None:
        pytest.skip("this C library does not count its memory (mallinfo2)")
    count.restype = _Mallinfo2
    gc.collect()
    found = count()
    handles = len(list(Path("/proc/self/fd").iterdir()))
    return handles, found.uordblks + found.hblkhd, sys.getallocatedblocks()
