"""What is each choice worth? One option changed at a time, from one configuration.

    OMP_NUM_THREADS=1 python benchmarks/default_search.py

trains what is missing in benchmarks/results/default_search.csv and writes the table of
docs/choosing-defaults.md. ``--arms``, ``--only``, ``--seeds`` and ``--steps`` choose; ``--draw``
trains none.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learning import ROOT
from training_runs import Run, RunTable, put_between, train

ENVS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5")
STEPS = 500_000
# Step by step from what was there before to the defaults, and beside each step what was tried from
# there.
GAUSSIAN: dict[str, Any] = {"distribution": "gaussian"}
WIDE = GAUSSIAN | {"log_std_init": -0.5, "scale_actions": False}
WHOLE = WIDE | {"shrink_max_kl": False}
ARMS: dict[str, dict[str, Any]] = {
    "damped, joint": WHOLE | {"step_size": "damped", "max_kl_per": "action"},
    "boundary, joint": WHOLE | {"max_kl_per": "action"},
    "boundary, per dimension": WHOLE,
    "rollout_steps 512": WHOLE | {"rollout_steps": 512},
    "shrunk": WIDE,
    "shrunk, lam 0.9": WIDE | {"lam": 0.9},
    "shrunk, gamma 0.98": WIDE | {"gamma": 0.98},
    "shrunk, 20 critic passes": WIDE | {"critic_epochs": 20},
    "shrunk, critic of 256-256": WIDE | {"value_hidden_sizes": (256, 256)},
    "log_std_init -0.75": WIDE | {"log_std_init": -0.75},
    "log_std_init -1": WIDE | {"log_std_init": -1.0},
    "log_std_init -1.5": WIDE | {"log_std_init": -1.5},
    "length 1": GAUSSIAN,
    "length 1, lam 0.9": GAUSSIAN | {"lam": 0.9},
    "length 1, lam 0.93": GAUSSIAN | {"lam": 0.93},
    "length 1, 20 critic passes": GAUSSIAN | {"critic_epochs": 20},
}
BEGIN, END = "<!-- search: begin -->", "<!-- search: end -->"


def table(runs: RunTable) -> str:
    """A row an arm that was run: each seed's score and the curve's mean, by environment."""
    known = sorted({(run.env, run.steps) for run in runs.runs})
    lines = [
        "| configuration | " + " | ".join(f"{env}, {steps:,} steps" for env, steps in known) + " |",
        "|---|" + "---|" * len(known),
    ]
    arms = [arm for arm in ARMS if any(run.arm == arm for run in runs.runs)]
    for arm in arms:
        cells = [cell(runs.of(env, steps, arm)) for env, steps in known]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(runs: Sequence[Run]) -> str:
    """Scores of the seeds, from 0 on but where one is named; their curves' means in brackets."""
    return ", ".join(
        f"{'' if run.seed == place else f'seed {run.seed}: '}{run.score:.0f} ({run.area:.0f})"
        for place, run in enumerate(sorted(runs, key=lambda run: run.seed))
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing; then the table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--draw", action="store_true", help="the table of what is there")
    parser.add_argument("--arms", nargs="+", metavar="NAME", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--only", nargs="+", metavar="ENV_ID", default=list(ENVS))
    parser.add_argument("--seeds", nargs="+", type=int, metavar="S", default=[0, 1])
    parser.add_argument("--steps", type=int, default=STEPS, help="of each training")
    parser.add_argument("--out", type=Path, default=ROOT, metavar="DIR", help="the project's root")
    options = parser.parse_args(arguments)
    runs = RunTable(options.out / "benchmarks" / "results" / "default_search.csv")
    if not options.draw:
        for seed in options.seeds:
            for arm in options.arms:
                for env in options.only:
                    if (env, options.steps, seed, arm) not in runs:
                        runs.add(train(env, options.steps, seed, arm, ARMS[arm]))
    put_between((BEGIN, END), options.out / "docs" / "choosing-defaults.md", table(runs))


if __name__ == "__main__":
    main()
