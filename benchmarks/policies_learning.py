"""Do policies with a memory, on images, on dicts and of hybrid actions learn? With the defaults.

    OMP_NUM_THREADS=1 python benchmarks/policies_learning.py --seeds 0 1 2

trains what is missing in benchmarks/results/policies_learning.csv and writes the tables of
docs/images-and-memory.md and docs/hybrid-actions.md. ``--only`` chooses tasks, ``--draw`` trains
none. MinAtar and MiniGrid come from PyPI: ``pip install minatar minigrid``.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from statistics import mean
from typing import Any

import gymnasium as gym
import numpy as np
from training_runs import RunTable, train

from trpo_fast import FallbackWarning

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- policies_learning: {} -->", "<!-- policies_learning ends -->"
DEFAULTS = "defaults"
sys.path.insert(0, str(ROOT / "tests"))


class Positions(gym.ObservationWrapper[Any, Any, Any]):
    """CartPole's positions without its velocities: one observation does not tell the state."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observation(self, observation: Any) -> Any:
        """Place of the cart and angle of the pole."""
        return observation[[0, 2]]


def positions() -> gym.Env[Any, Any]:
    """CartPole-v1, seen without velocities."""
    return Positions(gym.make("CartPole-v1"))


def min_atar(name: str) -> gym.Env[Any, Any]:
    """One of MinAtar's games, with the actions that it uses."""
    game = import_module("minatar.gym")
    if f"MinAtar/{name}-v1" not in gym.registry:
        game.register_envs()
    return gym.make(f"MinAtar/{name}-v1")


def mini_grid(name: str) -> gym.Env[Any, Any]:
    """One of MiniGrid's, without its mission, which is text."""
    import_module("minigrid")
    return gym.wrappers.FilterObservation(gym.make(name), ["image", "direction"])


def sorting() -> gym.Env[Any, Any]:
    """The tests' task that needs both parts of its action."""
    found: gym.Env[Any, Any] = import_module("toy_environments").Sorting()
    return found


@dataclass(frozen=True)
class Task:
    """An environment, the steps given to it, and what to reach (or to stay below).

    `options` are no defaults: they name the policy where "auto" would take another.
    """

    name: str
    make: Callable[[], gym.Env[Any, Any]]
    steps: int
    goal: str
    page: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def arm(self) -> str:
        """The options in words."""
        return ", ".join(f"{name}={value}" for name, value in self.options.items()) or DEFAULTS


MEMORY, HYBRID = "images-and-memory", "hybrid-actions"
TASKS = (
    Task(
        "CartPole-v1 without velocities",
        positions,
        100_000,
        "at least 450",
        MEMORY,
        {"policy": "recurrent"},
    ),
    Task("CartPole-v1 without velocities", positions, 100_000, "below 250", MEMORY),
    Task("MinAtar/Breakout-v1", lambda: min_atar("Breakout"), 200_000, "", MEMORY),
    Task(
        "MiniGrid-Empty-5x5-v0",
        lambda: mini_grid("MiniGrid-Empty-5x5-v0"),
        50_000,
        "at least 0.9",
        MEMORY,
    ),
    Task(
        "MiniGrid-Empty-8x8-v0",
        lambda: mini_grid("MiniGrid-Empty-8x8-v0"),
        100_000,
        "at least 0.9",
        MEMORY,
    ),
    Task(
        "MiniGrid-DoorKey-5x5-v0",
        lambda: mini_grid("MiniGrid-DoorKey-5x5-v0"),
        200_000,
        "at least 0.9",
        MEMORY,
    ),
    Task("Sorting", sorting, 100_000, "10 at best", HYBRID),
)


def table(tasks: Sequence[Task], runs: RunTable) -> str:
    """A row for each task that has runs."""
    lines = [
        "| task | options | steps | score of each seed | mean | goal |",
        "|---|---|---:|---:|---:|---|",
    ]
    for task in tasks:
        found = runs.of(task.name, task.steps, task.arm)
        if found:
            scores = ", ".join(f"{run.score:.4g}" for run in found)
            middle = f"{mean(run.score for run in found):.4g}"
            cells = (task.name, task.arm, f"{task.steps:,}", scores, middle, task.goal)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(page: Path, text: str) -> None:
    """Put a table between the marks of a page."""
    begin = BEGIN.format(page.stem)
    before, rest = page.read_text().split(begin)
    _, after = rest.split(END)
    page.write_text(f"{before}{begin}\n{text}{END}{after}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing; then the pages' tables."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", nargs="+", metavar="TASK", help="tasks whose names begin so")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="S", default=[0])
    parser.add_argument("--draw", action="store_true", help="the tables of what is there")
    parser.add_argument("--out", type=Path, default=ROOT, metavar="DIR", help="the project's root")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", FallbackWarning)
    runs = RunTable(options.out / "benchmarks" / "results" / "policies_learning.csv")
    for seed in [] if options.draw else options.seeds:
        for task in TASKS:
            wanted = options.only is None or task.name.startswith(tuple(options.only))
            if wanted and (task.name, task.steps, seed, task.arm) not in runs:
                runs.add(train(task.name, task.steps, seed, task.arm, task.options, make=task.make))
    for name in dict.fromkeys(task.page for task in TASKS):
        own = [task for task in TASKS if task.page == name]
        write(options.out / "docs" / f"{name}.md", table(own, runs))


if __name__ == "__main__":
    main()
