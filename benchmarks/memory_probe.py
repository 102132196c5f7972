"""Peak memory of one update, in a process of its own: ``memory_probe.py CONTENDER ROWS``.

Prints how far resident memory rose above what it was when the batch and the policy stood ready,
in bytes: the kernel's high-water mark, reset to the present first. (``ru_maxrss`` would not do: it
starts at the size of the process that started this one.)
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

from cases import MEMORY, Size, case_of
from contenders import CONTENDERS


def memory(name: str) -> int:
    """A figure of /proc/self/status in bytes: VmRSS, resident now, or VmHWM, the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)[name]
    return int(found.split()[0]) << 10


def main() -> None:
    name, rows = sys.argv[1], int(sys.argv[2])
    small = CONTENDERS[name](case_of(Size(64, MEMORY.obs, MEMORY.actions, MEMORY.hidden)))
    small.reset()
    small.update()()  # loads what the first call loads
    case = case_of(Size(rows, MEMORY.obs, MEMORY.actions, MEMORY.hidden))
    contender = CONTENDERS[name](case)
    contender.reset()
    update = contender.update()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or the update would live on what preparing it left over
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = memory("VmRSS")
    update()
    print(memory("VmHWM") - before)


if __name__ == "__main__":
    main()
