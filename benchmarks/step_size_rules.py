"""Which step size learns better: "boundary" against "damped", all else the defaults.

    OMP_NUM_THREADS=1 python benchmarks/step_size_rules.py

trains what is missing in benchmarks/results/step_size_rules.json, keeps the numbers there and
writes the table of docs/choosing-max-kl-and-damping.md. --draw trains none; --only ENV_ID ... these
alone. A run's share of its trust region is the median of kl / max_kl over its accepted updates.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from learning import ROOT

from trpo_fast import TRPO

RULES = ("damped", "boundary")
STEPS = {
    "CartPole-v1": 50_000,
    "Pendulum-v1": 200_000,
    "HalfCheetah-v5": 200_000,
    "Hopper-v5": 200_000,
}
SEEDS = (0, 1, 2)
EPISODES = 20
BEGIN, END = "<!-- rules: begin -->", "<!-- rules: end -->"


def train(env: str, rule: str, seed: int) -> dict[str, Any]:
    """Train once: the score over whole episodes, and what the updates spent."""
    rows: list[dict[str, Any]] = []

    def note(local: dict[str, Any], _: dict[str, Any]) -> None:
        rows.append(local["row"])

    with TRPO(env, seed=seed, step_size=rule) as agent:
        agent.learn(STEPS[env], note, progress_bar=False)
        score, _ = agent.evaluate(EPISODES)
    shares = [row["train/region_used"] for row in rows if row["train/accepted"]]
    found = {
        "env": env,
        "rule": rule,
        "seed": seed,
        "score": score,
        "updates": len(rows),
        "accepted": len(shares),
        "share": median(shares),
        "greatest_share": max(shares),
        "ratio": median(
            row["train/actual_improvement"] / row["train/expected_improvement"]
            for row in rows
            if row["train/accepted"]
        ),
        "candidates": mean(row["train/backtracks"] + 1 for row in rows),
    }
    print(found, flush=True)
    return found


def table(results: Sequence[dict[str, Any]]) -> str:
    """A row for each environment and rule, as Markdown."""
    heads = ("environment", "steps", "`step_size`", "score of each seed", "median")
    figures = ("kl / max_kl", "greatest", "actual / expected", "candidates")
    lines = [
        f"| {' | '.join(heads + figures)} |",
        "|---|---:|---|---|" + "---:|" * (1 + len(figures)),
    ]
    for env, steps in STEPS.items():
        for rule in RULES:
            runs = [r for r in results if (r["env"], r["rule"]) == (env, rule)]
            if not runs:
                continue
            runs.sort(key=lambda r: r["seed"])
            scores = ", ".join(f"{r['score']:.0f}" for r in runs)
            lines.append(
                f"| {env} | {steps:,} | {rule} | {scores} | {median(r['score'] for r in runs):.0f} "
                f"| {median(r['share'] for r in runs):.2f} "
                f"| {max(r['greatest_share'] for r in runs):.3f} "
                f"| {median(r['ratio'] for r in runs):.2f} "
                f"| {mean(r['candidates'] for r in runs):.2f} |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing; then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true", help="the table of what is there")
    parser.add_argument("--only", nargs="+", metavar="ENV_ID", default=list(STEPS))
    parser.add_argument("--out", type=Path, default=ROOT, metavar="DIR", help="the project's root")
    options = parser.parse_args(arguments)
    numbers = options.out / "benchmarks" / "results" / "step_size_rules.json"
    results: list[dict[str, Any]] = json.loads(numbers.read_text()) if numbers.exists() else []
    known = {(r["env"], r["rule"], r["seed"]) for r in results}
    for seed in SEEDS:
        for env in options.only:
            for rule in RULES:
                if (env, rule, seed) not in known and not options.draw:
                    results.append(train(env, rule, seed))
                    numbers.write_text(json.dumps(results, indent=1) + "\n")
    page = options.out / "docs" / "choosing-max-kl-and-damping.md"
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}")


if __name__ == "__main__":
    main()
