"""A KL penalty of fixed weights, the adaptive one, and the constraint, on three environments.

    python examples/penalty_vs_constraint.py --out penalty-vs-constraint.png

The penalty form maximises ``surrogate - beta KL``: how far a step then goes depends on how steep
the surrogate is, in each environment and at each time, and beta has to follow. The constraint says
how far, in nats. Every run here has the agent's defaults but for the constraint, and what score and
what KL came of it is printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trpo_fast import TRPO

EPISODES = 20
BETAS = (0.03, 0.3, 3.0, 30.0)


@dataclass(frozen=True)
class Task:
    """An environment: how long to train, what a random policy scores and what a good one does."""

    env: str
    steps: int
    random: float
    good: float


TASKS = (
    Task("CartPole-v1", 50_000, 22.0, 500.0),
    Task("Acrobot-v1", 50_000, -500.0, -85.0),
    Task("Pendulum-v1", 100_000, -1200.0, -200.0),
)
ARMS: dict[str, dict[str, Any]] = {
    **{
        f"beta {beta:g}": {"constraint": "penalty", "beta": beta, "adaptive_beta": False}
        for beta in BETAS
    },
    "adaptive beta": {"constraint": "penalty"},
    "max_kl 0.01": {"max_kl": 0.01},
}


@dataclass(frozen=True)
class Outcome:
    """Score over whole episodes; the share of the way from random to good; the median KL."""

    score: float
    share: float
    kl: float


def train(task: Task, options: dict[str, Any], steps: int, seed: int) -> Outcome:
    """One run of the agent."""
    kls: list[float] = []

    def note(local: dict[str, Any], _: dict[str, Any]) -> None:
        kls.append(local["row"]["train/kl"])

    with TRPO(task.env, seed=seed, **options) as agent:
        agent.learn(steps, note, progress_bar=False)
        score, _ = agent.evaluate(EPISODES, progress_bar=False)
    share = (score - task.random) / (task.good - task.random)
    return Outcome(score, min(max(share, 0.0), 1.0), float(np.median(kls)))


def draw(found: dict[str, list[list[Outcome]]], out: Path) -> None:
    """One group of bars an arm, one bar an environment, the worst of them as a line."""
    from matplotlib.figure import Figure

    colours = ("#0072B2", "#E69F00", "#009E73")  # Okabe & Ito 2008
    figure = Figure(figsize=(8.0, 3.0), layout="constrained")
    axis = figure.subplots()
    place, width = np.arange(len(found)), 0.26
    shares = np.array([[[o.share for o in runs] for runs in by_task] for by_task in found.values()])
    for index, (task, colour) in enumerate(zip(TASKS, colours, strict=True)):
        at = place + (index - 1) * width
        axis.bar(at, shares[:, index].mean(1), width, color=colour, label=task.env, alpha=0.85)
        for seed in range(shares.shape[2]):
            axis.plot(at, shares[:, index, seed], ".", color="black", markersize=3)
    axis.set(
        xticks=place, xticklabels=list(found), ylim=(0, 1.3), ylabel="from random (0) to good (1)"
    )
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="upper left")
    figure.savefig(out, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train every arm on every environment, print what came of it, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=None, help="instead of each environment's")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each arm")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE.png")
    options = parser.parse_args(arguments)
    found: dict[str, list[list[Outcome]]] = {}
    for arm, keywords in ARMS.items():
        found[arm] = []
        for task in TASKS:
            steps = options.steps or task.steps
            runs = [train(task, keywords, steps, seed) for seed in range(options.seeds)]
            found[arm].append(runs)
            scores = ", ".join(f"{run.score:.0f}" for run in runs)
            kl = np.median([run.kl for run in runs])
            print(f"{arm:<14}{task.env:<13}score {scores}  median KL {kl:.4f}", flush=True)
    for arm, by_task in found.items():
        worst = min(float(np.mean([run.share for run in runs])) for runs in by_task)
        print(f"{arm:<14}worst of the three environments: {worst:.2f} of the way to a good policy")
    if options.out is not None:
        draw(found, options.out)


if __name__ == "__main__":
    main()
