"""Saving an agent and loading it, here or elsewhere."""

from __future__ import annotations

import copy
import json
import os
import pickle

import gymnasium
import numpy as np
import pytest
import torch
from agent_cases import SMALL, small, weights
from toy_environments import Walk

from trpo_fast import cli
from trpo_fast.agent.agent import TRPO
from trpo_fast.agent.config import UnknownOptionError
from trpo_fast.agent.saved_spaces import space_from_json, space_to_json
from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.runs.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from trpo_fast.runs.directory import RunDirectoryError
from trpo_fast.runs.logger import read_progress


def test_loading_goes_on_bit_for_bit(tmp_path):
    with small("Pendulum-v1") as agent:
        agent.learn(100, progress_bar=False)
        path = agent.save(tmp_path / "agent")
        agent.learn(150, progress_bar=False)
        with TRPO.load(path) as loaded:
            assert loaded.config == agent.config
            loaded.learn(150, progress_bar=False)
            assert torch.equal(weights(loaded), weights(agent))
            assert loaded.num_timesteps == agent.num_timesteps
            assert loaded.rng.bit_generator.random_raw() == agent.rng.bit_generator.random_raw()


def test_pitfall_normaliser_statistics_are_not_lost_on_load(tmp_path):
    with small("Pendulum-v1") as agent:
        agent.learn(200, progress_bar=False)
        path = agent.save(tmp_path / "agent")
        with TRPO.load(path) as loaded:
            observation = np.array([0.3, -0.2, 4.0], np.float32)
            np.testing.assert_array_equal(
                agent.predict(observation)[0], loaded.predict(observation)[0]
            )
            assert loaded.learner.normalizer.statistics.count == 256


def test_loading_into_another_environment_lists_the_differences(tmp_path):
    with small() as agent:
        path = agent.save(tmp_path / "agent")
    with pytest.raises(CheckpointError) as caught:
        TRPO.load(path, "Pendulum-v1")
    text = str(caught.value)
    assert "environment: the checkpoint has CartPole-v1, here it is Pendulum-v1" in text
    assert "action space" in text
    assert "policy: body.0.weight: the checkpoint has [8, 4], here it is [8, 3]" in text


@pytest.mark.parametrize("network", ["policy", "value_function"])
def test_loading_refuses_parameters_that_are_not_finite(tmp_path, network):
    with small() as agent:
        path = agent.save(tmp_path / "agent")
    state = load_checkpoint(path)
    key = next(iter(state["learner"][network]))
    state["learner"][network][key].view(-1)[0] = torch.nan
    save_checkpoint(path, state)
    with pytest.raises(CheckpointError, match=f"{key} of the {network} holds a NaN"):
        TRPO.load(path)


def test_loading_with_another_architecture_lists_the_differences(tmp_path):
    with small() as agent:
        path = agent.save(tmp_path / "agent")
    with pytest.raises(CheckpointError, match=r"body.0.weight: the checkpoint has \[8, 4\]"):
        TRPO.load(path, hidden_sizes=(9,))
    with pytest.raises(CheckpointError, match="activation: the checkpoint has tanh"):
        TRPO.load(path, activation="relu")
    with pytest.raises(UnknownOptionError, match="did you mean"):
        TRPO.load(path, hidden_size=(9,))


def test_options_that_are_free_can_change_on_load(tmp_path):
    with small(max_kl=0.01) as agent:
        agent.learn(64, progress_bar=False)
        path = agent.save(tmp_path / "agent")
    with TRPO.load(path, max_kl=0.002, num_envs=3) as loaded:
        assert loaded.optimizer.param_groups[0]["max_kl"] == 0.002
        loaded.learn(96, progress_bar=False)
        assert loaded.num_timesteps == 64 + 96
        assert loaded.optimizer.last_result.kl <= 0.002


def test_options_named_again_with_the_same_value_change_nothing(tmp_path):
    with small(Walk, env_kwargs={"length": 5}) as agent:
        agent.learn(100, progress_bar=False)
        path = agent.save(tmp_path / "agent")
        agent.learn(100, progress_bar=False)
    with TRPO.load(path, Walk, **SMALL, env_kwargs={"length": 5}) as loaded:
        loaded.learn(100, progress_bar=False)
        assert torch.equal(weights(loaded), weights(agent))


def test_an_agent_on_a_function_needs_it_again(tmp_path):
    with small(Walk) as agent:
        agent.learn(64, progress_bar=False)
        path = agent.save(tmp_path / "agent")
    with pytest.raises(CheckpointError, match="pass env="):
        TRPO.load(path)
    with TRPO.load(path, Walk) as loaded:
        assert torch.equal(weights(loaded), weights(agent))


def test_a_checkpoint_never_imports_the_module_named_in_its_environment_id(tmp_path):
    with small() as agent:
        state = load_checkpoint(agent.save(tmp_path / "agent"))
    state["agent"]["environment"] = "this:CartPole-v1"
    path = save_checkpoint(tmp_path / "evil.safetensors", state)
    with pytest.raises(CheckpointError, match="imports the module 'this'"):
        TRPO.load(path)


@pytest.mark.parametrize("missing", ["learner", "rng", "progress", "config", "agent", "collector"])
def test_a_checkpoint_without_a_part_is_refused(tmp_path, missing):
    with small() as agent:
        state = load_checkpoint(agent.save(tmp_path / "agent"))
    del state[missing]
    with pytest.raises(CheckpointError):
        TRPO.load(save_checkpoint(tmp_path / "cut.safetensors", state))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("action_counts", None),
        ("actions", np.zeros(3)),
        ("episodes", np.zeros(7, np.int64)),
        ("observations", np.zeros((2, 9), np.float32)),
    ],
)
def test_saved_episodes_that_cannot_be_replayed_are_refused_in_words(tmp_path, key, value):
    with small() as agent:
        agent.learn(64, progress_bar=False)
        state = load_checkpoint(agent.save(tmp_path / "agent"))
    if value is None:
        del state["collector"][key]
    else:
        state["collector"][key] = value
    path = save_checkpoint(tmp_path / "bad.safetensors", state)
    with pytest.raises(CheckpointError, match="collector/"):
        TRPO.load(path)


@pytest.mark.reliability("relative_run_dir")
def test_a_relative_directory_stays_where_it_was(tmp_path, monkeypatch):
    """Whoever changes the working directory: the program, or an environment as it is reset."""
    (tmp_path / "elsewhere").mkdir()

    class Moving(Walk):
        def reset(self, **keywords):
            os.chdir(tmp_path / "elsewhere")
            return super().reset(**keywords)

    monkeypatch.chdir(tmp_path)
    with small(Moving, run_dir="run") as agent:
        agent.learn(64, progress_bar=False)
        agent.learn(64, progress_bar=False)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert len(read_progress(tmp_path / "run" / "progress.csv")) == 2
    assert (tmp_path / "run" / "learning_curve.png").exists()


@pytest.mark.reliability("tilde")
def test_a_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with small(run_dir="~/run") as agent:
        agent.learn(64, progress_bar=False)
        assert agent.save("~/agent") == tmp_path / "agent.safetensors"
    with TRPO.load("~/agent"):
        pass
    assert cli.main(["eval", "~/run", "--episodes", "1"]) == 0
    assert cli.main(["plot", "~/run", "--out", "~/picture.png"]) == 0
    assert (tmp_path / "picture.png").exists()
    assert not (tmp_path / "~").exists()


SPACES = [
    gymnasium.spaces.Box(-1, np.inf, (2, 3), np.float64),
    gymnasium.spaces.Box(np.array([0, -2.5]), np.array([0.1, 3]), dtype=np.float64),
    gymnasium.spaces.Box(0, 255, (4, 4, 3), np.uint8),
    gymnasium.spaces.Box(-1, 1, (), np.float32),
    gymnasium.spaces.Discrete(5, start=-2),
    gymnasium.spaces.MultiDiscrete([3, 2], start=[1, -1]),
    gymnasium.spaces.MultiDiscrete([[3, 2], [4, 2]]),
    gymnasium.spaces.MultiBinary(3),
    gymnasium.spaces.MultiBinary((2, 2)),
]
SPACES += [
    gymnasium.spaces.Dict({"b": SPACES[0], "a": SPACES[4]}),
    gymnasium.spaces.Tuple((SPACES[7], gymnasium.spaces.Dict(x=SPACES[2]))),
]


@pytest.mark.reliability("predict_only")
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces_come_back_from_json(space):
    found = space_from_json(json.loads(json.dumps(space_to_json(space), allow_nan=False)))
    assert found == space
    assert (found.dtype, found.shape, str(found)) == (space.dtype, space.shape, str(space))


@pytest.mark.parametrize(
    "node",
    [
        None,
        {},
        {"Box": {"low": 0, "high": 1, "shape": [10**6, 10**6], "dtype": "<f4"}},
        {"Box": {"low": 0}},
        {"Discrete": [10**12, 0]},
        {"Discrete": [0, 0]},
        {"MultiBinary": [-1]},
        {"Text": [3]},
        {"Tuple": [{"Discrete": "ab"}]},
    ],
    ids=str,
)
def test_no_space_of_a_damaged_file_is_made(node):
    with pytest.raises(ValueError, match="stands for no space"):
        space_from_json(node)


@pytest.mark.reliability("predict_only")
@pytest.mark.parametrize("env", ["Pendulum-v1", "Gone-v0", Walk])
def test_an_agent_predicts_where_its_environment_is_not(env, tmp_path, monkeypatch):
    if env == "Gone-v0":
        gymnasium.register("Gone-v0", entry_point=lambda length: Walk(length=length))
    kwargs = {"length": 5} if env == "Gone-v0" else {}
    with small(env, env_kwargs=kwargs) as agent:
        agent.learn(64, progress_bar=False)
        path = agent.save(tmp_path / "agent")
        seen = np.stack([agent.observation_space.sample() for _ in range(4)])
        expected = agent.predict(np.nan_to_num(seen))[0]
    if isinstance(env, str):
        monkeypatch.delitem(gymnasium.registry, env)
    with TRPO.load(path, predict_only=True) as loaded:
        np.testing.assert_array_equal(loaded.predict(np.nan_to_num(seen))[0], expected)
        assert loaded.action_space == agent.action_space
        assert loaded.config == agent.config
        with pytest.raises(EnvironmentFault, match="predict_only=True and has no environments"):
            loaded.learn(64, progress_bar=False)
        with pytest.raises(ValueError, match="pass env="):
            loaded.evaluate(1)
        again = load_checkpoint(loaded.save(tmp_path / "again"))
        assert again["agent"] == load_checkpoint(path)["agent"]
        assert again["config"] == load_checkpoint(path)["config"]
        np.testing.assert_equal(again["collector"], load_checkpoint(path)["collector"])
    state = load_checkpoint(path)
    del state["spaces"]
    save_checkpoint(path, state)
    with pytest.raises(CheckpointError, match="kept no spaces: pass env="):
        TRPO.load(path, predict_only=True)


@pytest.mark.reliability("pickled_agent")
def test_an_agent_is_not_pickled_and_says_so():
    with small() as agent:
        for copier in (pickle.dumps, copy.deepcopy, copy.copy):
            with pytest.raises(TypeError, match=r"agent.save\(path\) and TRPO.load"):
                copier(agent)


def test_a_checkpoint_behind_a_link_is_of_the_run_that_it_lies_in(tmp_path):
    with small(run_dir=tmp_path / "run") as agent:
        agent.learn(64, progress_bar=False)
    link = tmp_path / "newest.safetensors"
    link.symlink_to(next((tmp_path / "run" / "checkpoints").glob("step-*")))
    with TRPO.load(link, run_dir=tmp_path / "run") as agent:
        agent.learn(64, progress_bar=False)
        assert agent.num_timesteps == 128
    (tmp_path / "other").mkdir()
    copy = tmp_path / "other" / "copy.safetensors"
    copy.write_bytes(link.read_bytes())
    with (
        TRPO.load(copy, run_dir=tmp_path / "run") as agent,
        pytest.raises(RunDirectoryError, match="already holds a run"),
    ):
        agent.learn(64, progress_bar=False)
