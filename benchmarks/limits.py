"""What keeps an update from the machine's peak: a product's memory, a small step's Python, a look.

``python benchmarks/limits.py``, on an idle machine. First a step of 64 rows and what of it is spent
in native code. Then steps of 2048 rows of a module of the user's own, and what of them it takes to
see that what it computes has not changed. Then one Fisher product over more and more rows, on one
thread and on all: the arithmetic of a row stays the same, the activations kept for it leave one
cache after the other. Shares are of FMAs on registers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import mean, median
from typing import Any
from unittest.mock import patch

import fma_peak
import torch
from cases import CG_ITERS, DAMPING, MAX_KL, Size, case_of
from contenders import contender_of
from torch import nn

from trpo_fast import TRPOOptimizer, _core
from trpo_fast.recognition.recognizer import network_of

OBS, ACTIONS = 17, 6
ROWS = (192, 768, 1536, 3072, 6144, 12288, 25000, 100000)
WIDTHS = (64, 256)
SECONDS = 0.3  # of one figure
STEPS = 3000


def median_seconds(call: Callable[[], object]) -> float:
    taken: list[float] = []
    call()
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until or not taken:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return median(taken)


def products(threads: int) -> None:
    """A row of figures for each number of rows; every product reads all that was kept."""
    torch.set_num_threads(threads)
    peak = fma_peak.measure(threads, samples=20)
    print(f"\nOne product, {threads} thread(s)")
    print("| rows | hidden | activations kept, MiB | ms | GF/s | share of FMA peak |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for hidden in WIDTHS:
        for rows in (n for n in ROWS if n * hidden <= 25000 * 256):
            size = Size(rows, OBS, ACTIONS, hidden)
            call = contender_of("trpo_fast", size).product()
            speed = size.product_flop / median_seconds(call) / 1e9
            kept = rows * 2 * hidden * 4 / 2**20  # tanh's slope comes from its value
            share = "" if peak is None else f"{speed / peak:.0%}"
            ms = size.product_flop / speed / 1e6
            print(f"| {rows} | {hidden} | {kept:.1f} | {ms:.3f} | {speed:.0f} | {share} |")


class TimedNative:
    """A native problem, and the seconds it takes to pack the network and to do the update."""

    def __init__(self, make: Callable[..., Any], taken: list[float], **batch: Any) -> None:
        self._native, self._taken = make(**batch), taken
        taken.append(0.0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def bind(self, workspace: int) -> None:
        self._timed(self._native.bind, workspace)

    def update(self, *args: Any) -> Any:
        return self._timed(self._native.update, *args)

    def _timed(self, call: Callable[..., Any], *args: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*args)
        finally:
            self._taken[-1] += time.perf_counter() - start


def small_step() -> None:
    """One thread: other threads of torch would spin beside the few microseconds in question."""
    torch.set_num_threads(1)
    case = case_of(Size(64, OBS, ACTIONS, 64))
    optimizer = TRPOOptimizer(
        case.policy, max_kl=MAX_KL, damping=DAMPING, cg_iters=CG_ITERS, step_size="damped"
    )
    native: list[float] = []
    whole: list[float] = []
    timed = partial(TimedNative, _core.PolicyProblemF32, native)
    with patch.object(_core, "PolicyProblemF32", timed):
        for _ in range(STEPS):
            torch.nn.utils.vector_to_parameters(case.theta.clone(), case.policy.parameters())
            start = time.perf_counter()
            optimizer.step(obs=case.obs, actions=case.actions, advantages=case.advantages)
            whole.append(time.perf_counter() - start)
    beside = [all_of_it - inside for all_of_it, inside in zip(whole, native, strict=True)]
    print(f"\nA step of 64 rows, 2x64, one thread, median of {STEPS}, microseconds")
    for name, taken in (("whole", whole), ("native", native), ("Python beside it", beside)):
        print(f"  {name:16} {1e6 * median(taken):6.0f}")


class Own(nn.Module):
    """A policy as users write one."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        layers = [nn.Linear(OBS, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh()]
        self.body = nn.Sequential(*layers, nn.Linear(hidden, ACTIONS))
        self.log_std = nn.Parameter(torch.zeros(ACTIONS))

    def forward(self, obs: torch.Tensor) -> torch.distributions.Distribution:
        mean = self.body(obs)
        normal = torch.distributions.Normal(mean, self.log_std.exp().expand_as(mean))
        return torch.distributions.Independent(normal, 1)


def look(hidden: int, rows: int = 2048, steps: int = 400) -> None:
    """Means, since only some of the looks compare numbers."""
    torch.set_num_threads(1)
    policy, case = Own(hidden), case_of(Size(rows, OBS, ACTIONS, hidden))
    optimizer = TRPOOptimizer(policy, max_kl=MAX_KL, damping=DAMPING, preconditioner="none")
    start = [parameter.detach().clone() for parameter in policy.parameters()]
    looks: list[float] = []
    whole: list[float] = []

    def timed(*given: Any) -> Any:
        began = time.perf_counter()
        try:
            return network_of(*given)
        finally:
            looks.append(time.perf_counter() - began)

    with patch("trpo_fast.optimizer.optimizer.network_of", timed):
        for _ in range(steps):
            with torch.no_grad():  # in place, as a training leaves them
                for parameter, value in zip(policy.parameters(), start, strict=True):
                    parameter.copy_(value)
            began = time.perf_counter()
            optimizer.step(obs=case.obs, actions=case.actions, advantages=case.advantages)
            whole.append(time.perf_counter() - began)
    assert optimizer.path == "fused", optimizer.path_reason
    share = mean(looks[8:]) / mean(whole[8:])
    print(
        f"  2x{hidden}: {1e3 * mean(looks[8:]):.3f} of {1e3 * mean(whole[8:]):.2f} ms, {share:.2%}"
    )


def main() -> None:
    threads = torch.get_num_threads()
    small_step()
    print("\nThe look at a module of the user's own in a step of 2048 rows, one thread")
    for hidden in WIDTHS:
        look(hidden)
    for count in sorted({1, threads}):
        products(count)


if __name__ == "__main__":
    main()
