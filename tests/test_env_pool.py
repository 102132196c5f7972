"""EnvPool's own autoreset convention, on a stand-in for its API and, where installed, on itself."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from trpo_fast import TRPO, env_pool
from trpo_fast.environments import EnvironmentSetupError, make_vector_env
from trpo_fast.policies import MlpPolicy
from trpo_fast.rollout import RolloutCollector, bootstrap_values


class Pool:
    """Counts the steps of its episodes as EnvPool 1.2 does; environment i ends after 3 + i steps.

    Even environments are truncated, odd ones terminated. The step after an end ignores its action
    and gives the next episode's first observation with reward 0.
    """

    def __init__(self, num_envs: int, seed: int, num_threads: int, **rest: Any) -> None:
        if rest:
            raise TypeError(f"unexpected {sorted(rest)}")
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float64)
        self.seed, self.num_threads = seed, num_threads
        self.lengths = 3 + np.arange(num_envs)
        self.steps = np.zeros(num_envs, int)
        self.episodes = np.zeros(num_envs, int)
        self.over = np.zeros(num_envs, bool)
        self.closed = False
        self.actions: list[np.ndarray] = []

    def _observations(self) -> np.ndarray:
        return np.stack([self.episodes, self.steps], axis=1).astype(np.float64)

    def _info(self) -> dict[str, Any]:
        ids = np.arange(len(self.steps), dtype=np.int32)
        return {"env_id": ids, "players": {"env_id": ids}, "elapsed_step": self.steps.copy()}

    def reset(self) -> tuple[np.ndarray, dict[str, Any]]:
        self.steps[:] = 0
        self.over[:] = False
        return self._observations(), self._info()

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        assert actions.dtype == np.float64
        self.actions.append(actions)
        resetting = self.over
        self.steps = np.where(resetting, 0, self.steps + 1)
        self.episodes += resetting
        self.over = self.steps == self.lengths
        even = np.arange(len(self.steps)) % 2 == 0
        rewards = np.where(resetting, 0.0, 1.0).astype(np.float32)
        return self._observations(), rewards, self.over & ~even, self.over & even, self._info()

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Pool]:
    """Stands in for the package; holds the pools made."""
    made: list[Pool] = []

    def make(name: str, *, env_type: str, **arguments: Any) -> Pool:
        assert (name, env_type) == ("Counting-v0", "gymnasium")
        made.append(Pool(**arguments))
        return made[-1]

    module = types.ModuleType("envpool")
    module.list_all_envs = lambda: ["Counting-v0", "CartPole-v1"]  # type: ignore[attr-defined]
    module.make = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "envpool", module)
    monkeypatch.setattr(env_pool, "is_installed", lambda: True)
    return made


def pool_env(**arguments: Any) -> Any:
    return make_vector_env("Counting-v0", vectorization="envpool", **arguments)


def test_reset_rows_are_masked_and_truncations_bootstrap_from_the_final_observation(
    pools: list[Pool],
) -> None:
    env = pool_env(num_envs=2, seed=7)
    collector = RolloutCollector(env)
    policy = MlpPolicy(env.observation_space, env.action_space, (4,))
    rng = np.random.Generator(np.random.Philox(0))
    rollout = collector.collect(policy, None, 9, rng)
    # Environment 0: three steps, a reset, ...; environment 1: four steps, a reset, ...
    assert rollout.valid[:, 0].tolist() == [True] * 3 + [False] + [True] * 3 + [False, True]
    assert rollout.valid[:, 1].tolist() == [True] * 4 + [False] + [True] * 4
    assert rollout.truncated[:, 0].nonzero().flatten().tolist() == [2, 6]
    assert not rollout.terminated[:, 0].any()
    assert rollout.terminated[:, 1].nonzero().flatten().tolist() == [3, 8]
    assert rollout.num_valid == 15
    assert rollout.episode_returns == [3.0, 4.0, 3.0, 4.0]
    # What each action was chosen from: the last observation of an episode belongs to a reset row.
    assert rollout.observations[:, 0, 1].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert rollout.observations[:, 0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    _, _, finals = bootstrap_values(rollout, lambda rows: 10 * rows[:, 0] + rows[:, 1])
    assert finals[2, 0] == 3  # the third step's own result, not the next episode's start
    assert finals[6, 0] == 13
    assert int((finals != 0).sum()) == 2


def test_the_pool_is_made_as_asked_and_closed(pools: list[Pool]) -> None:
    env = pool_env(num_envs=3, seed=2**40 + 5)
    assert pools[0].seed == 5
    assert 1 <= pools[0].num_threads <= 3
    assert not env.resumable
    env.close()
    assert pools[0].closed
    pool_env(num_envs=3, seed=0, env_kwargs={"num_threads": 7})
    assert pools[1].num_threads == 7


def test_mistakes_are_named(pools: list[Pool]) -> None:
    with pytest.raises(EnvironmentSetupError, match=r"no environment 'CartPol-v1'.*CartPole-v1"):
        make_vector_env("CartPol-v1", vectorization="envpool")
    with pytest.raises(EnvironmentSetupError, match=r"could not make Counting-v0 .*wind"):
        pool_env(env_kwargs={"wind": 3})
    with pytest.raises(EnvironmentSetupError, match=r"batch_size=2 must be num_envs \(4\)"):
        pool_env(num_envs=4, env_kwargs={"batch_size": 2})
    with pytest.raises(EnvironmentSetupError, match="by their ids"):
        make_vector_env(lambda: None, vectorization="envpool")


def test_an_agent_learns_and_goes_on_after_a_load(pools: list[Pool], tmp_path: Any) -> None:
    options = {"vectorization": "envpool", "num_envs": 2, "rollout_steps": 16, "seed": 0}
    with TRPO("Counting-v0", hidden_sizes=(4,), **options) as agent:
        agent.learn(32, progress_bar=False)
        steps = agent.num_timesteps
        assert steps == agent.num_timesteps < 64  # reset rows are not counted
        path = agent.save(tmp_path / "agent")
    with TRPO.load(path) as agent:
        agent.learn(16, progress_bar=False)
        assert agent.num_timesteps > steps


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_the_real_pool_repeats_itself_and_ends_episodes_as_said(name: str) -> None:
    pytest.importorskip("envpool", reason="EnvPool is not installed")
    rollouts = []
    for _ in range(2):
        env = make_vector_env(
            name, vectorization="envpool", num_envs=3, seed=3, env_kwargs={"max_episode_steps": 12}
        )
        policy = MlpPolicy(
            env.observation_space, env.action_space, generator=torch.Generator().manual_seed(0)
        )
        rng = np.random.Generator(np.random.Philox(0))
        rollouts.append(RolloutCollector(env).collect(policy, None, 60, rng))
        env.close()
    one, other = rollouts
    assert torch.equal(one.observations, other.observations)
    assert torch.equal(one.rewards, other.rewards)
    ended = one.terminated | one.truncated
    assert one.truncated.any()
    assert torch.equal(one.valid[1:], ~ended[:-1])
    assert not one.rewards[~one.valid].any()
    assert len(one.final_observations) == int((one.truncated & ~one.terminated).sum())
