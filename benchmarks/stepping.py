"""Environment steps alone: this process (sync) beside worker processes, turn by turn.

    OMP_NUM_THREADS=1 python benchmarks/stepping.py HalfCheetah-v5 Ant-v5 --envs 8 16
    OMP_NUM_THREADS=1 python benchmarks/stepping.py sleep --envs 16 --num-workers 8

``sleep`` is an environment of one millisecond a step. Actions are drawn beforehand; between two
steps this process computes for --between microseconds, as a policy would. Each kind's best turn,
its median in brackets, and the ratio of the bests. "apart" is what the cores could give: as many
processes as there are cores, each with its share of the environments and nothing to do with the
others, their speeds added up. Two threads of one core come to less than twice one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import gymnasium
import numpy as np

from trpo_fast.base.threads import usable_cores
from trpo_fast.environments.interface import Environments
from trpo_fast.environments.make import make_vector_env

SECONDS = 1.0  # of a turn


class Sleeping(gymnasium.Env[Any, Any]):
    """Steps that take a millisecond and no core."""

    observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        del options
        super().reset(seed=seed)
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        del action
        time.sleep(1e-3)
        return np.zeros(4, np.float32), 0.0, False, False, {}


def turn(env: Environments, actions: np.ndarray[Any, Any], between: float) -> float:
    """Environment steps per second over about `SECONDS`."""
    out = np.empty((env.num_envs, env.observation_width), env.observation_dtype)
    steps, spent = 0, 0.0
    while spent < SECONDS:
        for row in actions:
            began = time.perf_counter()
            env.step(row, out)
            ended = time.perf_counter()
            spent += ended - began
            while time.perf_counter() < ended + between:
                pass
        steps += len(actions)
    return steps * env.num_envs / spent


def apart(kind: Any, envs: int, actions: np.ndarray[Any, Any], between: float) -> float:
    """Environment steps per second of processes that share nothing but the machine."""
    context = multiprocessing.get_context("fork")
    shares = [part for part in np.array_split(np.arange(envs), usable_cores()) if len(part)]
    barrier, speeds = context.Barrier(len(shares)), context.SimpleQueue()

    def one(part: Any) -> None:
        env = make_vector_env(kind, num_envs=len(part), seed=int(part[0]), vectorization="sync")
        env.reset(np.empty((env.num_envs, env.observation_width), env.observation_dtype))
        barrier.wait()
        speeds.put(turn(env, actions[:, part], between))

    processes = [context.Process(target=one, args=(part,)) for part in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return float(sum(speeds.get() for _ in shares))


def compare(source: str, envs: int, options: argparse.Namespace) -> None:
    """One line of the table."""
    kind: str | Callable[[], Any] = Sleeping if source == "sleep" else source
    vectors = {
        name: make_vector_env(
            kind, num_envs=envs, seed=0, vectorization=name, num_workers=options.num_workers
        )
        for name in ("sync", "workers")
    }
    batch = gymnasium.vector.utils.batch_space(vectors["sync"].action_space, envs)
    batch.seed(0)
    actions = np.stack([batch.sample() for _ in range(100)])
    for env in vectors.values():
        env.reset(np.empty((envs, env.observation_width), env.observation_dtype))
    speeds: dict[str, list[float]] = {name: [] for name in (*vectors, "apart")}
    for _ in range(options.turns):
        for name, env in vectors.items():
            speeds[name].append(turn(env, actions, 1e-6 * options.between))
        speeds["apart"].append(apart(kind, envs, actions, 1e-6 * options.between))
    words = [f"{name} {max(s):9,.0f} ({median(s):9,.0f})" for name, s in speeds.items()]
    ratio, most = (max(speeds[name]) / max(speeds["sync"]) for name in ("workers", "apart"))
    print(
        f"{source:16}{envs:4}  {'  '.join(words)}  {ratio:.2f} of {most:.2f}  "
        f"{vectors['workers'].choice}"
    )
    for env in vectors.values():
        env.close()


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+", metavar="ENV", help="gymnasium ids, or sleep")
    parser.add_argument("--envs", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--between", type=float, default=25.0, metavar="MICROSECONDS")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for source in options.sources:
        for envs in options.envs:
            compare(source, envs, options)


if __name__ == "__main__":
    main()
