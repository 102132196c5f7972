"""Trainings whose figures are kept in a CSV file, so that a benchmark goes on where it was stopped.

A row is one training: what was run (environment, steps, seed, arm) and what came of it.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from trpo_fast import TRPO

OURS = "trpo_fast"
AGENTS = (OURS, "sb3-contrib TRPO", "SB3 PPO")
EPISODES = 20
CURVE_POINTS = 50  # kept of a curve


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        env: The environment's id.
        steps: That were asked for.
        seed: Of everything random.
        arm: What was varied, by name.
        score: Mean return of 20 episodes after training, acting by the mode.
        deviation: Of these episodes' returns.
        area: Mean, over the steps, of the return of the last 100 training episodes.
        seconds: Of training, evaluation left out.
        share: Median of kl / max_kl over the accepted updates.
        greatest_share: The greatest.
        accepted: Share of the updates that were.
        curve: "steps:return ..." of the last 100 training episodes.
    """

    env: str
    steps: int
    seed: int
    arm: str
    score: float
    deviation: float
    area: float
    seconds: float
    share: float
    greatest_share: float
    accepted: float
    curve: str

    @property
    def key(self) -> tuple[str, int, int, str]:
        """What it is known by."""
        return self.env, self.steps, self.seed, self.arm

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """The curve: steps and returns."""
        pairs = [point.split(":") for point in self.curve.split()]
        steps, returns = np.array(pairs, dtype=float).reshape(-1, 2).T
        return steps, returns


class RunTable:
    """The runs of a CSV file, in the order in which they were done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[Run] = []
        if path.exists():
            with path.open(newline="") as file:
                self.runs = [_read(row) for row in csv.DictReader(file)]

    def __contains__(self, key: tuple[str, int, int, str]) -> bool:
        return any(run.key == key for run in self.runs)

    def add(self, run: Run) -> None:
        """Keep another run, in the file at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Run)], lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow({k: _short(v) for k, v in asdict(run).items()})
        self.runs.append(run)

    def of(self, env: str, steps: int, arm: str) -> list[Run]:
        """Those of an arm, by seed."""
        found = [r for r in self.runs if (r.env, r.steps, r.arm) == (env, steps, arm)]
        return sorted(found, key=lambda run: run.seed)


def train(
    env: str,
    steps: int,
    seed: int,
    arm: str,
    options: Mapping[str, Any],
    make: Callable[[], Any] | None = None,
) -> Run:
    """Train our agent once, with the defaults but for ``options``; ``make`` where no id tells."""
    rows: list[dict[str, Any]] = []

    def note(local: dict[str, Any], _: dict[str, Any]) -> None:
        rows.append(local["row"])

    with TRPO(make or env, seed=seed, **options) as agent:
        agent.learn(steps, note, progress_bar=False)
        score, deviation = agent.evaluate(EPISODES, progress_bar=False)
        seconds = agent.progress.time_elapsed
    shares = [row["train/region_used"] for row in rows if row["train/accepted"]]
    curve = [
        (row["time/total_timesteps"], row["rollout/ep_rew_mean"])
        for row in rows
        if row["rollout/ep_rew_mean"] is not None
    ]
    run = Run(
        env,
        steps,
        seed,
        arm,
        score,
        deviation,
        mean(value for _, value in curve),
        seconds,
        median(shares),
        max(shares),
        len(shares) / len(rows),
        shown(curve),
    )
    print(f"{env:<32}{arm:<24}seed {seed}  {score:9.1f} +- {deviation:6.1f}", flush=True)
    return run


def shown(curve: Sequence[tuple[int, float]]) -> str:
    """A curve as text, thinned, its last point kept."""
    stride = max(len(curve) // CURVE_POINTS, 1)
    return " ".join(f"{steps}:{value:.1f}" for steps, value in curve[::-stride][::-1])


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _read(row: Mapping[str, str]) -> Run:
    kinds = {"env": str, "steps": int, "seed": int, "arm": str, "curve": str}
    return Run(**{f.name: kinds.get(f.name, float)(row[f.name]) for f in fields(Run)})


def put_between(marks: tuple[str, str], page: Path, text: str) -> None:
    """Replace what is between a page's two marks."""
    begin, end = marks
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}")
