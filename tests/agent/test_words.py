"""Mistakes that people make with environments and agents are named."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_cases import small, weights
from toy_environments import Walk

from trpo_fast.base.errors import EnvironmentFault, EnvironmentSetupError


class ResetAlone(Walk):
    def reset(self, **keywords: Any) -> Any:
        return super().reset(**keywords)[0]


class ResetWithoutSeed(Walk):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()[0]


class OneDone(Walk):
    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, info


class TwoNumbers(Walk):
    """What it returns unpacks as if it were an observation and its info."""

    def reset(self, **keywords: Any) -> Any:
        return tuple(super().reset(**keywords)[0])


@pytest.mark.reliability("old_gym")
@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(
    ("env", "text"),
    [
        (ResetAlone, r"reset\(\) returned a ndarray, not \(observation, info\).*gym before 0.26"),
        (ResetWithoutSeed, r"argument 'seed' .*gym before 0.26.*seed=None, options=None"),
        (OneDone, r"step\(\) returned a tuple of 4, not \(observation, reward,.*gym before 0.26"),
        (TwoNumbers, r"reset\(\) returned a tuple of 2, not \(observation, info\)"),
    ],
)
def test_the_interface_of_old_gym_is_named(env: Any, text: str, vectorization: str) -> None:
    with (
        small(env, vectorization=vectorization) as agent,
        pytest.raises(EnvironmentFault, match=text),
    ):
        agent.learn(64, progress_bar=False)
    with small(Walk) as agent, pytest.raises(EnvironmentFault, match=text):
        agent.evaluate(1, env=env)


@pytest.mark.reliability("all_of_reset")
def test_predict_names_what_is_not_an_observation() -> None:
    with small() as agent:
        env = gym.make("CartPole-v1")
        for given, name in ((env.reset(), r"reset\(\)"), (env.step(1), r"step\(\)")):
            with pytest.raises(ValueError, match=rf"all that {name} returns.*its first entry"):
                agent.predict(given)

    class Pair(Walk):
        observation_space = gym.spaces.Tuple((Walk.observation_space, gym.spaces.Discrete(2)))

    with small(Pair) as agent:
        agent.predict((np.zeros(2), 1))


@pytest.mark.reliability("option_in_env_kwargs")
@pytest.mark.parametrize("name", ["num_envs", "seed"])
@pytest.mark.parametrize("env", ["CartPole-v1", Walk])
def test_an_option_of_the_agent_among_env_kwargs_is_named(env: Any, name: str) -> None:
    with pytest.raises(EnvironmentSetupError, match=rf"{name} is an option .*TRPO\(env, {name}=3"):
        small(env, env_kwargs={name: 3})


@pytest.mark.reliability("huge_reward")
def test_a_reward_beyond_float32_is_told_with_its_value() -> None:
    class Huge(Walk):
        def step(self, action: Any) -> Any:
            observation, _, *rest = super().step(action)
            return (observation, 1e39, *rest)

    with small(Huge) as agent, pytest.raises(EnvironmentFault, match=r"reward 1e\+39, beyond"):
        agent.learn(64, progress_bar=False)


@pytest.mark.reliability("learn_after_close")
@pytest.mark.parametrize("vectorization", ["sync", "async", "workers"])
def test_learning_after_close_goes_on_where_it_was(vectorization: str) -> None:
    found = []
    for closes in ((), (0,), (1,), (0, 1)):
        with small(Walk, vectorization=vectorization) as agent:
            for turn in range(2):
                if turn in closes:
                    agent.close()
                agent.learn(64, progress_bar=False)
            found.append(weights(agent))
    assert all(torch.equal(each, found[0]) for each in found[1:])
