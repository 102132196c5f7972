"""Long runs and many deaths: does anything grow, and does a killed run end as one that was not?

    OMP_NUM_THREADS=1 python benchmarks/soak.py --out benchmarks/results/soak.json

1. ``--updates`` updates of one agent in one process, for each vectorization: resident memory and
   open files along the way.
2. ``--cycles`` times in one process: save, leave the agent to the garbage collector, load, and two
   updates more.
3. ``--kills`` SIGKILLs of the command line at random moments, half of them in its first seconds,
   each resumed: the weights, the best checkpoint and every figure of the log but the times must be
   those of a run that was left alone.

Memory is flat where the least of the last quarter is not above the most of the second quarter by
more than GROWTH. The numbers of 1 and 2 are of a small policy, so that updates, not environments,
take the time.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trpo_fast import TRPO
from trpo_fast.runs.checkpoint import load_checkpoint
from trpo_fast.runs.directory import RunDirectory

SMALL: dict[str, Any] = {
    "num_envs": 2,
    "rollout_steps": 16,
    "hidden_sizes": (8,),
    "critic_epochs": 1,
    "seed": 0,
}
SAMPLES = 40
GROWTH = 2 * 2**20  # bytes
TRAIN = [
    "CartPole-v1",
    *("--total-steps", "6400", "--num-envs", "2", "--rollout-steps", "32", "--seed", "0"),
    *("--hidden-sizes", "8", "--save-every", "3", "--eval-every", "10", "--eval-episodes", "2"),
]
Sample = dict[str, int]


def sample() -> Sample:
    """Resident bytes, open files and child processes of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {
        "rss": pages * os.sysconf("SC_PAGE_SIZE"),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "children": len(children),
    }


def verdict(samples: list[Sample]) -> str:
    """What grew from the second quarter to the last; or that all is flat."""
    quarter = len(samples) // 4
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]
    allowed = {"rss": GROWTH, "files": 0, "children": 0}
    grown = [
        name
        for name, most in allowed.items()
        if min(s[name] for s in last) > max(s[name] for s in second) + most
    ]
    return "grows: " + ", ".join(grown) if grown else "flat"


def soak(once: Callable[[], object], count: int) -> dict[str, Any]:
    """Call it so often; the samples along the way."""
    each = max(1, count // SAMPLES)
    samples = []
    began = time.perf_counter()
    for number in range(1, count + 1):
        once()
        if number % each == 0:
            samples.append(sample())
    seconds = time.perf_counter() - began
    return {"count": count, "seconds": seconds, "verdict": verdict(samples), "samples": samples}


def updates(vectorization: str, count: int) -> dict[str, Any]:
    """One agent, many updates."""
    agent = TRPO("CartPole-v1", vectorization=vectorization, **SMALL)
    steps = agent.config.num_envs * agent.config.rollout_steps
    try:
        return soak(lambda: agent.learn(steps, progress_bar=False), count)
    finally:
        agent.close()


def cycles(vectorization: str, count: int) -> dict[str, Any]:
    """Saved, lost, loaded and gone on with, again and again."""
    with tempfile.TemporaryDirectory() as folder:
        path = TRPO("CartPole-v1", vectorization=vectorization, **SMALL).save(Path(folder) / "a")

        def once() -> None:
            agent = TRPO.load(path)
            agent.learn(64, progress_bar=False)
            agent.save(path)

        return soak(once, count)


def kills(vectorization: str, count: int) -> dict[str, Any]:
    """Killed so often before it ends, and compared with a run that was left alone."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        alone, killed = (Path(folder) / name for name in ("alone", "killed"))
        began = time.perf_counter()
        _train(alone, vectorization).wait()
        whole = time.perf_counter() - began
        done = 0
        while done < count:
            training = _train(killed, vectorization)
            # Half of them while it starts and resumes, half anywhere.
            time.sleep(rng.uniform(0, 3.0 if done % 2 else whole))
            if training.poll() is not None:
                # It got to its end: what it leaves is compared, and another one is begun.
                _compare(alone, killed)
                killed = killed.with_name(f"killed-{done}")
                continue
            training.kill()
            training.wait()
            done += 1
        if _train(killed, vectorization).wait():
            raise RuntimeError("the resumed run did not end well")
        _compare(alone, killed)
    return {"count": done, "verdict": "as the run that was left alone"}


def _train(directory: Path, vectorization: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "trpo_fast", "train", *TRAIN, "--quiet", "--resume"]
    words += ["--run-dir", str(directory), "--vectorization", vectorization]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL)


def _compare(alone: Path, killed: Path) -> None:
    one, other = RunDirectory(alone), RunDirectory(killed)
    pairs = [(one.best_file, other.best_file)]
    newest = [each.latest() for each in (one, other)]
    assert newest[0] is not None
    assert newest[1] is not None
    pairs.append((newest[0][0], newest[1][0]))
    for mine, theirs in pairs:
        _require_equal(_steady(load_checkpoint(mine)), _steady(load_checkpoint(theirs)), mine.name)
    _require_equal(_rows(one.progress_file), _rows(other.progress_file), "progress.csv")


def _steady(state: Any) -> Any:
    """Without the seconds that it took, and where."""
    state["progress"].pop("time_elapsed")
    return state


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if "time/" not in k} for row in csv.DictReader(file)]


def _require_equal(one: Any, other: Any, where: str) -> None:
    if isinstance(one, dict):
        if set(one) != set(other):
            raise RuntimeError(f"{where}: {sorted(set(one) ^ set(other))} is in one alone")
        for key in one:
            _require_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list):
        if len(one) != len(other):
            raise RuntimeError(f"{where}: {len(one)} and {len(other)} entries")
        for index, pair in enumerate(zip(one, other, strict=True)):
            _require_equal(*pair, f"{where}/{index}")
    elif not np.array_equal(np.asarray(one), np.asarray(other), equal_nan=not isinstance(one, str)):
        raise RuntimeError(f"{where}: {one} and {other}")


PARTS = {"updates": updates, "cycles": cycles, "kills": kills}


def main() -> None:
    """Run what the command line names, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--vectorizations", nargs="+", default=["sync", "workers"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for name, part in PARTS.items():
        for vectorization in options.vectorizations:
            found = part(vectorization, getattr(options, name))
            results[f"{name}, {vectorization}"] = found
            ends = found.get("samples", [None])
            print(
                f"{name}, {vectorization}: {found['count']}, {found['verdict']}, {ends[-1]}",
                flush=True,
            )
            if options.out is not None:
                options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
