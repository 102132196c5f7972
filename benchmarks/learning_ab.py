"""Does preconditioning learn better? K-FAC against ten plain CG iterations, all else equal.

    OMP_NUM_THREADS=1 python benchmarks/learning_ab.py

trains HalfCheetah for 1,000,000 and Hopper for 500,000 steps, the first two arms with six seeds,
the others with three on HalfCheetah alone, keeps the numbers in
benchmarks/results/learning_ab.json and writes docs/assets/learning-ab.png and the table of
docs/preconditioning.md. Runs whose numbers are there already are not repeated; --draw trains none
and shows every run there is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
from learning import ROOT
from training_runs import train

from trpo_fast.runs.plotting import COLOURS, new_figure, save_figure

SEEDS = (0, 1, 2, 3, 4, 5)
FEW_SEEDS = SEEDS[:3]


class Task(NamedTuple):
    """An environment, and how long to train there."""

    env: str
    steps: int


TASKS = Task("HalfCheetah-v5", 1_000_000), Task("Hopper-v5", 500_000)
# The agent's options when this was first run.
BEFORE: dict[str, Any] = {
    "step_size": "damped",
    "max_kl_per": "action",
    "shrink_max_kl": False,
    "log_std_init": -0.5,
    "scale_actions": False,
    "distribution": "gaussian",
}
ARMS: dict[str, dict[str, Any]] = {
    "plain CG, 10 iterations": {"preconditioner": "none"},
    "K-FAC": {"preconditioner": "kfac", "cg_progress_tol": 0.05},
    "K-FAC, damping 0.01": {"preconditioner": "kfac", "cg_progress_tol": 0.05, "damping": 0.01},
    "K-FAC, adaptive damping": {
        "preconditioner": "kfac",
        "cg_progress_tol": 0.05,
        "adaptive_damping": True,
    },
}
MAIN_ARMS = list(ARMS)[:2]
BEGIN, END = "<!-- learning: begin -->", "<!-- learning: end -->"


def arms_of(task: Task) -> list[str]:
    return list(ARMS) if task is TASKS[0] else MAIN_ARMS


def seeds_of(arm: str) -> tuple[int, ...]:
    return SEEDS if arm in MAIN_ARMS else FEW_SEEDS


def table(results: Sequence[dict[str, Any]]) -> str:
    """Scores by arm and seed, as Markdown."""
    heads = "".join(f" seed {seed} |" for seed in SEEDS)
    lines = [f"| environment | steps | solve |{heads} mean |", "|---" * (len(SEEDS) + 4) + "|"]
    for task in TASKS:
        for arm in arms_of(task):
            scores = scores_of(results, task, arm)
            cells = " | ".join(f"{scores[seed]:.0f}" if seed in scores else "" for seed in SEEDS)
            average = f"{mean(scores.values()):.0f}" if scores else ""
            lines.append(f"| {task.env} | {task.steps:,} | {arm} | {cells} | {average} |")
    return "\n".join(lines)


def scores_of(results: Sequence[dict[str, Any]], task: Task, arm: str) -> dict[int, float]:
    """By seed, of the runs there are."""
    return {r["seed"]: float(r["mean"]) for r in results if (r["env"], r["arm"]) == (task.env, arm)}


def key_of(result: dict[str, Any]) -> tuple[str, str, int]:
    return result["env"], result["arm"], result["seed"]


def picture(results: Sequence[dict[str, Any]], out: Path) -> None:
    """One panel an environment; a thin line a seed, a thick one the arm's mean."""
    figure, axes = new_figure(1, len(TASKS), size=(4.6 * len(TASKS), 3.0))
    for task, axis in zip(TASKS, axes, strict=True):
        grid = np.linspace(0, task.steps, 101)[5:]
        for colour, arm in zip(COLOURS, arms_of(task), strict=False):
            curves = [
                np.interp(grid, *np.array(r["curve"]).T)
                for r in results
                if (r["env"], r["arm"]) == (task.env, arm) and r["curve"]
            ]
            for curve in curves:
                axis.plot(grid, curve, color=colour, linewidth=0.6, alpha=0.5)
            axis.plot(grid, np.mean(curves, 0), color=colour, linewidth=2.0, label=arm)
        axis.set_title(task.env, fontsize=10)
        axis.set_xlabel("environment steps")
    axes[0].set_ylabel("mean return, last 100 episodes")
    axes[0].legend(frameon=False, fontsize=8)
    save_figure(figure, out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing; then table and picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true", help="table and picture of what is there")
    parser.add_argument("--out", type=Path, default=ROOT, metavar="DIR", help="the project's root")
    options = parser.parse_args(arguments)
    numbers = options.out / "benchmarks" / "results" / "learning_ab.json"
    results: list[dict[str, Any]] = json.loads(numbers.read_text()) if numbers.exists() else []
    if not options.draw:
        results = [r for r in results if r["curve"]]  # a score alone is trained again
    known = {key_of(r) for r in results}
    for task in TASKS:
        for arm in arms_of(task):
            for seed in seeds_of(arm):
                if (task.env, arm, seed) not in known and not options.draw:
                    keywords = {**BEFORE, **ARMS[arm]}
                    run = train(task.env, task.steps, seed, arm, keywords)
                    curve = [list(point) for point in zip(*run.points(), strict=True)]
                    found = {"arm": arm, "env": task.env, "seed": seed, "mean": run.score}
                    results.append({**found, "curve": curve})
                    numbers.write_text(json.dumps(results) + "\n")
    page = options.out / "docs" / "preconditioning.md"
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}")
    picture(results, options.out / "docs" / "assets" / "learning-ab.png")


if __name__ == "__main__":
    main()
