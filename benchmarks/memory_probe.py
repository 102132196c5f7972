"""Peak memory of one update, in a process of its own: ``memory_probe.py CONTENDER ROWS``.

Prints how far resident memory rose above what it was when the batch and the policy stood ready,
in bytes: the kernel's high-water mark (``ru_maxrss``), reset to the present first.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from cases import MEMORY, Size, case_of
from contenders import CONTENDERS


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    name, rows = sys.argv[1], int(sys.argv[2])
    small = CONTENDERS[name](case_of(Size(64, MEMORY.obs, MEMORY.actions, MEMORY.hidden)))
    small.reset()
    small.update()()  # loads what the first call loads
    case = case_of(Size(rows, MEMORY.obs, MEMORY.actions, MEMORY.hidden))
    contender = CONTENDERS[name](case)
    contender.reset()
    update = contender.update()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident()
    update()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)


if __name__ == "__main__":
    main()
