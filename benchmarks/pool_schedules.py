"""EnvPool with a pause before each answer: all environments at once, or half of them at a time.

``python benchmarks/pool_schedules.py [ENV] [ROUNDS]`` prints the milliseconds of 64 environments x
128 steps, best and median over the rounds, for pauses as long as a policy takes. "together" is what
trpo_fast does: one answer a step, in which the pool's threads wait. "halves" is EnvPool's
asynchronous mode: whichever 32 environments are ready first are answered while the others are
stepped, so the threads never wait, but there are twice as many answers. It runs on and on: where it
had to end a rollout, environments that are behind may be fewer than the 32 that EnvPool waits for.
Then "together" without a pause, with more threads than cores, and with threads bound to cores.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

ENVS, STEPS = 64, 128
PAUSES = (0, 20, 40, 60)  # microseconds
CORES = len(os.sched_getaffinity(0))
THREADS = (
    {"num_threads": CORES + 1},
    {"num_threads": 2 * CORES},
    {"num_threads": CORES, "thread_affinity_offset": 0},
)
Array = np.ndarray[Any, Any]


def busy(microseconds: int) -> None:
    end = time.perf_counter() + 1e-6 * microseconds
    while time.perf_counter() < end:
        pass


def make(env_id: str, batch: int, **options: int) -> Any:
    import envpool

    options = {"num_threads": CORES, **options}
    return envpool.make(
        env_id, env_type="gymnasium", num_envs=ENVS, batch_size=batch, seed=0, **options
    )


def together(env_id: str, actions: Array, pause: int, **options: int) -> Callable[[], None]:
    pool = make(env_id, ENVS, **options)
    pool.reset()
    ids = pool.all_env_ids

    def rollout() -> None:
        for row in actions:
            pool._send([ids, ids, row])
            pool._recv()
            busy(pause)

    return rollout


def halves(env_id: str, actions: Array, pause: int) -> Callable[[], None]:
    half = ENVS // 2
    pool = make(env_id, half)
    place = pool._state_keys.index("info:env_id")
    taken = np.zeros(ENVS, np.int64)
    pool.async_reset()

    def answer() -> None:
        ids = pool._recv()[place].copy()
        busy(pause)
        pool._send([ids, ids, actions[taken[ids] % STEPS, ids]])
        taken[ids] += 1

    answer()
    answer()

    def rollout() -> None:
        for _ in range(STEPS * ENVS // half):
            answer()

    return rollout


def main(env_id: str = "HalfCheetah-v5", rounds: str = "10") -> None:
    space = make(env_id, ENVS).action_space
    rng = np.random.default_rng(0)
    # MuJoCo's actions are float64 in EnvPool, whatever the space says.
    actions = rng.uniform(space.low, space.high, (STEPS, ENVS, *space.shape))
    print(f"{env_id}, {ENVS} environments x {STEPS} steps, ms: best (median)")
    for schedule in (together, halves):
        for pause in PAUSES:
            label = f"{schedule.__name__:9} pause {pause:3} us"
            show(label, schedule(env_id, actions, pause), int(rounds))
    for options in THREADS:
        show(str(options), together(env_id, actions, 0, **options), int(rounds))


def show(label: str, rollout: Callable[[], None], rounds: int) -> None:
    found = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        rollout()
        found.append(1e3 * (time.perf_counter() - began))
    print(f"{label} {min(found[1:]):8.1f} ({median(found[1:]):.1f})", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
