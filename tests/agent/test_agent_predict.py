"""The agent acting: predict, evaluate, and what Stable-Baselines3 calls of them."""

from __future__ import annotations

import inspect

import gymnasium
import numpy as np
import pytest
import torch
from agent_cases import small, weights
from faulty_environments import Faulty
from toy_environments import Masked, Walk

from trpo_fast.agent.agent import TRPO
from trpo_fast.base.errors import EnvironmentFault


@pytest.mark.parametrize(
    ("env", "shape"),
    [("CartPole-v1", ()), ("Pendulum-v1", (1,)), (lambda: Walk(continuous=False), ())],
)
def test_predict_takes_one_observation_or_a_batch(env, shape):
    with small(env) as agent:
        space = agent.observation_space
        space.seed(0)
        observations = np.stack([space.sample() for _ in range(3)])
        actions, state = agent.predict(observations, state="s")
        assert actions.shape == (3, *shape)
        assert state == "s"
        one, _ = agent.predict(observations[0], None, np.ones(1, bool), True)
        assert np.shape(one) == shape
        np.testing.assert_allclose(one, actions[0], rtol=1e-5)
        assert agent.action_space.contains(one)
        with pytest.raises(ValueError, match="expected"):
            agent.predict(np.zeros((2, 3, 99)))


def test_predict_with_deterministic_false_samples():
    with small("Pendulum-v1") as agent:
        observations = np.zeros((500, 3), np.float32)
        torch.manual_seed(0)
        sampled, _ = agent.predict(observations, deterministic=False)
        fixed, _ = agent.predict(observations)
        assert sampled.std() > 0.5
        assert fixed.std() == 0


def test_predict_obeys_masks():
    with small(lambda: Masked("info"), rollout_steps=10) as agent:
        mask = [False, False, True, False]
        for deterministic in (True, False):
            action, _ = agent.predict([0.0], deterministic=deterministic, action_masks=mask)
            assert int(action) == 2
            actions, _ = agent.predict(
                [[0.0]] * 3, None, None, deterministic, action_masks=[mask] * 3
            )
            assert actions.tolist() == [2, 2, 2]


def test_predict_has_the_signature_that_sb3_calls():
    """What stable_baselines3.common.evaluation.evaluate_policy does, on a vector environment."""
    with small() as agent:
        env = gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
        observations, _ = env.reset(seed=0)
        states, starts = None, np.ones(2, bool)
        for _ in range(20):
            actions, states = agent.predict(
                observations, state=states, episode_start=starts, deterministic=True
            )
            observations, _, terminated, truncated, _ = env.step(actions)
            starts = terminated | truncated
        env.close()
    names = list(inspect.signature(TRPO.predict).parameters)[1:5]
    assert names == ["observation", "state", "episode_start", "deterministic"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sb3_evaluate_policy_and_callbacks_run_on_the_agent():
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    class Stop(BaseCallback):
        def _on_step(self):
            return self.n_calls < 2

    with small() as agent:
        agent.learn(1000, Stop(), progress_bar=False)
        assert agent.num_timesteps == 64  # their steps are the environments'
        mean, _ = evaluate_policy(agent, make_vec_env("CartPole-v1", n_envs=2), n_eval_episodes=2)
        assert mean >= 8


def test_evaluate_is_reproducible_and_changes_nothing():
    with small() as agent, small() as other:
        scores = [agent.evaluate(3) for _ in range(2)]
        assert scores[0] == scores[1]
        for a in (agent, other):
            a.learn(100, progress_bar=False)
        assert torch.equal(weights(agent), weights(other))


def test_evaluate_on_an_object_needs_a_recipe():
    with small(Walk()) as agent:
        with pytest.raises(ValueError, match="pass env="):
            agent.evaluate(1)
        mean, _ = agent.evaluate(2, env=Walk)
        assert mean < 0
    with small(Walk(), eval_every=10) as agent, pytest.raises(ValueError, match="eval_every"):
        agent.learn(64, progress_bar=False)


def test_predict_on_no_rows_gives_no_actions() -> None:
    agent = TRPO("CartPole-v1", seed=0, num_envs=1)
    actions, _ = agent.predict(np.zeros((0, 4), np.float32))
    assert actions.shape == (0,)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("deterministic", [True, False])
def test_an_observation_that_is_not_finite_is_refused_by_place(bad, deterministic):
    with small("Pendulum-v1") as agent:
        observations = np.zeros((4, 3))
        observations[2, 1] = bad
        with pytest.raises(ValueError, match=r"environment 2 holds .* at index 1 of its 3 numbers"):
            agent.predict(observations, deterministic=deterministic)
        with pytest.raises(ValueError, match=r"environment 0 holds .* at index 1 of its 3 numbers"):
            agent.predict(observations[2], deterministic=deterministic)
        assert np.isfinite(agent.predict(observations[:2])[0]).all()


def test_a_bad_entry_of_a_nested_observation_is_named_by_its_flattened_place():
    class Nested(Walk):
        observation_space = gymnasium.spaces.Dict(
            a=gymnasium.spaces.Discrete(3), b=gymnasium.spaces.Box(-9, 9, (2,), np.float64)
        )

    with small(Nested) as agent, pytest.raises(ValueError, match="nan at index 4 of its 5"):
        agent.predict({"a": 1, "b": np.array([0.0, np.nan])})


@pytest.mark.parametrize("observation", [{"b": np.zeros(2)}, {"a": 1}, np.zeros(2), None])
def test_a_missing_entry_of_a_nested_observation_is_named(observation):
    class Nested(Walk):
        observation_space = gymnasium.spaces.Dict(
            a=gymnasium.spaces.Discrete(3), b=gymnasium.spaces.Box(-9, 9, (2,), np.float64)
        )

    with small(Nested) as agent, pytest.raises(ValueError, match=r"has no entry [ab]"):
        agent.predict(observation)


@pytest.mark.reliability("evaluation_nan")
def test_an_evaluation_names_the_episode_whose_observation_is_not_finite():
    with (
        small(Faulty, env_kwargs={"fault": "observation", "at": 3}) as agent,
        pytest.raises(EnvironmentFault, match=r"evaluation episode 0, step 3: .* environment 0"),
    ):
        agent.evaluate(2)
