"""Whole policy updates of at least the peers' quality: what K-FAC makes of the time.

    python benchmarks/update_quality.py

For a batch of a real training run (rollouts.py) the peers do one update with ten CG iterations, and
trpo_fast the same with ten plain ones, and with as many preconditioned ones as reach at least
the quality Q (step_quality.py) of those ten. Nobody is charged for a critic. K-FAC's statistics are
renewed as in training: a time is the median over whole intervals of the mean in one, as the peers'
is that over updates. All take turns, each after a call off the clock, so that a busy machine is
busy for everyone; a ratio is that of the medians, with the lowest and highest of a turn. It prints
the table of docs/preconditioning.md and keeps its numbers in
benchmarks/results/update_quality.json.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import peer_sb3
import peer_tianshou
import torch
from cases import CG_ITERS, DAMPING, MAX_KL
from rollouts import RUNS, Sample, samples_of
from step_quality import ROOT, Quality, case_of, title

from trpo_fast import TRPOOptimizer, natural_gradient
from trpo_fast.networks.network import Network
from trpo_fast.preconditioning.cost import refresh_interval
from trpo_fast.recognition.recognizer import network_of

Q_ROUNDING = 5e-4
TARGETS = ("HalfCheetah-v5-25000", "Ant-v5-4096")
PEERS = {"sb3-contrib": peer_sb3, "tianshou": peer_tianshou}
VARIANTS: dict[str, dict[str, Any]] = {
    "K-FAC, fp32": {"precision": "fp32"},
    "K-FAC, bf16": {"precision": "bf16"},
}
DEFAULT = "K-FAC, bf16"  # what "auto" takes where the CPU has the instruction
# torch's own threads spin for some milliseconds after their last work.
PAUSE = 0.1


class Contender(NamedTuple):
    """Whose updates are timed: ``calls`` of them make one figure, their mean."""

    update: Callable[[], object]
    reset: Callable[[], None]
    calls: int
    rounds: int

    def turn(self) -> list[float]:
        """Milliseconds of each round."""
        time.sleep(PAUSE)
        taken = [self._round() for _ in range(self.rounds + 1)]
        return taken[1:]

    def _round(self) -> float:
        seconds = []
        for _ in range(self.calls):
            self.reset()
            start = time.perf_counter()
            self.update()
            seconds.append(time.perf_counter() - start)
        return 1e3 * mean(seconds)


def peer(module: Any, sample: Sample, rounds: int) -> Contender:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's, of its own dependencies
        candidate = module.Peer(case_of(sample))
        call = candidate.update()

    def update() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says so when it backtracks
            call()

    return Contender(update, candidate.reset, 1, rounds)


def ours(sample: Sample, rounds: int, **options: Any) -> Contender:
    theta = torch.cat([p.detach().reshape(-1) for p in sample.policy.parameters()])
    optimizer = TRPOOptimizer(
        sample.policy, max_kl=MAX_KL, damping=DAMPING, cg_tol=0, step_size="damped", **options
    )
    network = network_of(sample.policy)
    assert isinstance(network, Network)

    def reset() -> None:
        torch.nn.utils.vector_to_parameters(theta.clone(), sample.policy.parameters())

    def update() -> None:
        optimizer.step(obs=sample.obs, actions=sample.actions, advantages=sample.advantages)
        result = optimizer.last_result
        assert result is not None
        assert result.accepted, result.status

    return Contender(update, reset, refresh_interval(network, sample.run.rows), rounds)


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


def measure(sample: Sample, turns: int) -> dict[str, dict[str, Any]]:
    """By contender: milliseconds of every turn's median, CG iterations and Q."""
    quality = Quality(sample)
    wide = max(sample.run.hidden) > 512
    rounds = 1 if wide else 3
    contenders = {name: peer(module, sample, rounds) for name, module in PEERS.items()}
    contenders["plain CG"] = ours(sample, rounds, preconditioner="none")
    rows: dict[str, dict[str, Any]] = {name: {"iterations": CG_ITERS} for name in contenders}
    for name, options in VARIANTS.items():
        found = enough_iterations(sample, quality, **options)
        if found is None:
            continue
        iters, reached, rows["plain CG"]["q"] = found
        rows[name] = {"iterations": iters, "q": reached}
        contenders[name] = ours(
            sample,
            rounds,
            preconditioner="kfac",
            cg_iters=iters,
            cg_progress_tol=0.0,
            **options,
        )
    for row in rows.values():
        row["ms"] = []
    for _ in range(turns):
        for name, contender in contenders.items():
            rows[name]["ms"].append(median(contender.turn()))
        contenders["plain CG"].reset()
    return rows


def time_text(row: dict[str, Any]) -> str:
    ms = median(row["ms"])
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:.1f} ms"


def variant_text(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not reached"
    return f"{row['iterations']}, {row['q']:.3f}, {time_text(row)}"


def ratio_text(peer_row: dict[str, Any], row: dict[str, Any]) -> str:
    each = [theirs / own for theirs, own in zip(peer_row["ms"], row["ms"], strict=True)]
    whole = median(peer_row["ms"]) / median(row["ms"])
    return f"{whole:.1f}x ({min(each):.1f}-{max(each):.1f})"


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown, a row a batch: iterations, Q and time, then the peers' times by our default's."""
    head = ["batch", "Q of 10 plain", *PEERS, "plain CG", *VARIANTS]
    head += [f"{name} / {DEFAULT}" for name in PEERS]
    lines = [head, ["---"] * len(head)]
    for name, rows in results.items():
        cells = [name, f"{rows['plain CG']['q']:.3f}"]
        cells += [time_text(rows[of]) for of in (*PEERS, "plain CG")]
        cells += [variant_text(rows.get(of)) for of in VARIANTS]
        cells += [ratio_text(rows[of], rows[DEFAULT]) for of in PEERS]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT, metavar="DIR", help="the project's root")
    parser.add_argument("--only", metavar="TEXT", default="", help="runs of this name")
    parser.add_argument("--turns", type=int, default=5, help="of every contender")
    options = parser.parse_args(arguments)
    numbers = options.out / "benchmarks" / "results" / "update_quality.json"
    numbers.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(numbers.read_text()) if numbers.exists() else {}
    for run in RUNS:
        if not run.path.name.startswith(TARGETS) or options.only not in run.path.name:
            continue
        for sample in samples_of(run):
            name = title(run, sample.update)
            results[name] = measure(sample, options.turns)
            print(name, json.dumps(results[name], indent=1), flush=True)
    numbers.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
