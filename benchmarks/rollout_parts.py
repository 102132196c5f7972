"""Advantage estimation and the critic's Adam beside the peers and torch; prints best and median.

``python benchmarks/rollout_parts.py``. Answers are checked before the clock starts.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from gymnasium import spaces

from trpo_fast.agent.critic import Critic
from trpo_fast.networks.mlp import ValueFunction
from trpo_fast.rollouts.gae import compute_gae

STEPS, ENVS = 2048, 64
ROWS, WIDTH = 8192, 17


def clock(name: str, call: Callable[[], object], rounds: int) -> None:
    call()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        seconds.append(1e3 * (time.perf_counter() - began))
    print(f"  {name:34} {min(seconds):9.3f} ms best, {median(seconds):9.3f} ms median")


def advantages() -> None:
    from stable_baselines3.common.buffers import RolloutBuffer
    from tianshou.algorithm.algorithm_base import _gae

    rng = np.random.default_rng(0)
    rewards, values = (rng.normal(size=(STEPS, ENVS)).astype(np.float32) for _ in range(2))
    over = rng.random((STEPS, ENVS)) < 0.005
    cut, last = np.zeros_like(over), values[0].copy()
    box = spaces.Box(-1.0, 1.0, (1,))
    buffer = RolloutBuffer(STEPS, box, box, gae_lambda=0.95, gamma=0.99, n_envs=ENVS)
    buffer.reset()
    buffer.rewards[:], buffer.values[:] = rewards, values
    buffer.episode_starts[1:] = over[:-1]

    def sb3() -> None:
        buffer.compute_returns_and_advantage(torch.from_numpy(last), over[-1])

    # tianshou's loop runs over one long row, and is given the next values, 0 after an end.
    following = np.where(over, 0.0, np.vstack([values[1:], last[None]])).astype(np.float64)
    row = [np.ascontiguousarray(x.T).ravel() for x in (values, following, rewards, over)]
    row[3][STEPS - 1 :: STEPS] = True
    wide = [x if x.dtype == bool else x.astype(np.float64) for x in row]

    def tianshou() -> np.ndarray:
        found: np.ndarray = np.add(_gae(*wide, 0.99, 0.95), wide[0])
        return found

    def ours() -> tuple[np.ndarray, np.ndarray]:
        return compute_gae(rewards, values, over, cut, last)

    sb3()
    expected = ours()[0]
    assert np.allclose(buffer.advantages, expected, atol=1e-4)
    assert np.allclose((tianshou() - wide[0]).reshape(ENVS, STEPS).T, expected, atol=1e-4)
    print(f"advantages and returns, [{STEPS}, {ENVS}]")
    clock("trpo_fast.compute_gae", ours, 50)
    clock("Stable-Baselines3's buffer", sb3, 20)
    clock("tianshou's numba loop", tianshou, 50)


def critic() -> None:
    generator = torch.Generator().manual_seed(0)
    space = spaces.Box(-1.0, 1.0, (WIDTH,))
    network = ValueFunction(space, (64, 64), generator=generator)
    fused = Critic(network, learning_rate=1e-3, epochs=10, batch_size=128)
    generic = copy.deepcopy(fused)
    generic._native_fit = lambda _: None  # type: ignore[assignment, method-assign]
    observations = torch.randn(ROWS, WIDTH, generator=generator)
    returns = observations.sum(1).sin()
    for each in (fused, generic):
        each.fit(observations, returns, np.random.default_rng(0))
    for one, other in zip(
        fused.value_function.parameters(), generic.value_function.parameters(), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-5)
    threads = torch.get_num_threads()
    print(f"640 steps of Adam, {WIDTH}-64-64-1, minibatches of 128, {threads} threads")
    for name, each in (("trpo_fast", fused), ("torch.optim.Adam(fused=True)", generic)):
        clock(name, functools.partial(fit, each, observations, returns), 8)


def fit(each: Critic, observations: torch.Tensor, returns: torch.Tensor) -> None:
    each.fit(observations, returns, np.random.default_rng(0))


if __name__ == "__main__":
    advantages()
    critic()
