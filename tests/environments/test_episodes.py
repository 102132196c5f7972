"""Seeded episodes, their replay, and what an exception inside one becomes."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from toy_environments import Raising, Scripted, Walk

from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.environments.seeded_episodes import SeededEpisodes, episode_seed


def drive(env: SeededEpisodes, steps: int, rng: np.random.Generator) -> list[Any]:
    """Random actions, resetting as needed; everything the environment said."""
    heard: list[Any] = []
    for _ in range(steps):
        action = rng.uniform(-1, 1, 2).astype(np.float32)
        observation, reward, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
        heard.append((observation.tolist(), reward, terminated, truncated))
    return heard


@pytest.mark.reliability("c_int_seeds")
def test_every_episode_has_a_seed_of_its_own() -> None:
    seeds = {episode_seed(s, i, e) for s in range(4) for i in range(8) for e in range(16)}
    assert len(seeds) == 4 * 8 * 16
    assert 2**30 < max(seeds) < 2**31  # many environments keep theirs in a C int
    inner = Scripted()
    env = SeededEpisodes(inner, seed=3, index=2)
    for _ in range(3):
        env.reset(seed=99)
    assert inner.seeds == [episode_seed(3, 2, e) for e in range(3)]


@pytest.mark.parametrize("steps", [0, 1, 5, 30, 200])
def test_a_fresh_environment_reaches_the_running_episode_bit_for_bit(steps: int) -> None:
    original = SeededEpisodes(Walk(length=100), seed=1, index=0)
    original.reset()
    drive(original, steps, np.random.default_rng(0))
    resumed = SeededEpisodes(Walk(length=100), seed=1, index=0)
    *_, over = resumed.replay([original.running_episode()])
    assert not over
    follow = np.random.default_rng(1), np.random.default_rng(1)
    assert drive(original, 50, follow[0]) == drive(resumed, 50, follow[1])
    assert resumed.running_episode()[0] == original.running_episode()[0]


def test_replay_of_mujoco_is_bit_for_bit() -> None:
    pytest.importorskip("mujoco")

    def make() -> SeededEpisodes:
        return SeededEpisodes(gym.make("Hopper-v5"), seed=0, index=0)

    original, resumed = make(), make()
    rng = np.random.default_rng(0)
    original.reset()
    for _ in range(60):
        observation, *_, terminated, truncated, _ = original.step(
            rng.uniform(-1, 1, 3).astype(np.float32)
        )
        if terminated or truncated:
            observation, _ = original.reset()
    replayed, *_ = resumed.replay([original.running_episode()])
    np.testing.assert_array_equal(replayed, observation)


def test_recorded_actions_are_copies_of_any_number() -> None:
    env = SeededEpisodes(Walk(length=1000), seed=0, index=0)
    env.reset()
    action = np.zeros(2, np.float32)
    given = []
    for step in range(300):
        action[:] = 1e-3 * step
        given.append(action.copy())
        if env.step(action)[2]:
            env.reset()
            given.clear()
    np.testing.assert_array_equal(env.running_episode()[1], np.reshape(given, (-1, 2)))


def test_the_final_observation_survives_an_environment_that_reuses_its_memory() -> None:
    class Reusing(Scripted):
        memory = np.zeros(3, np.float32)

        def _observation(self) -> Any:
            self.memory[:] = super()._observation()
            return self.memory

    env = SeededEpisodes(Reusing(), seed=0, index=0)
    env.reset()
    for _ in range(3):
        final = env.step(0)[0]
    env.reset()
    np.testing.assert_array_equal(final, [0, 0, 3])


@pytest.mark.parametrize(("at", "where"), [(0, r"reset\(\)"), (2, r"step\(\)")])
def test_an_exception_carries_index_step_action_and_traceback(at: int, where: str) -> None:
    env = SeededEpisodes(Raising(at), seed=0, index=5)

    def run() -> None:
        env.reset()
        env.step(1)
        env.step(0)

    with pytest.raises(
        EnvironmentFault, match=rf"environment 5 raised ZeroDivisionError: broken.* in {where}"
    ) as caught:
        run()
    fault = caught.value
    assert isinstance(fault.__cause__, ZeroDivisionError)
    assert fault.env_index == 5
    assert fault.step == at
    assert fault.action is None if at == 0 else fault.action == 0
    assert 'raise self.error("broken on purpose")' in fault.traceback


def test_faults_cross_process_borders_whole() -> None:
    fault = EnvironmentFault(
        "what happened", env_index=3, step=7, action=np.arange(2.0), trace="the traceback"
    )
    received = pickle.loads(pickle.dumps(fault))
    again = type(received)(received)  # what gymnasium does with a worker's exception
    for copy in (received, again):
        assert str(copy) == "what happened"
        assert (copy.env_index, copy.step, copy.traceback) == (3, 7, "the traceback")
        np.testing.assert_array_equal(copy.action, [0.0, 1.0])


class Narrow(Scripted):
    """Gives one number of the three that its space promises, from a time on."""

    first_wrong = 0

    def _observation(self) -> Any:
        found = super()._observation()
        return found[:1] if self.time >= self.first_wrong else found


@pytest.mark.parametrize("first_wrong", [0, 2])
def test_an_observation_of_another_size_is_never_broadcast(first_wrong: int) -> None:
    inner = Narrow()
    inner.first_wrong = first_wrong
    env = SeededEpisodes(inner, seed=0, index=1)
    wrong = r"environment 1 raised ValueError: the observation has shape \(1,\), its space says"
    if first_wrong:
        env.reset()
        env.step(np.array(0))
        with pytest.raises(EnvironmentFault, match=wrong + r".*in step\(\) \(episode 0, step 2"):
            env.step(np.array(0))
    else:
        with pytest.raises(EnvironmentFault, match=wrong):
            env.reset()
