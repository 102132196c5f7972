"""What a run was made on, in words: for its config.json, and for whoever compares runs."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch

from trpo_fast import _native
from trpo_fast.base.threads import usable_cores


@cache
def machine() -> dict[str, str | int]:
    """Processor, cores, system, versions, and the instruction set of the native module."""
    try:
        isa = "none" if _native.core is None else str(_native.core.isa())
    except RuntimeError:
        isa = "refused"
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "instruction set": isa,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
