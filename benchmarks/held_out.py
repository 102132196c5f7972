"""What is a step worth on rows that it has not seen? Damping against both improvements.

    OMP_NUM_THREADS=1 python benchmarks/held_out.py

trains an agent for a while, freezes its policy, collects some rollouts of it and steps from each,
with dampings in units of the Fisher matrix's mean diagonal and the agent's other options as they
are; in CartPole also with absolute dampings, by three solves. The surrogate's improvement is
measured on the rollout of the step and on the others, which differ from it by chance alone: what is
missing there was noise. Keeps the figures in benchmarks/results/held_out.csv, writes the tables of
docs/choosing-defaults.md and docs/choosing-max-kl-and-damping.md. It takes a minute or two; nothing
trains for long.
"""

from __future__ import annotations

import argparse
import copy
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from learning import ROOT
from torch import Tensor, nn

from trpo_fast import TRPO, TRPOOptimizer

# How far to train: early enough for a policy to have something left to learn.
STEPS = {
    "CartPole-v1": 24_000,
    "Pendulum-v1": 40_000,
    "Hopper-v5": 40_000,
    "HalfCheetah-v5": 100_000,
}
ROLLOUTS = 6
DAMPINGS = (0.01, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0)
ABSOLUTE = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
RELATIVE = "relative"
SOLVES: dict[str, dict[str, Any]] = {
    "ten plain iterations": {"preconditioner": "none"},
    "K-FAC with its stop": {"preconditioner": "kfac"},
    "K-FAC, ten iterations": {"preconditioner": "kfac", "cg_progress_tol": 0.0, "cg_tol": 0.0},
}
BEGIN, END = "<!-- held out: begin -->", "<!-- held out: end -->"
Rows = dict[str, Any]  # tensors, or None


@dataclass(frozen=True)
class Figures:
    """Means over the steps from each rollout of one policy."""

    env: str
    solve: str  # RELATIVE, or one of SOLVES with absolute damping
    damping: float
    seen: float  # improvement on the step's own rows
    unseen: float  # on the other rollouts
    share: float  # of max_kl
    iterations: float


def rollouts(env: str, steps: int, count: int) -> tuple[nn.Module, dict[str, Any], list[Rows]]:
    """A policy after ``steps``, the options of its update, and batches of its own actions."""
    with TRPO(env, seed=0) as agent:
        agent.learn(steps, progress_bar=False)
        optimizer = agent.optimizer
        options = {k: v for k, v in optimizer.param_groups[0].items() if not k.startswith("param")}
        optimizer.param_groups[0]["lr"] = 0.0  # every step is a no-op from now on
        step, found = optimizer.step, []

        def keep(**rows: Any) -> Tensor:
            found.append({k: None if v is None else v.clone() for k, v in rows.items()})
            return step(**rows)  # type: ignore[no-any-return]

        optimizer.step = keep
        size = agent.config.num_envs * agent.config.rollout_steps
        agent.learn(size * count, progress_bar=False)
        return copy.deepcopy(agent.policy), options, found


@torch.no_grad()
def improvement(new: nn.Module, old: nn.Module, rows: Rows) -> float:
    """Of the surrogate on these rows."""
    obs, actions, advantages = rows["obs"], rows["actions"], rows["advantages"]
    log_ratio = new(obs).log_prob(actions) - old(obs).log_prob(actions)
    return float((log_ratio.double().exp_().sub_(1) * advantages).mean())


def measured(
    env: str,
    solve: str,
    damping: float,
    policy: nn.Module,
    options: dict[str, Any],
    batches: Sequence[Rows],
) -> Figures:
    """A step from each batch, judged on all."""
    relative = solve == RELATIVE
    options = {**options, "damping": damping, "relative_damping": relative}
    options |= {} if relative else SOLVES[solve]
    seen, unseen, shares, iterations = [], [], [], []
    for index, rows in enumerate(batches):
        new = copy.deepcopy(policy)
        optimizer = TRPOOptimizer(new, **options)
        optimizer.step(**rows)
        result = optimizer.last_result
        assert result is not None
        shares.append(result.region_used)
        iterations.append(result.cg_iters)
        seen.append(improvement(new, policy, rows))
        others = (other for place, other in enumerate(batches) if place != index)
        unseen += [improvement(new, policy, other) for other in others]
    return Figures(env, solve, damping, mean(seen), mean(unseen), mean(shares), mean(iterations))


def table(found: Sequence[Figures]) -> str:
    """A row an environment, a column a damping: unseen improvement, and seen in brackets."""
    lines = [
        "| environment | " + " | ".join(f"damping {damping:g}" for damping in DAMPINGS) + " |",
        "|---|" + "---|" * len(DAMPINGS),
    ]
    for env in STEPS:
        mine = [f for f in found if (f.env, f.solve) == (env, RELATIVE)]
        lines.append(f"| {env} | {' | '.join(f'{f.unseen:.4f} ({f.seen:.3f})' for f in mine)} |")
    return "\n".join(lines)


def table_of_solves(found: Sequence[Figures]) -> str:
    """A row an absolute damping, a column a solve: share of max_kl, then both improvements."""
    lines = [f"| `damping` | {' | '.join(SOLVES)} |", "|---|" + "---|" * len(SOLVES)]
    for damping in ABSOLUTE:
        cells = [
            f"{f.share:.2f}: {f.seen:.4f}, {f.unseen:.4f}"
            for f in found
            if f.damping == damping and f.solve in SOLVES
        ]
        lines.append(f"| {damping:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def put(page: Path, text: str) -> None:
    """The text between the page's two marks."""
    before, rest = page.read_text().split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every damping on every environment."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=ROOT, metavar="DIR", help="the project's root")
    options = parser.parse_args(arguments)
    found = []
    for env, steps in STEPS.items():
        policy, used, batches = rollouts(env, steps, ROLLOUTS)
        wanted = [(RELATIVE, damping) for damping in DAMPINGS]
        if env == next(iter(STEPS)):
            wanted += [(solve, damping) for damping in ABSOLUTE for solve in SOLVES]
        for solve, damping in wanted:
            found.append(measured(env, solve, damping, policy, used, batches))
            print(found[-1], flush=True)
    numbers = options.out / "benchmarks" / "results" / "held_out.csv"
    numbers.parent.mkdir(parents=True, exist_ok=True)
    with numbers.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Figures.__dataclass_fields__)
        for f in found:
            figures = (f.seen, f.unseen, f.share, f.iterations)
            writer.writerow([f.env, f.solve, f.damping, *(f"{value:.5g}" for value in figures)])
    put(options.out / "docs" / "choosing-defaults.md", table(found))
    put(options.out / "docs" / "choosing-max-kl-and-damping.md", table_of_solves(found))


if __name__ == "__main__":
    main()
