"""The agent on observations as they are: images, dicts, tuples."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_cases import small, weights
from gymnasium import spaces
from structured_cases import Picture, Pictures, nested
from torch import nn
from torch.distributions import Categorical

from trpo_fast import (
    TRPO,
    CnnPolicy,
    CnnValueFunction,
    MlpPolicy,
    MultiInputPolicy,
    MultiInputValueFunction,
)
from trpo_fast.agent.config import ConfigError
from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.runs.checkpoint import CheckpointError


def learnt(agent, steps=128):
    agent.learn(steps, progress_bar=False)
    return agent


@pytest.mark.parametrize(
    ("env", "policy", "kinds", "path"),
    [
        (Picture, "auto", (CnnPolicy, CnnValueFunction), "generic"),
        (Pictures, "auto", (MultiInputPolicy, MultiInputValueFunction), "generic"),
        (Picture, "multi_input", (MultiInputPolicy, MultiInputValueFunction), "generic"),
        # One encoder of a flat leaf is a perceptron.
        ("CartPole-v1", "multi_input", (MultiInputPolicy, MultiInputValueFunction), "fused"),
    ],
)
def test_the_networks_are_chosen_by_the_space_or_by_name(env, policy, kinds, path):
    with learnt(small(env, policy=policy)) as agent:
        assert (type(agent.policy), type(agent.value_function)) == kinds
        assert agent.optimizer.path == path
        assert agent.evaluate(2, progress_bar=False) == agent.evaluate(2, progress_bar=False)


def test_nothing_changes_where_there_are_no_images():
    with small(policy="auto") as auto, small() as plain:
        assert isinstance(auto.policy, MlpPolicy)
        assert torch.equal(weights(auto), weights(plain))


def test_an_image_flattened_into_a_perceptron_is_warned_of():
    with pytest.warns(UserWarning, match=r"images of \(6, 6, 2\) .* CnnPolicy \(policy='cnn'\)"):
        small(Picture, policy="mlp").close()
    with pytest.warns(UserWarning, match=r"MultiInputPolicy \(policy='multi_input'\)"):
        small(Pictures, policy="mlp").close()


@pytest.mark.parametrize("vectorization", ["workers", "async"])
def test_other_processes_give_the_same_bits(vectorization):
    with learnt(small(Pictures)) as here:
        with learnt(small(Pictures, vectorization=vectorization)) as there:
            assert torch.equal(weights(here), weights(there))


@pytest.mark.parametrize("env", [Picture, Pictures])
@pytest.mark.parametrize("shared", [False, True])
def test_a_loaded_agent_goes_on_bit_for_bit(tmp_path, env, shared):
    path = tmp_path / "half.safetensors"
    with learnt(small(env, share_encoder=shared), 192) as whole:
        with learnt(small(env, share_encoder=shared), 64) as half:
            half.save(path)
        with TRPO.load(path, env) as loaded:
            learnt(loaded)
            assert torch.equal(weights(loaded), weights(whole))
            assert loaded.predict(_observation(env))[0] == whole.predict(_observation(env))[0]
        with TRPO.load(path, predict_only=True) as alone:
            assert alone.predict(_observation(env))[0] in (0, 1, 2)


def test_the_least_of_images_is_loaded(tmp_path):
    """Whose network is smaller than the perceptron that hidden_sizes tell of."""

    class Least(Picture):
        observation_space = spaces.Box(0, 255, (3, 3, 1), np.uint8)

        def _shown(self):
            return super()._shown()[:3, :3, :1]

    with TRPO(Least, seed=0, num_envs=1) as agent:
        path = agent.save(tmp_path / "least")
    TRPO.load(path, Least).close()


def _observation(env):
    return env().reset(seed=5)[0]


def test_predict_takes_one_observation_or_a_batch():
    with learnt(small(Pictures)) as agent:
        actions, state = agent.predict(nested(5))
        assert (actions.shape, state) == ((5,), None)
        first = nested(5)
        one = {
            "picture": first["picture"][3],
            "body": {"speed": first["body"]["speed"][3], "gear": first["body"]["gear"][3]},
            "rest": tuple(part[3] for part in first["rest"]),
        }
        assert agent.predict(one)[0] == actions[3]
        one["body"]["speed"] = np.array([1.0, np.nan])
        with pytest.raises(ValueError, match=r"holds nan at index 1 \(at body/speed\)"):
            agent.predict(one)
        del one["body"]["speed"]
        with pytest.raises(ValueError, match=r"\(at body\), a dict, has no entry speed"):
            agent.predict(one)


def test_a_nan_in_one_leaf_is_named_by_its_path_and_moves_nothing():
    with small(lambda: Pictures(poison=4, length=9)) as agent:
        before = weights(agent)
        with pytest.raises(EnvironmentFault, match=r"infinite observation \(at body/speed\) at st"):
            agent.learn(64, progress_bar=False)
        assert torch.equal(weights(agent), before)
    dropping = small(lambda: Pictures(poison=6, length=8), on_fault="drop", num_envs=1)
    with dropping, pytest.warns(RuntimeWarning, match="dropped"):
        with pytest.raises(EnvironmentFault, match="every episode of this rollout was dropped"):
            dropping.learn(64, progress_bar=False)


class Own(nn.Module):
    """A user's module on the nesting."""

    observation = "structured"

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(6 * 6 * 2 + 2, 3)
        self.seen = []

    def forward(self, obs):
        self.seen.append((obs["picture"].dtype, obs["body"]["speed"].dtype, obs["rest"][1].dtype))
        flat = obs["picture"].flatten(1).float() / 255
        return Categorical(logits=self.out(torch.cat([flat, obs["body"]["speed"]], 1)))


def test_a_module_of_the_users_is_given_the_nesting(tmp_path):
    own = Own()
    with learnt(small(Pictures, policy=own)) as agent:
        assert isinstance(agent.value_function, MultiInputValueFunction)
        assert set(own.seen) == {(torch.uint8, torch.float32, torch.int64)}
        path = agent.save(tmp_path / "own")
        with pytest.raises(CheckpointError, match="pass policy="):
            TRPO.load(path, Pictures)
        with TRPO.load(path, Pictures, policy=Own()) as loaded:
            assert torch.equal(weights(loaded), weights(agent))
    with pytest.raises(ConfigError, match="takes structured observations, the value function flat"):
        small(Pictures, policy=Own(), value_function=nn.Linear(2, 1))
    own.observation = "nested"
    with pytest.raises(ConfigError, match="observation is 'nested'"):
        small(Pictures, policy=own)


def test_a_shared_encoder_is_moved_by_the_policys_step_alone():
    with small(Picture, share_encoder=True) as agent:
        assert agent.value_function.encoder is agent.policy.encoder
        own = {id(p) for p in agent.learner.critic.parameters}
        assert not own & {id(p) for p in agent.policy.parameters()}
        assert own == {id(p) for p in agent.value_function.values.parameters()}
    with pytest.raises(ConfigError, match="share_encoder"):
        small(share_encoder=True)


def test_stacked_frames_are_channels():
    def stacked():
        return gym.wrappers.FrameStackObservation(Picture(), 3)

    with learnt(small(stacked)) as agent:
        convolution = next(p for p in agent.policy.parameters() if p.ndim == 4)
        assert convolution.shape[1] == 6


def test_a_rollout_of_images_is_as_large_as_the_images():
    """8 x 256 frames of 84 x 84 x 4: under 70 MB."""

    class Atari(gym.Env):
        observation_space = spaces.Box(0, 255, (84, 84, 4), np.uint8)
        action_space = spaces.Discrete(6)
        frame = np.full((84, 84, 4), 7, np.uint8)

        def reset(self, *, seed=None, options=None):
            return self.frame, {}

        def step(self, action):
            return self.frame, 0.0, False, False, {}

    class Still(nn.Module):
        observation = "structured"

        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(6))

        def forward(self, obs):
            return Categorical(logits=self.logits.expand(len(obs), 6))

    class Zero(nn.Module):
        observation = "structured"

        def __init__(self):
            super().__init__()
            self.value = nn.Parameter(torch.zeros(()))

        def forward(self, obs):
            return self.value.expand(len(obs))

    options = {"num_envs": 8, "rollout_steps": 256, "seed": 0}
    with TRPO(Atari, policy=Still(), value_function=Zero(), **options) as agent:
        collector, learner = agent.collector, agent.learner
        rollout = collector.collect(agent.policy, learner.normalizer, 256, agent.rng)
        shown = learner.as_shown(rollout)
        assert shown.observations.dtype == torch.uint8
        assert shown.observations.data_ptr() == rollout.observations.data_ptr()  # no copy
        storage = rollout.observations.untyped_storage().nbytes()
        boundary = sum(array.nbytes for array in collector.state().values())
        assert storage + 2 * boundary < 70e6


def test_sizes_that_a_network_for_images_ignores_do_not_keep_its_file_from_loading(tmp_path):
    path = tmp_path / "c.safetensors"
    with learnt(small(Picture, hidden_sizes=(512, 512))) as agent:
        agent.save(path)
    with TRPO.load(path, Picture) as again:
        assert torch.equal(weights(again), weights(agent))
