"""Environments in worker processes: how the tests make, drive, compare and doom them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from toy_environments import Scripted

from trpo_fast.environments.make import make_vector_env
from trpo_fast.environments.seeded_episodes import episode_seed
from trpo_fast.environments.workers import Workers


def shared_names() -> set[str]:
    """What has a name in shared memory."""
    return {path.name for path in Path("/dev/shm").iterdir()}


def actions_for(env: Any, steps: int) -> list[np.ndarray]:
    space = gym.vector.utils.batch_space(env.action_space, env.num_envs)
    space.seed(1)
    return [space.sample() for _ in range(steps)]


def heard(env: Any, steps: int = 60) -> list[Any]:
    """All that an environment says, and what it would be replayed by."""
    out = np.empty((env.num_envs, env.observation_width), env.observation_dtype)
    with np.errstate(over="ignore"):
        masks = env.reset(out)
        said: list[Any] = [out.copy(), masks]
        for actions in actions_for(env, steps):
            transition = env.step(actions, out)
            said += [*transition, out.copy()]
    return said + [part for episode in env.running_episodes() for part in episode]


def assert_same(one: list[Any], other: list[Any]) -> None:
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a, b, equal_nan=isinstance(a, np.ndarray) and a.dtype.kind == "f")
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None)


def both(kind: Any, num_envs: int = 3, workers: int = 2, **options: Any) -> Iterator[Any]:
    """The environments in this process, then the same in workers."""
    for vectorization in ("sync", "workers"):
        given = options | ({"num_workers": workers} if vectorization == "workers" else {})
        env = make_vector_env(kind, num_envs=num_envs, vectorization=vectorization, seed=5, **given)
        yield env
        env.close()


def workers_of(kind: Any, num_envs: int = 3, **options: Any) -> Workers:
    """A process for each environment."""
    env = make_vector_env(
        kind, num_envs=num_envs, seed=1, vectorization="workers", num_workers=num_envs, **options
    )
    assert isinstance(env, Workers)
    return env


class Doomed(Scripted):
    """Does something to itself at step 3 of the first episode of environment 2 of seed 1."""

    def __init__(self, doom: Callable[[], Any]) -> None:
        super().__init__(((9, "terminated"),))
        self.doom = doom

    def step(self, action: Any) -> Any:
        if self.time == 2 and self.np_random_seed == episode_seed(1, 2, 0):
            self.doom()
        return super().step(action)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ended(processes: list[Any]) -> bool:
    """All of them, which were waited for, so that their objects are closed."""
    found = []
    for process in processes:
        with pytest.raises(ValueError, match="process object is closed"):
            found.append(process.pid)
    return not found


def always(env: Any, actions: list[int]) -> None:
    """The same actions for five steps."""
    out = np.empty((env.num_envs, env.observation_width), np.float32)
    env.reset(out)
    for _ in range(5):
        env.step(np.array(actions), out)
