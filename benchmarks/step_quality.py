"""How good a step is for its time: CG as sb3-contrib, tianshou and trpo_fast run it.

    python benchmarks/step_quality.py

On batches of real training runs (rollouts.py), early and late, it takes each solver's direction x
after some iterations and computes, in float64, the share of the exact natural gradient's predicted
improvement that a step along x reaches at the same length,

    Q = [g.x / sqrt(x'(F + damping I)x)] / [the same at x = (F + damping I)^-1 g],

beside the time from the batch to x: forward pass, products and, for K-FAC, its statistics and
factorisations in full, although an optimizer shares them between updates. It writes
docs/step-quality.md, the figure docs/assets/step-quality.png and the numbers behind both to
benchmarks/results/step_quality.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import cases
import peer_sb3
import peer_tianshou
import torch
from rollouts import RUNS, Run, Sample, samples_of
from torch import Tensor

from trpo_fast import MlpPolicy, fisher_vector_product, natural_gradient
from trpo_fast.runs.plotting import COLOURS, new_figure, save_figure

ROOT = Path(__file__).resolve().parent.parent
DAMPING = cases.DAMPING
ROUNDS = 5
SLOW_ROWS_TIMES_WIDTH = 1 << 21  # larger problems are timed once
EXACT_TOL = 1e-6  # of the solve in float64: its square is what Q can be wrong by
PROGRESS_TOL = 0.05


@dataclass(frozen=True)
class Setting:
    """A solver and its iterations; ``build`` gives a call that solves."""

    name: str
    label: str
    build: Callable[[Sample, cases.Case], Callable[[], Tensor]]


def ours(name: str, label: str, **options: Any) -> Setting:
    def build(sample: Sample, case: cases.Case) -> Callable[[], Tensor]:
        options.setdefault("cg_tol", 0.0)
        return lambda: natural_gradient(
            sample.policy, sample.obs, case.gradient, damping=DAMPING, **options
        )[0]

    return Setting(name, label, build)


def peer(module: Any, name: str, iterations: int) -> Setting:
    def build(_: Sample, case: cases.Case) -> Callable[[], Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the peer's, of its own dependencies
            candidate = module.Peer(case)
        candidate.reset()
        solve = candidate.solve()

        def run() -> Tensor:
            module.CG_ITERS = iterations
            solution: Tensor = candidate.our_solution(solve())
            return solution

        return run

    return Setting(name, str(iterations), build)


SETTINGS = (
    *(peer(peer_sb3, "sb3-contrib", n) for n in (5, 10, 15)),
    *(peer(peer_tianshou, "tianshou", n) for n in (5, 10)),
    *(
        ours("trpo_fast, plain CG", str(n), cg_iters=n, preconditioner="none")
        for n in (2, 5, 10, 15)
    ),
    *(ours("trpo_fast, K-FAC", str(n), cg_iters=n, preconditioner="kfac") for n in (1, 2, 3, 4, 6)),
)
STOPPED = ours("trpo_fast, K-FAC", "stopped", preconditioner="kfac", cg_progress_tol=PROGRESS_TOL)


class Quality:
    """Q of any direction at one sample, in float64."""

    def __init__(self, sample: Sample, damping: float = DAMPING) -> None:
        self.damping = damping
        self.obs = sample.obs.double()
        self.policy = copy.deepcopy(sample.policy).double()
        self.g = _gradient(self.policy, sample)
        _, exact = natural_gradient(
            self.policy,
            self.obs,
            self.g,
            damping=damping,
            cg_iters=1000,
            cg_tol=EXACT_TOL,
            preconditioner="kfac",
        )
        assert exact.residual <= EXACT_TOL, exact.residual
        self.best = math.sqrt(exact.quadratic)  # g.x / sqrt(x'Ax) at x = A^-1 g

    def __call__(self, x: Tensor) -> float:
        x = x.double()
        Ax = fisher_vector_product(self.policy, self.obs, x, damping=self.damping)
        return float(self.g @ x) / math.sqrt(float(x @ Ax)) / self.best


def _gradient(policy: MlpPolicy, sample: Sample) -> Tensor:
    """Of the surrogate ``[P]``, of length 1."""
    dtype = next(policy.parameters()).dtype
    log_prob = policy(sample.obs.to(dtype)).log_prob(sample.actions)
    objective = (log_prob * sample.advantages.to(dtype)).mean()
    grads = torch.autograd.grad(objective, list(policy.parameters()))
    g = torch.cat([grad.reshape(-1) for grad in grads])
    return torch.nn.functional.normalize(g, dim=0)


def case_of(sample: Sample) -> cases.Case:
    """The sample as the peers take it."""
    policy, hidden = sample.policy, sample.run.hidden
    size = cases.Size(sample.run.rows, sample.obs.shape[1], sample.actions.shape[1], hidden[0])
    with torch.no_grad():
        log_prob = policy(sample.obs).log_prob(sample.actions)
    theta = torch.cat([p.detach().reshape(-1) for p in policy.parameters()])
    g = _gradient(policy, sample)
    return cases.Case(
        size, policy, theta, sample.obs, sample.actions, sample.advantages, log_prob, theta, g
    )


def measure(sample: Sample) -> list[dict[str, Any]]:
    """Each setting's quality and time at one sample, the settings taking turns."""
    case, quality = case_of(sample), Quality(sample)
    slow = sample.run.rows * max(sample.run.hidden) > SLOW_ROWS_TIMES_WIDTH
    settings = (*SETTINGS, STOPPED)
    calls = [setting.build(sample, case) for setting in settings]
    qualities = [quality(call()) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(1 if slow else ROUNDS):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    _, stats = natural_gradient(
        sample.policy,
        sample.obs,
        case.gradient,
        damping=DAMPING,
        cg_tol=0.0,
        preconditioner="kfac",
        cg_progress_tol=PROGRESS_TOL,
    )
    rows = []
    for setting, q, taken in zip(settings, qualities, times, strict=True):
        label = setting.label
        if setting is STOPPED:
            label = f"stopped after {stats.cg_iters}"
        rows.append({"name": setting.name, "label": label, "q": q, "ms": 1e3 * median(taken)})
    return rows


def title(run: Run, update: int) -> str:
    return f"{run.env}, update {update}, {run.rows} x {'-'.join(map(str, run.hidden))}"


def dominated(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Peers' points that no point of ours beats in both quality and time."""
    mine = [r for r in rows if r["name"].startswith("trpo_fast")]
    return [
        f"{r['name']} {r['label']}"
        for r in rows
        if not r["name"].startswith("trpo_fast")
        and not any(o["q"] >= r["q"] - 5e-4 and o["ms"] < r["ms"] for o in mine)
    ]


def page(results: dict[str, list[dict[str, Any]]]) -> str:
    """The Markdown page."""
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"
    lines = [
        "# How good a step is for its time",
        "",
        f"Made by `python benchmarks/step_quality.py` ({machine}).",
        "",
        "Q is the share of the exact natural gradient's predicted improvement that a step",
        "along the direction reaches; 1 is a solve without error. Milliseconds are from the batch",
        "to the direction, on batches of our own training runs. K-FAC's statistics and",
        "factorisations are charged in full, although an optimizer shares them between updates.",
        f"Damping {DAMPING}. Numbers in the heads are iterations; *stopped* is",
        f"`cg_progress_tol={PROGRESS_TOL}`.",
        "",
        "![Quality against time](assets/step-quality.png)",
        "",
    ]
    heads = list(dict.fromkeys(f"{s.name} {s.label}" for s in (*SETTINGS, STOPPED)))
    lines += ["| batch | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, rows in results.items():
        cells = []
        for row in rows:
            after = row["label"].removeprefix("stopped ") if "stopped" in row["label"] else ""
            cells.append(f"{row['q']:.3f}, {row['ms']:.3g} ms {after}".strip())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(results: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """One panel a batch: Q over milliseconds, one line a solver."""
    columns = 2
    figure, axes = new_figure(
        math.ceil(len(results) / columns), columns, size=(9.6, 2.6 * math.ceil(len(results) / 2))
    )
    names = list(dict.fromkeys(s.name for s in SETTINGS))
    for axis, (name, rows) in zip(axes, results.items(), strict=True):
        for colour, solver in zip(COLOURS, names, strict=False):
            points = [r for r in rows if r["name"] == solver and "stopped" not in r["label"]]
            axis.plot(
                [r["ms"] for r in points],
                [r["q"] for r in points],
                color=colour,
                marker="o",
                markersize=3.5,
                linewidth=1.4,
                label=solver,
            )
        axis.set_xscale("log")
        axis.set_title(name, fontsize=9)
        axis.set_ylabel("Q")
        axis.set_xlabel("milliseconds")
    axes[0].legend(frameon=False, fontsize=8)
    save_figure(figure, out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every batch; 1 when a peer's point is not dominated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT, metavar="DIR", help="the project's root")
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="runs of this name; the others' numbers stay"
    )
    options = parser.parse_args(arguments)
    numbers = options.out / "benchmarks" / "results" / "step_quality.json"
    docs = options.out / "docs"
    for folder in (numbers.parent, docs / "assets"):
        folder.mkdir(parents=True, exist_ok=True)
    results = json.loads(numbers.read_text()) if numbers.exists() else {}
    for run in (run for run in RUNS if options.only in run.path.name):
        for sample in samples_of(run):
            name = title(run, sample.update)
            results[name] = measure(sample)
            print(name, flush=True)
            for row in results[name]:
                print(f"  {row['name']:<22}{row['label']:>16}  {row['q']:.3f}  {row['ms']:9.2f} ms")
    left = [f"{name}: {point}" for name, rows in results.items() for point in dominated(rows)]
    (docs / "step-quality.md").write_text(page(results))
    picture(results, docs / "assets" / "step-quality.png")
    numbers.write_text(json.dumps(results, indent=1) + "\n")
    print(f"not dominated: {'; '.join(left)}" if left else "ours dominates everywhere")
    return 1 if left else 0


if __name__ == "__main__":
    raise SystemExit(main())
