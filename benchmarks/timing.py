"""One contender's turn: the answer first (once), then the clock, then what the record says."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from cases import Size, answer_of
from torch import Tensor

SECONDS = 0.25  # of one turn, where more than one round fits in
MAX_ROUNDS = 200

# Largest relative error against float64: rounding over ten CG iterations, with room for hidden
# layers of 1024. sb3-contrib's CG starts at random noise, which shows in what it finds. A product
# of bfloat16 operands is off by what docs/precision.md says; plain CG multiplies that.
PRODUCT_TOLERANCE = {"trpo_fast, bf16": 2**-7}
DEFAULT_PRODUCT_TOLERANCE = 1e-5
SOLVE_TOLERANCE = {"sb3-contrib": 1e-3, "trpo_fast, bf16": 0.05}
DEFAULT_SOLVE_TOLERANCE = 3e-5
KL_TOLERANCE = 1e-3


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


class Checked(NamedTuple):
    """What came of a contender's checked call, the first of its turns."""

    seconds: float
    error: float  # relative, against float64
    kl: float | None = None  # of the step, for an update


_checked: dict[tuple[str, Size, str], Checked] = {}


def time_turn(
    benchmark: Any,
    call: Callable[[], object],
    *,
    check: Callable[[], tuple[float, float | None]],
    operation: str,
    size: Size,
    turn: int,
    contender: str,
    flop: int,
    facts: dict[str, Any],
    reset: Callable[[], None] | None = None,
) -> None:
    """Time ``call`` for about ``SECONDS``, or once.

    Args:
        benchmark: pytest-benchmark's fixture.
        call: What is timed.
        check: Runs ``call``, asserts its answer, and gives its relative error and KL.
        operation: Name of the table it belongs to.
        size: Its row.
        turn: Which of the interleaved turns.
        contender: Its column.
        flop: Floating-point operations of the method, the same for every contender.
        facts: Of the machine.
        reset: Run before each call, off the clock.
    """
    key = operation, size, contender
    if key not in _checked:
        answer_of(size)  # so that it is not in the check's time
        start = time.perf_counter()
        error, kl = check()
        seconds = time.perf_counter() - start
        if seconds < 4 * SECONDS:  # else one round it is, whatever the check itself took
            if reset is not None:
                reset()
            start = time.perf_counter()
            call()
            seconds = time.perf_counter() - start
        _checked[key] = Checked(seconds, error, kl)
    seconds, error, kl = _checked[key]
    rounds = max(1, min(MAX_ROUNDS, int(SECONDS / seconds)))
    benchmark.group = f"{operation} {size}"
    benchmark.extra_info.update(
        operation=operation, size=str(size), rows=size.rows, turn=turn, contender=contender, **facts
    )
    benchmark.extra_info.update(relative_error=error, kl=kl)
    with torch.enable_grad():
        # The keyword is omitted, not None: pedantic calls whatever it is given.
        setup = {} if reset is None else {"setup": reset}
        benchmark.pedantic(call, rounds=rounds, iterations=1, **setup)
    if benchmark.stats is None:  # --benchmark-disable
        return
    gflops = flop / benchmark.stats.stats.median / 1e9
    benchmark.extra_info.update(flop=flop, gflops=gflops)
    if facts["fma_peak_gflops"]:
        benchmark.extra_info["share_of_fma_peak"] = gflops / facts["fma_peak_gflops"]
