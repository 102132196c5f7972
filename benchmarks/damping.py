"""Does the preconditioner learn as well at every damping? CartPole, K-FAC beside plain iterations.

    OMP_NUM_THREADS=1 python benchmarks/damping.py

trains what is missing in benchmarks/results/damping.csv and writes the table of
docs/choosing-max-kl-and-damping.md. ``--draw`` trains none.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from learning import ROOT
from training_runs import Run, RunTable, train

ENV, STEPS = "CartPole-v1", 40_000
DAMPINGS = (1e-5, 1e-3, 1e-1, 1.0)
SOLVES: dict[str, dict[str, Any]] = {
    "ten plain iterations": {"preconditioner": "none"},
    "K-FAC with its stop": {"preconditioner": "kfac"},
    "K-FAC, solved to the end": {"preconditioner": "kfac", "cg_progress_tol": 0.0},
}
UNITS: dict[str, dict[str, Any]] = {"": {}, ", relative": {"relative_damping": True}}
BEGIN, END = "<!-- damping: begin -->", "<!-- damping: end -->"


def arm_of(solve: str, unit: str, damping: float) -> str:
    return f"{solve}{unit}, damping {damping:g}"


def table(runs: RunTable) -> str:
    """The mean return along the training, a seed each, and the score after it."""
    lines = [
        "| solve | " + " | ".join(f"damping {damping:g}" for damping in DAMPINGS) + " |",
        "|---|" + "---|" * len(DAMPINGS),
    ]
    for unit in UNITS:
        for solve in SOLVES:
            found = [runs.of(ENV, STEPS, arm_of(solve, unit, damping)) for damping in DAMPINGS]
            if any(found):
                lines.append(f"| {solve}{unit} | {' | '.join(map(cell, found))} |")
    return "\n".join(lines)


def cell(runs: Sequence[Run]) -> str:
    """Means of the curves, and the scores' mean."""
    if not runs:
        return ""
    areas = ", ".join(f"{run.area:.0f}" for run in runs)
    return f"{areas} ({mean(run.score for run in runs):.0f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing; then the table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--draw", action="store_true", help="the table of what is there")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="S", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT, metavar="DIR", help="the project's root")
    options = parser.parse_args(arguments)
    runs = RunTable(options.out / "benchmarks" / "results" / "damping.csv")
    if not options.draw:
        for seed in options.seeds:
            for unit, in_unit in UNITS.items():
                for solve, how in SOLVES.items():
                    for damping in DAMPINGS:
                        arm = arm_of(solve, unit, damping)
                        if (ENV, STEPS, seed, arm) not in runs:
                            keywords = {**how, **in_unit, "damping": damping}
                            runs.add(train(ENV, STEPS, seed, arm, keywords))
    page = options.out / "docs" / "choosing-max-kl-and-damping.md"
    before, rest = page.read_text().split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table(runs)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
