"""Where the time of an iteration goes: the environments' share is what no optimisation can save."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# Seconds in: the environments' own steps (and the flattening of what they return); the policy on
# their observations, and the values of the rollout; advantage estimation; the trust-region step;
# the critic's fit. What is left (bookkeeping, statistics, evaluations, logs, checkpoints) is other.
PHASES = ("env", "inference", "gae", "update", "critic")
OTHER = "other"
COLUMNS = tuple(f"time/{name}" for name in (*PHASES, OTHER))


class TimeBudget:
    """Seconds by phase since it was made or last taken."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def add(self, phase: str, seconds: float) -> None:
        """Count seconds towards a phase."""
        self.seconds[phase] += seconds

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the block towards a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def take(self) -> dict[str, float]:
        """The seconds so far; counting begins anew."""
        taken, self.seconds = self.seconds, dict.fromkeys(PHASES, 0.0)
        return taken


class Clock:
    """The time of one `learn` call: its pace, and the budget of each iteration and of all.

    Args:
        time_before: seconds trained before this call.
        steps_before: steps done before it.
    """

    def __init__(self, time_before: float, steps_before: int) -> None:
        self.budget = TimeBudget()
        self.total = dict.fromkeys((*PHASES, OTHER), 0.0)
        self._began = self._last = time.monotonic()
        self._time_before = time_before
        self._steps_before = steps_before

    def figures(self, steps: int) -> dict[str, float]:
        """The iteration that ends now, for the log; `steps` are those done so far."""
        now = time.monotonic()
        passed = max(now - self._began, 1e-9)
        seconds = self.budget.take()
        seconds[OTHER] = max(now - self._last - sum(seconds.values()), 0.0)
        self._last = now
        for name, value in seconds.items():
            self.total[name] += value
        return {
            "time/time_elapsed": self._time_before + passed,
            "time/fps": int((steps - self._steps_before) / passed),
            **{f"time/{name}": value for name, value in seconds.items()},
        }


def budget_table(seconds: Mapping[str, float]) -> str:
    """Seconds and shares by phase, one line each, in words for a terminal."""
    total = sum(seconds.values()) or 1.0
    width = max(len(name) for name in seconds)
    lines = [
        f"  {name:<{width}}  {s:9.2f} s  {100 * s / total:5.1f} %" for name, s in seconds.items()
    ]
    return "\n".join(lines)
