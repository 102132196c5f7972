"""Whole policy updates of at least the peers' quality: what K-FAC makes of the time.

    python benchmarks/update_quality.py

For a batch of a real training run (rollouts.py) the peers do one update with ten CG iterations, and
trpo_fast the same with ten plain ones, and with as many preconditioned ones as reach at least
the quality Q (step_quality.py) of those ten. Nobody is charged for a critic. K-FAC's statistics are
renewed as in training: a time is the median over whole intervals of the mean in one, as the peers'
is that over updates.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import peer_sb3
import peer_tianshou
import torch
from cases import CG_ITERS, DAMPING, MAX_KL
from rollouts import RUNS, Sample, samples_of
from step_quality import ROOT, Quality, case_of, title

from trpo_fast import TRPOOptimizer, natural_gradient
from trpo_fast.backends.preconditioner_cost import refresh_interval
from trpo_fast.network import Network, network_of

Q_ROUNDING = 5e-4
TARGETS = ("HalfCheetah-v5-25000", "Ant-v5-4096")


def seconds_of(call: Callable[[], object], reset: Callable[[], None], rounds: int) -> list[float]:
    taken = []
    for _ in range(rounds):
        reset()
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


def peer_seconds(module: Any, sample: Sample, rounds: int) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's, of its own dependencies
        candidate = module.Peer(case_of(sample))
        call = candidate.update()

        def update() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it says so when it backtracks
                call()

        seconds_of(update, candidate.reset, 1)
        return median(seconds_of(update, candidate.reset, rounds))


def our_seconds(sample: Sample, rounds: int, **options: Any) -> float:
    """The median over whole intervals of the statistics, each interval's mean; not the first."""
    theta = torch.cat([p.detach().reshape(-1) for p in sample.policy.parameters()])
    optimizer = TRPOOptimizer(sample.policy, max_kl=MAX_KL, damping=DAMPING, cg_tol=0, **options)
    network = network_of(sample.policy)
    assert isinstance(network, Network)
    interval = refresh_interval(network, sample.run.rows)

    def reset() -> None:
        torch.nn.utils.vector_to_parameters(theta.clone(), sample.policy.parameters())

    def update() -> None:
        optimizer.step(obs=sample.obs, actions=sample.actions, advantages=sample.advantages)

    seconds_of(update, reset, interval)
    taken = [mean(seconds_of(update, reset, interval)) for _ in range(rounds)]
    result = optimizer.last_result
    reset()
    assert result is not None
    assert result.accepted, result.status
    return median(taken)


def enough_iterations(
    sample: Sample, quality: Quality, **options: Any
) -> tuple[int, float, float] | None:
    """The fewest preconditioned iterations of at least ten plain ones' quality, and both."""
    g = case_of(sample).gradient

    def q(iters: int, preconditioner: str, **more: Any) -> float:
        x, _ = natural_gradient(
            sample.policy,
            sample.obs,
            g,
            damping=DAMPING,
            cg_iters=iters,
            cg_tol=0,
            preconditioner=preconditioner,
            **more,
        )
        return quality(x)

    wanted = q(CG_ITERS, "none")
    for iters in range(1, CG_ITERS + 1):
        reached = q(iters, "kfac", **options)
        if reached >= wanted - Q_ROUNDING:
            return iters, reached, wanted
    return None


def measure(sample: Sample, variants: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Milliseconds of everyone's update at one sample."""
    quality = Quality(sample)
    rounds = 3 if max(sample.run.hidden) > 512 else 15
    row: dict[str, Any] = {
        "sb3-contrib": 1e3 * peer_seconds(peer_sb3, sample, rounds),
        "tianshou": 1e3 * peer_seconds(peer_tianshou, sample, rounds),
        "plain": 1e3 * our_seconds(sample, rounds, preconditioner="none"),
    }
    for options in variants:
        found = enough_iterations(sample, quality, **options)
        if found is None:
            continue
        iters, reached, row["q of 10 plain"] = found
        taken = our_seconds(
            sample,
            rounds,
            preconditioner="kfac",
            cg_iters=iters,
            cg_progress_tol=0.0,
            **options,
        )
        row[named(options)] = {"ms": 1e3 * taken, "iterations": iters, "q": reached}
    return row


def named(options: dict[str, Any]) -> str:
    return ", ".join(["K-FAC", *(f"{name}={value}" for name, value in options.items())])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT, metavar="DIR", help="the project's root")
    parser.add_argument("--only", metavar="TEXT", default="", help="runs of this name")
    options = parser.parse_args(arguments)
    precisions = ["fp32", "bf16"]
    numbers = options.out / "benchmarks" / "results" / "update_quality.json"
    results = json.loads(numbers.read_text()) if numbers.exists() else {}
    for run in RUNS:
        if not run.path.name.startswith(TARGETS) or options.only not in run.path.name:
            continue
        for sample in samples_of(run):
            name = title(run, sample.update)
            variants = [{"precision": p} for p in precisions]
            results[name] = row = measure(sample, variants)
            print(name)
            for key, value in row.items():
                print(f"  {key:<22}{value}")
            ours = [value["ms"] for value in row.values() if isinstance(value, dict)]
            for peer in ("sb3-contrib", "tianshou"):
                print(f"  {peer} / ours: {row[peer] / min(ours):.1f}x", flush=True)
    numbers.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
