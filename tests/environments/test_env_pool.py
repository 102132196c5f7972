"""EnvPool's own autoreset convention, on a stand-in for its API and, where installed, on itself."""

from __future__ import annotations

import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from trpo_fast import TRPO, cli
from trpo_fast.base.errors import EnvironmentFault, EnvironmentSetupError
from trpo_fast.environments import env_pool
from trpo_fast.environments.make import make_vector_env
from trpo_fast.networks.mlp import MlpPolicy
from trpo_fast.rollouts.collector import RolloutCollector
from trpo_fast.rollouts.rollout import Rollout, bootstrap_values


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


class RawPool(Pool):
    """The same with the arrays that EnvPool's own wrapper is made from."""

    _action_keys = ("env_id", "players.env_id", "action")
    _state_keys = ("info:env_id", "done", "reward", "trunc", "obs")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config = {"max_num_players": 1}
        self.all_env_ids = np.arange(len(self.lengths), dtype=np.int32)
        self._spec = types.SimpleNamespace(_action_spec=[(np.dtype(np.float64), [-1, 1])])
        self.answer: list[np.ndarray] = []

    def _send(self, values: list[np.ndarray]) -> None:
        ids, players, actions = values
        assert ids is players is self.all_env_ids
        assert actions.flags.c_contiguous
        observations, rewards, terminated, truncated, _ = super().step(actions)
        self.answer = [ids, terminated | truncated, rewards, truncated, observations]

    def _recv(self) -> list[np.ndarray]:
        return self.answer

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        raise AssertionError("stepped through the wrapper")


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Pool]:
    """Stands in for the package; holds the pools made."""
    made: list[Pool] = []

    module: Any = types.ModuleType("envpool")

    def make(name: str, *, env_type: str, **arguments: Any) -> Pool:
        assert (name, env_type) == ("Counting-v0", "gymnasium")
        made.append(module.pool(**arguments))
        return made[-1]

    module.list_all_envs = lambda: ["Counting-v0", "CartPole-v1"]
    module.make = make
    module.pool = Pool
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


def collected(env: Any, steps: int = 9) -> Rollout:
    policy = MlpPolicy(
        env.observation_space, env.action_space, (4,), generator=torch.Generator().manual_seed(0)
    )
    return RolloutCollector(env).collect(
        policy, None, steps, np.random.Generator(np.random.Philox(0))
    )


def test_a_plain_pool_is_stepped_without_its_wrapper(
    pools: list[Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = collected(pool_env(num_envs=2, seed=7))
    monkeypatch.setattr(sys.modules["envpool"], "pool", RawPool)
    env = pool_env(num_envs=2, seed=7)
    direct = collected(env)
    assert isinstance(pools[1], RawPool)
    for name in ("observations", "actions", "rewards", "terminated", "truncated", "valid"):
        assert torch.equal(getattr(direct, name), getattr(wrapped, name)), name
    with pytest.raises(EnvironmentFault, match=r"shape \(2, 1\), got \(2,\)"):
        env.step(np.zeros(2), np.empty((2, 2), np.float32))


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"max_num_players": 2}},
        {"_state_keys": (*RawPool._state_keys, "info:action_mask")},
        {"_state_keys": ("info:env_id", "done", "reward", "trunc", "obs:image", "obs:text")},
        {"_action_keys": ("env_id", "players.env_id", "action:arm", "action:leg")},
        {"observation_space": spaces.Dict({"x": spaces.Box(-1.0, 1.0, (2,))})},
        {"action_space": spaces.Dict({"x": spaces.Box(-1.0, 1.0, (2,))})},
    ],
)
def test_a_pool_of_another_kind_keeps_its_wrapper(change: dict[str, Any]) -> None:
    pool = RawPool(2, 0, 1)
    assert env_pool.DirectStep.of(pool, pool.observation_space, pool.action_space) is not None
    for name, value in change.items():
        setattr(pool, name, value)
    assert env_pool.DirectStep.of(pool, pool.observation_space, pool.action_space) is None


def test_each_restart_of_a_run_takes_a_pool_of_another_seed(pools: list[Pool]) -> None:
    env = pool_env(num_envs=2, seed=7)
    collector = RolloutCollector(env)
    policy = MlpPolicy(env.observation_space, env.action_space, (4,))
    rng = np.random.Generator(np.random.Philox(0))
    collector.collect(policy, None, 4, rng)
    state = collector.state()
    collector.restore(state)
    assert pools[0].closed
    collector.collect(policy, None, 4, rng)
    later = collector.state()
    collector.restore(later)
    other = RolloutCollector(pool_env(num_envs=2, seed=7))
    other.restore(state)
    seeds = [pool.seed for pool in pools]
    # the first pool, its restart, the restart's restart; another process, its restart
    assert len(set(seeds[:3])) == 3
    assert seeds[3:] == seeds[:2]


class TalkingPool(Pool):
    """Makes its space when it is first asked for, and gymnasium warns of its bounds."""

    @property
    def observation_space(self) -> spaces.Box:
        if not hasattr(self, "space"):
            warnings.warn("precision lowered", stacklevel=2)
            self.space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        return self.space

    @observation_space.setter
    def observation_space(self, _: Any) -> None:
        pass

    def reset(self) -> tuple[np.ndarray, dict[str, Any]]:
        assert self.observation_space.shape == (2,)
        return super().reset()


def test_a_pool_of_another_seed_is_as_quiet_as_the_first(
    pools: list[Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["envpool"], "pool", TalkingPool)
    env, out = pool_env(num_envs=2, seed=7), np.empty((2, 2), np.float32)
    env.reset(out)
    env.reset(out, restarts=1)
    assert len(pools) == 2


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


@pytest.mark.reliability("envpool_ids")
def test_an_id_of_envpools_own_is_evaluated_by_envpool(
    pools: list[Pool], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"num_envs": 2, "rollout_steps": 8, "critic_epochs": 0, "eval_every": 16}
    run = tmp_path / "run"
    with TRPO("Counting-v0", vectorization="envpool", run_dir=run, seed=0, **options) as agent:
        agent.learn(32, progress_bar=False)
        assert agent.progress.best_evaluation == 3  # its environment 0 ends after 3 steps
        before = len(pools)
        assert agent.evaluate(5) == (3.0, 0.0)
        seeds = {pool.seed for pool in pools[before:]} - {0}
        assert len(seeds) == 5
        assert all(pool.closed for pool in pools[before:])
    assert cli.main(["eval", str(run), "--episodes", "2"]) == 0
    assert "return 3.00 +- 0.00 over 2 episodes" in capsys.readouterr().out


def test_an_agent_goes_on_after_a_load_the_same_way_each_time(
    pools: list[Pool], tmp_path: Any
) -> None:
    options = {"vectorization": "envpool", "num_envs": 2, "rollout_steps": 16, "seed": 0}
    with TRPO("Counting-v0", hidden_sizes=(4,), **options) as agent:
        agent.learn(32, progress_bar=False)
        steps = agent.num_timesteps
        assert steps == agent.num_timesteps < 64  # reset rows are not counted
        path = agent.save(tmp_path / "agent")
    weights = []
    for _ in range(2):
        with TRPO.load(path) as agent:
            agent.learn(16, progress_bar=False)
            assert agent.num_timesteps > steps
            weights.append(torch.nn.utils.parameters_to_vector(agent.policy.parameters()))
    assert torch.equal(*weights)
    assert len({pool.seed for pool in pools}) == 2


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_the_real_pool_gives_the_same_through_its_wrapper(name: str) -> None:
    pytest.importorskip("envpool", reason="EnvPool is not installed")
    rollouts = []
    for direct in (True, False):
        env = make_vector_env(
            name, vectorization="envpool", num_envs=3, seed=3, env_kwargs={"max_episode_steps": 12}
        )
        assert env.vector._direct is not None
        if not direct:
            env.vector._direct = None
        rollouts.append(collected(env, 60))
        env.close()
    for field in ("observations", "actions", "rewards", "terminated", "truncated", "valid"):
        assert torch.equal(getattr(rollouts[0], field), getattr(rollouts[1], field)), field


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_the_real_pool_repeats_itself_and_ends_episodes_as_said(name: str) -> None:
    pytest.importorskip("envpool", reason="EnvPool is not installed")
    rollouts = []
    for _ in range(2):
        env = make_vector_env(
            name, vectorization="envpool", num_envs=3, seed=3, env_kwargs={"max_episode_steps": 12}
        )
        rollouts.append(collected(env, 60))
        env.close()
    one, other = rollouts
    assert torch.equal(one.observations, other.observations)
    assert torch.equal(one.rewards, other.rewards)
    ended = one.terminated | one.truncated
    assert one.truncated.any()
    assert torch.equal(one.valid[1:], ~ended[:-1])
    assert not one.rewards[~one.valid].any()
    assert len(one.final_observations) == int((one.truncated & ~one.terminated).sum())
