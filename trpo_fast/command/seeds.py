"""Several seeds of one training: which, where, and what they come to together."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trpo_fast.runs.report_data import interquartile_mean

MOST = 1000


def seeds(text: str) -> list[int]:
    """The seeds of "0-4", "3,1" or "0-2,7", each once."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise argparse.ArgumentTypeError(f"{text!r} is not seeds as 0-4 or 0,3,7")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= MOST:
            raise argparse.ArgumentTypeError(f"{part!r} is not 1 to {MOST} seeds, lowest first")
        found += [seed for seed in range(first, last + 1) if seed not in found]
    return found


@dataclass(frozen=True)
class Score:
    """What a run came to.

    Attributes:
        directory: Of the run.
        final: Mean return of the last 100 episodes; None where none has ended.
        best: The best evaluation; None without evaluations.
    """

    directory: Path
    final: float | None
    best: float | None

    def words(self) -> str:
        """In words, for the end of a run; "" where there is nothing to say."""
        parts = []
        if self.final is not None:
            parts.append(f"return {self.final:.1f} (mean of the last 100 episodes)")
        if self.best is not None:
            parts.append(f"best evaluation {self.best:.1f}")
        return ", ".join(parts)


def summary(scores: Sequence[Score], chosen: Sequence[int]) -> str:
    """A table of the runs and what they come to together."""
    lines = [f"{len(scores)} seeds", f"  {'seed':>6}  {'return':>10}  {'best score':>10}  run"]
    for seed, score in zip(chosen, scores, strict=False):
        figures = "  ".join(f"{_figure(value):>10}" for value in (score.final, score.best))
        lines.append(f"  {seed:>6}  {figures}  {score.directory}")
    columns = [
        [value for value in values if value is not None]
        for values in ([score.final for score in scores], [score.best for score in scores])
    ]
    for name, of in (("mean", _mean), ("IQM", interquartile_mean)):
        figures = "  ".join(f"{_figure(of(each) if each else None):>10}" for each in columns)
        lines.append(f"  {name:>6}  {figures}")
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
