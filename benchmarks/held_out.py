"""What is a step worth on rows that it has not seen? Damping against both improvements.

    OMP_NUM_THREADS=1 python benchmarks/held_out.py

trains an agent for a while, freezes its policy, collects some rollouts of it and steps from each,
with dampings in units of the Fisher matrix's curvature along the gradient and the agent's other
options as they are; in the first case also with absolute dampings, by three solves. The surrogate's
improvement is measured on the rollout of the step and on the others, which differ from it by chance
alone: what is missing there was noise. Keeps the figures in benchmarks/results/held_out.csv, writes
the tables of docs/choosing-defaults.md and docs/choosing-max-kl-and-damping.md. It takes some
minutes; nothing trains for long.
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
from training_runs import put_between

from trpo_fast import TRPO, TRPOOptimizer, fisher_vector_product
from trpo_fast.update.damping import curvature_along

ROLLOUTS, PROBES = 6, 16
DAMPINGS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
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
class Case:
    """A policy to step from.

    Attributes:
        env: Where.
        steps: How far it is trained: early enough to have something left to learn.
        width: Of its two hidden layers.
    """

    env: str
    steps: int
    width: int = 64

    @property
    def name(self) -> str:
        return f"{self.env}, {self.width}-{self.width}"


CASES = (
    Case("CartPole-v1", 24_000),
    Case("CartPole-v1", 24_000, width=256),
    Case("Pendulum-v1", 40_000),
    Case("Hopper-v5", 40_000, width=16),
    Case("Hopper-v5", 40_000),
    Case("HalfCheetah-v5", 100_000),
    Case("HalfCheetah-v5", 100_000, width=256),
)


@dataclass(frozen=True)
class Figures:
    """Means over the steps from each rollout of one policy."""

    case: str
    solve: str  # RELATIVE, or one of SOLVES with absolute damping
    damping: float
    seen: float  # improvement on the step's own rows
    unseen: float  # on the other rollouts
    share: float  # of max_kl
    iterations: float
    curvature: float  # of the Fisher matrix along the gradient
    diagonal: float  # the mean of its diagonal


def rollouts(case: Case, count: int) -> tuple[nn.Module, dict[str, Any], list[Rows]]:
    """A trained policy, the options of its update, and batches of its own actions."""
    sizes = (case.width, case.width)
    with TRPO(case.env, seed=0, hidden_sizes=sizes, distribution="gaussian") as agent:
        agent.learn(case.steps, progress_bar=False)
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


def units(policy: nn.Module, rows: Rows) -> tuple[float, float]:
    """The Fisher matrix's curvature along the gradient, and an estimate of its mean diagonal."""

    def product(v: Tensor) -> Tensor:
        return fisher_vector_product(policy, rows["obs"], v)

    surrogate = (policy(rows["obs"]).log_prob(rows["actions"]) * rows["advantages"]).mean()
    parts = torch.autograd.grad(surrogate, list(policy.parameters()))
    g = torch.cat([part.flatten() for part in parts])
    bits = torch.randint(0, 2, (PROBES, len(g)), generator=torch.Generator().manual_seed(0))
    signs = (2 * bits - 1).to(g.dtype)
    return curvature_along(g, product), mean(float(v @ product(v)) / len(v) for v in signs)


def measured(
    case: Case,
    solve: str,
    damping: float,
    policy: nn.Module,
    options: dict[str, Any],
    batches: Sequence[Rows],
    scales: tuple[float, float],
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
    figures = mean(seen), mean(unseen), mean(shares), mean(iterations)
    return Figures(case.name, solve, damping, *figures, *scales)


def table(found: Sequence[Figures]) -> str:
    """A row a policy, its units, a column a damping: unseen improvement, and seen in brackets."""
    heads = ("policy", "unit", "mean diagonal", *(f"damping {damping:g}" for damping in DAMPINGS))
    lines = [f"| {' | '.join(heads)} |", "|---|---:|---:|" + "---|" * len(DAMPINGS)]
    for case in CASES:
        mine = [f for f in found if (f.case, f.solve) == (case.name, RELATIVE)]
        cells = " | ".join(f"{f.unseen:.4f} ({f.seen:.3f})" for f in mine)
        scales = f"{mine[0].curvature:.2g} | {mine[0].diagonal:.2g}"
        lines.append(f"| {case.name} | {scales} | {cells} |")
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every damping on every policy."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=ROOT, metavar="DIR", help="the project's root")
    options = parser.parse_args(arguments)
    found = []
    for case in CASES:
        policy, used, batches = rollouts(case, ROLLOUTS)
        along, diagonal = zip(*(units(policy, rows) for rows in batches), strict=True)
        scales = mean(along), mean(diagonal)
        wanted = [(RELATIVE, damping) for damping in DAMPINGS]
        if case is CASES[0]:
            wanted += [(solve, damping) for damping in ABSOLUTE for solve in SOLVES]
        for solve, damping in wanted:
            found.append(measured(case, solve, damping, policy, used, batches, scales))
            print(found[-1], flush=True)
    numbers = options.out / "benchmarks" / "results" / "held_out.csv"
    numbers.parent.mkdir(parents=True, exist_ok=True)
    with numbers.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Figures.__dataclass_fields__)
        for f in found:
            figures = (f.seen, f.unseen, f.share, f.iterations, f.curvature, f.diagonal)
            writer.writerow([f.case, f.solve, f.damping, *(f"{value:.5g}" for value in figures)])
    docs = options.out / "docs"
    put_between((BEGIN, END), docs / "choosing-defaults.md", table(found))
    put_between((BEGIN, END), docs / "choosing-max-kl-and-damping.md", table_of_solves(found))


if __name__ == "__main__":
    main()
