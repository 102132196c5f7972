"""How many threads torch's own operators use on small networks: one.

A matrix product of a few hundred thousand multiplications takes less time than waking a second
thread; on a busy machine OpenMP's waiting threads slow it down a hundredfold. With one thread the
result does not depend on how many there are, either.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from math import inf
from pathlib import Path

import torch
from torch import nn

# Multiplications in the largest product of a forward pass: about 0.2 ms on one core.
SMALL_PRODUCT = 1 << 22
# What a container sees as the root of its control group.
_CONTROL_GROUP = Path("/sys/fs/cgroup")
# Numbers in an array that one core goes over in about a millisecond: as long as threads that were
# woken for it would spin afterwards.
SMALL_ARRAY = 1 << 22

# Numbers that a step of tensor environments shows, below which two threads hardly speed it up.
SMALL_STEP = 1 << 16


def usable_cores() -> int:
    """CPUs that this process may run on, and what a container's quota allows of them."""
    return max(1, round(min(len(os.sched_getaffinity(0)), _quota(_CONTROL_GROUP))))


def _quota(group: Path) -> float:
    """CPUs' worth of time that a control group has, of version 2 or 1."""
    try:
        if (group / "cpu.max").exists():
            allowed, period = (group / "cpu.max").read_text().split()
        else:
            files = (group / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
            allowed, period = (file.read_text().strip() for file in files)
        return inf if allowed in ("max", "-1") else int(allowed) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return inf


def own_cores() -> int:
    """Its share of them where a launcher (torchrun) started several such processes here."""
    together = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, usable_cores() // max(1, int(together) if together.isdecimal() else 1))


def largest_product(module: nn.Module, rows: int) -> int:
    """Multiplications of the module's largest matrix product on a batch of `rows`."""
    return rows * max((p.numel() for p in module.parameters() if p.ndim >= 2), default=1)


@contextlib.contextmanager
def one_thread_if_small(module: nn.Module, rows: int) -> Iterator[None]:
    """Run torch's operators on one thread inside the block, when `module` is small for `rows`."""
    with one_thread(largest_product(module, rows) <= SMALL_PRODUCT):
        yield


@contextlib.contextmanager
def one_thread(small: bool) -> Iterator[None]:
    """Run torch's operators on one thread inside the block, when the work is `small`."""
    before = torch.get_num_threads()
    if before == 1 or not small:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
