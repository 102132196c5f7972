"""Environments that give NaN: the rollout stops, or the episode is dropped."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rollout_cases import (
    FACTORIES,
    MODES,
    collect,
    philox,
    poisoned,
    policy_for,
    transitions,
)
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from toy_environments import Masked, Scripted

from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.environments.make import make_vector_env
from trpo_fast.environments.vector_environment import VectorEnvironment
from trpo_fast.rollouts.collector import RolloutCollector


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("observation", np.nan),
        ("observation", -np.inf),
        ("reward", np.nan),
        ("reward", np.inf),
        ("reward", 1e39),  # more than float32 holds
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_a_nan_from_an_environment_stops_the_rollout(
    mode: AutoresetMode | None, where: str, value: float
) -> None:
    collector = RolloutCollector(poisoned(where, (1, 1), mode, value=value))
    with pytest.raises(EnvironmentFault, match=f"environment 1 .* {where}.* at step 1") as caught:
        collect(collector, 20)
    assert caught.value.env_index == 1
    assert caught.value.step == 1
    assert caught.value.action == 0
    assert "action 0" in str(caught.value)


def test_an_action_that_is_not_finite_is_the_policys_fault() -> None:
    class Echo(Scripted):
        action_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)

        def step(self, action: Any) -> Any:
            return (action.copy(), *super().step(action)[1:])

    class Overflowing(nn.Module):
        def forward(self, obs: Tensor) -> Distribution:
            return Independent(Normal(obs * torch.inf, 1.0, validate_args=False), 1)

    collector = RolloutCollector(make_vector_env(Echo, num_envs=1, seed=0))
    with pytest.raises(EnvironmentFault, match="The policy gave that action"):
        collect(collector, 3, Overflowing())


def test_pitfall_23_a_nan_reward_with_finite_observations_is_caught() -> None:
    collector = RolloutCollector(poisoned("reward", (0, 2), None))
    with pytest.raises(EnvironmentFault, match="NaN or infinite reward"):
        collect(collector, 5)


class ResetsWithReward(SyncVectorEnv):
    """Gives ``value`` as the reward of a row that only resets."""

    value = np.nan

    def step(self, actions: Any) -> Any:
        resetting = self._autoreset_envs.copy()
        batch, rewards, *rest = super().step(actions)
        rewards[resetting] = self.value
        return batch, rewards, *rest


@pytest.mark.parametrize("value", [np.nan, np.inf, 1000.0])
def test_the_reward_of_a_row_that_only_resets_counts_for_nothing(value: float) -> None:
    found = []
    for kind in (ResetsWithReward, SyncVectorEnv):
        vector = kind(FACTORIES, autoreset_mode=AutoresetMode.NEXT_STEP)
        vector.value = value
        collector = RolloutCollector(VectorEnvironment(vector, name="V", seed=0))
        found.append(collect(collector, 20))
    assert not found[0].valid.all()
    assert torch.equal(found[0].rewards, found[1].rewards)
    assert found[0].episode_returns == found[1].episode_returns


def by_episode(rows: list[dict[str, Any]]) -> dict[float, list[dict[str, Any]]]:
    episodes: dict[float, list[dict[str, Any]]] = {}
    for row in rows:
        episodes.setdefault(row["observation"][1], []).append(row)
    return episodes


@pytest.mark.parametrize(
    ("where", "at"),
    [
        *product(["observation", "reward"], [(1, 1), (1, 2), (0, 1)]),
        ("reward", (0, 3)),  # a terminated episode's final observation is not used
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_dropping_removes_one_episode_and_nothing_else(
    mode: AutoresetMode | None, at: tuple[int, int], where: str
) -> None:
    collector = RolloutCollector(poisoned(where, at, mode), on_fault="drop")
    with pytest.warns(RuntimeWarning, match="environment 1 .* its episode is dropped"):
        rollout = collect(collector, 12)
    assert rollout.dropped_episodes == collector.dropped_episodes == 1
    for tensor in (rollout.observations, rollout.rewards, rollout.final_observations):
        assert torch.isfinite(tensor).all()
    clean = transitions(collect(RolloutCollector(poisoned(where, (99, 0), mode)), 12))
    got = transitions(rollout)
    assert got[0] == clean[0]
    assert got[2] == clean[2]
    # environment 1: complete episodes only, none of them number at[0], all as in the clean run
    kept = [row for row in got[1] if row["observation"][1] != at[0]]
    assert kept == got[1]
    expected, remaining = (by_episode(rows) for rows in (clean[1], got[1]))
    whole = (expected.keys() & remaining.keys()) - {max(expected), max(remaining)}
    assert len(whole) >= 2
    for episode in whole:
        assert remaining[episode] == expected[episode]
    assert len(rollout.episode_returns) == len(rollout.episode_lengths)
    assert np.isfinite(rollout.episode_returns).all()


def test_a_terminated_episode_may_end_in_a_nan_observation() -> None:
    """MuJoCo environments terminate because the state is no longer finite."""
    for mode in MODES:
        collector = RolloutCollector(poisoned("observation", (0, 3), mode))
        rollout = collect(collector, 8)
        clean = collect(RolloutCollector(poisoned("observation", (99, 0), mode)), 8)
        assert transitions(rollout) == transitions(clean)


@pytest.mark.parametrize("mode", MODES)
def test_a_nan_first_observation_is_reset_once_more_when_dropping(
    mode: AutoresetMode | None,
) -> None:
    for at in ((0, 0), (1, 0)):
        with pytest.raises(EnvironmentFault, match="observation at its reset"):
            collect(RolloutCollector(poisoned("observation", at, mode)), 8)
        collector = RolloutCollector(poisoned("observation", at, mode), on_fault="drop")
        with pytest.warns(RuntimeWarning, match="at a reset"):
            rollout = collect(collector, 12)
        assert torch.isfinite(rollout.observations).all()
        assert collector.dropped_episodes == 1
        assert at[0] not in {row["observation"][1] for row in transitions(rollout)[1]}


def test_an_environment_that_only_gives_nan_stops_even_when_dropping() -> None:
    class Hopeless(Scripted):
        def step(self, action: Any) -> Any:
            observation, _, *rest = super().step(action)
            return (observation, np.nan, *rest)

    collector = RolloutCollector(make_vector_env(Hopeless, num_envs=2, seed=0), on_fault="drop")
    with (
        pytest.warns(RuntimeWarning, match="dropped"),
        pytest.raises(EnvironmentFault, match="every episode of this rollout was dropped"),
    ):
        collect(collector, 8)


class _NeverAgain(Scripted):
    """Gives NaN from its second episode on."""

    def _observation(self) -> Any:
        return super()._observation() * (1.0 if self.episode == 0 else np.nan)


def test_an_environment_that_cannot_be_started_stops_even_when_dropping() -> None:
    class Stillborn(Scripted):
        def _observation(self) -> Any:
            return super()._observation() * np.nan

    for kind in (Stillborn, _NeverAgain):
        collector = RolloutCollector(make_vector_env(kind, num_envs=1, seed=0), on_fault="drop")
        with (
            pytest.warns(RuntimeWarning, match="dropped"),
            pytest.raises(EnvironmentFault, match="observation at its reset"),
        ):
            collect(collector, 8)


@pytest.mark.parametrize("place", ["observation", "info", "method"])
def test_masks_after_a_dropped_episode_are_those_of_the_new_one(place: str) -> None:
    class Faulty(Masked):
        resets = 0

        def reset(self, **options: Any) -> Any:
            self.resets += 1
            return super().reset(**options)

        def step(self, action: Any) -> Any:
            observation, reward, *rest = super().step(action)
            return (observation, np.nan if (self.resets, self.time) == (1, 3) else reward, *rest)

    env = make_vector_env(lambda: Faulty(place), num_envs=2, seed=0)
    collector = RolloutCollector(env, on_fault="drop")
    with pytest.warns(RuntimeWarning, match="dropped"):
        rollout = collector.collect(policy_for(collector), None, 12, philox())
    assert rollout.dropped_episodes == 2
    assert rollout.num_valid == 24 - 6
    assert rollout.action_masks is not None
    expected = torch.nn.functional.one_hot(rollout.observations[..., 0].long() % 4, 4).bool()
    assert torch.equal(rollout.action_masks, expected)


def test_only_the_first_dropped_episode_is_announced() -> None:
    class Often(Scripted):
        def step(self, action: Any) -> Any:
            observation, reward, *rest = super().step(action)
            return (observation, np.nan if self.episode % 2 else reward, *rest)

    collector = RolloutCollector(make_vector_env(Often, num_envs=2, seed=0), on_fault="drop")
    with pytest.warns(RuntimeWarning) as announced:
        [collect(collector, 12) for _ in range(3)]
    assert len(announced) == 1
    assert collector.dropped_episodes > 4
