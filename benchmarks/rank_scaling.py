"""How the steps a second grow with ranks: the same environments on each, one thread each.

    python benchmarks/rank_scaling.py --env Ant-v5 --ranks 1 2

Of each iteration the slowest rank's time in collectives is what they cost; what the others spend
there beyond that is waiting for it. Ranks are processes of this machine, which needs a core for
each, and talk by gloo. "apart" is what the machine could give: as many processes that train each
for itself, their speeds added up. Two threads of one core come to less than twice one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from trpo_fast import TRPO

WARM_UP = 2  # iterations that are not counted: compilation, first pages


FIGURES = tuple(
    [f"ranks/{name}" for name in ("seconds", "collectives", "bytes")]
    + [f"time/{name}" for name in ("env", "inference", "update", "critic", "other")]
)


def measured(env: str, envs: int, iterations: int, group: Any) -> dict[str, Any]:
    """Each iteration's seconds and figures; environment steps of one, over all ranks."""
    ranks = 1 if group is None else torch.distributed.get_world_size()
    rows: list[dict[str, float]] = []
    last = perf_counter()

    def note(scope: dict[str, Any], _: Any) -> bool:
        nonlocal last
        now, row = perf_counter(), scope["row"]
        rows.append({"seconds": now - last, **{name: row.get(name, 0.0) for name in FIGURES}})
        last = now
        return len(rows) < WARM_UP + iterations

    with TRPO(env, num_envs=envs * ranks, seed=0, process_group=group) as agent:
        last = perf_counter()
        agent.learn(10**12, callback=note, progress_bar=False)
        steps = agent.config.num_envs * agent.config.rollout_steps
        found: dict[str, Any] = {"steps": steps, "rows": rows[WARM_UP:]}
        if group is not None:
            vector = sum(p.numel() for p in agent.policy.parameters())
            found["small_sum_seconds"] = sum_seconds(3)
            found["vector_sum_seconds"] = sum_seconds(vector)
    return found


def sum_seconds(numbers: int, repeats: int = 300) -> float:
    """Of one sum of so many float64 over the ranks, where all come to it together."""
    held = torch.zeros(numbers, dtype=torch.float64)
    torch.distributed.barrier()
    began = perf_counter()
    for _ in range(repeats):
        torch.distributed.all_reduce(held)
    return (perf_counter() - began) / repeats


def worker(arguments: argparse.Namespace) -> None:
    """One rank; its figures to a file."""
    torch.set_num_threads(1)
    rank, count = arguments.worker, arguments.ranks[0]
    group = None
    if count > 1:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{arguments.place}/meet",
            rank=rank,
            world_size=count,
            timeout=timedelta(minutes=5),
        )
        group = None if arguments.apart else torch.distributed.group.WORLD
        torch.distributed.barrier()  # processes apart, too, are to run at the same time
        warnings.filterwarnings("ignore", "this process is rank", UserWarning)
    found = measured(arguments.env, arguments.envs, arguments.iterations, group)
    Path(arguments.place, f"rank-{rank}.json").write_text(json.dumps(found))


def launched(arguments: argparse.Namespace, count: int, *more: str) -> list[dict[str, Any]]:
    """What so many processes measured."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, __file__, "--env", arguments.env, "--ranks", str(count)]
        command += ["--envs", str(arguments.envs), "--iterations", str(arguments.iterations)]
        processes = [
            subprocess.Popen(
                [*command, *more, "--place", place, "--worker", str(rank)],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            for rank in range(count)
        ]
        for process in processes:
            if process.wait():
                raise SystemExit(f"a process of {count} failed")
        return [json.loads(Path(place, f"rank-{rank}.json").read_text()) for rank in range(count)]


def scaled(arguments: argparse.Namespace, count: int) -> dict[str, Any]:
    """The figures of so many ranks in a turn: medians over iterations, of the slowest rank."""
    found = launched(arguments, count)
    iterations = list(zip(*(rank["rows"] for rank in found), strict=True))

    def most(name: str) -> float:
        return float(statistics.median(max(r[name] for r in ranks) for ranks in iterations))

    seconds = most("seconds")
    waited = statistics.median(min(r["ranks/seconds"] for r in ranks) for ranks in iterations)
    return {
        "ranks": count,
        "steps_per_second": found[0]["steps"] / seconds,
        "iteration_seconds": seconds,
        "collective_seconds": waited,
        **{name: most(name) for name in FIGURES[1:]},
        **{name: value for name, value in found[0].items() if name.endswith("_seconds")},
    }


def apart(arguments: argparse.Namespace, count: int) -> float:
    """Environment steps per second of processes that share nothing but the machine."""
    found = launched(arguments, count, "--apart")
    # Of whole runs: where processes take turns on a core, an iteration can be undisturbed.
    paces = [statistics.mean(row["seconds"] for row in each["rows"]) for each in found]
    return float(sum(each["steps"] / pace for each, pace in zip(found, paces, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--env", default="Ant-v5")
    parser.add_argument("--envs", type=int, default=8, help="of each rank")
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--turns", type=int, default=3, help="of which the best counts")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--place", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        worker(arguments)
        return
    turns: dict[int, list[dict[str, Any]]] = {count: [] for count in arguments.ranks}
    alone: dict[int, list[float]] = {count: [] for count in arguments.ranks if count > 1}
    for _ in range(arguments.turns):
        for count in arguments.ranks:
            turns[count].append(scaled(arguments, count))
        for count, paces in alone.items():
            paces.append(apart(arguments, count))
    found = [max(each, key=lambda figures: figures["steps_per_second"]) for each in turns.values()]
    for figures in found:
        each = [round(turn["steps_per_second"]) for turn in turns[figures["ranks"]]]
        print(f"{figures['ranks']} ranks, steps a second in each turn: {each}")
        figures["speedup"] = figures["steps_per_second"] / found[0]["steps_per_second"]
        figures["collective_share"] = figures["collective_seconds"] / figures["iteration_seconds"]
        if figures["ranks"] in alone:
            print("  apart:", [round(pace) for pace in alone[figures["ranks"]]])
            most = max(alone[figures["ranks"]])
            figures["apart_speedup"] = most / found[0]["steps_per_second"]
        print(json.dumps({k: round(v, 5) for k, v in figures.items()}))
    if arguments.out is not None:
        document = {"env": arguments.env, "envs": arguments.envs, "figures": found}
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
