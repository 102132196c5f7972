"""Wrappers by name."""

from __future__ import annotations

import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeAwareObservation

from trpo_fast import TRPO
from trpo_fast.agent.config import ConfigError
from trpo_fast.base.errors import EnvironmentSetupError
from trpo_fast.environments.make import environment_name
from trpo_fast.environments.sharing import shared_object
from trpo_fast.environments.wrapping import wrapped
from trpo_fast.runs.checkpoint import CheckpointError

TIMED = "gymnasium.wrappers:TimeAwareObservation"
TINY = {"num_envs": 2, "rollout_steps": 16, "hidden_sizes": (4,), "value_hidden_sizes": (4,)}


def doubled(env):
    return gym.wrappers.TransformReward(env, lambda reward: 2.0 * float(reward))


def nothing(env):
    return None


def test_wrappers_lie_in_their_order_around_what_is_made():
    make = pickle.loads(pickle.dumps(wrapped("Pendulum-v1", f"{TIMED}, {__name__}:doubled")))
    with make(g=5.0) as env:
        assert isinstance(env, gym.wrappers.TransformReward)
        assert isinstance(env.env, TimeAwareObservation)
        assert env.unwrapped.g == 5.0
        assert shared_object(make, env, {}) is None  # so that `auto` may use workers
    assert environment_name(make) == "Pendulum-v1"


def test_a_function_is_wrapped_as_an_id_is():
    with wrapped(lambda **kwargs: gym.make("CartPole-v1", **kwargs), TIMED)() as env:
        assert env.observation_space.shape == (5,)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("TimeAwareObservation", "not module:Class"),
        (f"{TIMED},", "not module:Class"),
        ("nosuchmodule:X", "cannot be imported: ModuleNotFoundError: No module"),
        ("gymnasium.wrappers:Nosuch", "there is none of that name in gymnasium.wrappers"),
        ("math:pi", "it is a float in math"),
    ],
)
def test_names_that_cannot_be_used_are_refused_at_once(names, words):
    with pytest.raises(EnvironmentSetupError, match=words):
        wrapped("CartPole-v1", names)


def test_a_module_that_fails_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_wrapper.py").write_text("raise RuntimeError('boom')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvironmentSetupError, match="cannot be imported: RuntimeError: boom"):
        wrapped("CartPole-v1", "broken_wrapper:W")


def test_what_is_no_environment_is_named():
    with pytest.raises(EnvironmentSetupError, match=r"test_wrapping:nothing gave NoneType"):
        wrapped("CartPole-v1", f"{__name__}:nothing")()


def test_what_is_made_already_is_refused():
    with gym.make("CartPole-v1") as env:
        with pytest.raises(EnvironmentSetupError, match="wrap it yourself"):
            TRPO(env, wrapper=TIMED)


@pytest.mark.parametrize("vectorization", ["envpool", "tensor"])
def test_what_steps_all_at_once_is_refused(vectorization):
    with pytest.raises(ConfigError, match="no wrapper can be put around"):
        TRPO("CartPole-v1", wrapper=TIMED, vectorization=vectorization)


def test_training_and_evaluation_see_the_wrapped_environment():
    with TRPO("CartPole-v1", wrapper=f"{TIMED},{__name__}:doubled", seed=0, **TINY) as agent:
        assert agent.observation_space.shape == (5,)
        assert agent.env_id == "CartPole-v1"
        agent.learn(32, progress_bar=False)
        mean, _ = agent.evaluate(2)
        plain = TRPO("CartPole-v1", wrapper=TIMED, seed=0, **TINY)
        plain.policy.load_state_dict(agent.policy.state_dict())
        plain.learner.normalizer.load_state_dict(agent.learner.normalizer.state_dict())
        assert mean == 2 * plain.evaluate(2)[0]
        plain.close()


def test_a_file_is_no_reason_to_import_a_wrapper(tmp_path):
    with TRPO("CartPole-v1", wrapper=TIMED, seed=0, **TINY) as agent:
        agent.learn(64, progress_bar=False)
        path = agent.save(tmp_path / "a")
        agent.learn(64, progress_bar=False)
        weights = agent.policy.state_dict()
    with pytest.raises(CheckpointError, match=rf"pass wrapper='{TIMED}' \(--wrapper\)"):
        TRPO.load(path)
    with TRPO.load(path, wrapper=TIMED) as again:
        again.learn(64, progress_bar=False)  # to the bit
        for name, value in again.policy.state_dict().items():
            assert value.equal(weights[name]), name
    agent = TRPO.load(path, predict_only=True)
    agent.predict(np.zeros(5))
    assert agent.config.wrapper == TIMED  # and is saved again
