"""Files of earlier versions, rewritten as those wrote them, go on as they would have."""

from __future__ import annotations

import json

import pytest

from trpo_fast import TRPO
from trpo_fast.agent.older_files import current_options
from trpo_fast.command.config_file import read
from trpo_fast.runs.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

TINY = {"num_envs": 2, "rollout_steps": 16, "hidden_sizes": (4,), "value_hidden_sizes": (4,)}
EARLIER = {
    "max_kl_per": "action",
    "step_size": "damped",
    "shrink_max_kl": False,
    "scale_actions": False,
}


def as_it_was(state, **changes):
    """Before the defaults of the step changed, with `squash` for `distribution`."""
    config = {k: v for k, v in state["config"].items() if k not in EARLIER}
    config["squash"] = config.pop("distribution") == "squashed"
    config["critic_method"] = "adam"
    agent = dict(state["agent"])
    agent["squash"] = agent.pop("distribution") == "squashed"
    del agent["scale_actions"]
    return {**state, "config": {**config, **changes}, "agent": agent}


@pytest.mark.parametrize("distribution", ["squashed", "gaussian"])
def test_a_checkpoint_goes_on_with_the_step_that_it_was_made_with(tmp_path, distribution):
    options = {**TINY, **EARLIER, "log_std_init": -0.5, "distribution": distribution, "seed": 0}
    with TRPO("Pendulum-v1", **options) as agent:
        agent.learn(64, progress_bar=False)
        path = agent.save(tmp_path / "new")
        agent.learn(64, progress_bar=False)
        wanted = agent.policy.state_dict()
    old = tmp_path / "old.safetensors"
    save_checkpoint(old, as_it_was(load_checkpoint(path)))
    with TRPO.load(old) as agent:
        assert agent.config.distribution == distribution
        assert (agent.config.max_kl_per, agent.config.step_size) == ("action", "damped")
        agent.learn(64, progress_bar=False)
        assert all(value.equal(wanted[name]) for name, value in agent.policy.state_dict().items())
    with TRPO.load(old, step_size="boundary") as agent:
        assert agent.config.step_size == "boundary"


def test_what_this_version_has_no_more_is_refused(tmp_path):
    with TRPO("Pendulum-v1", seed=0, **TINY) as agent:
        path = agent.save(tmp_path / "new")
    state = as_it_was(load_checkpoint(path), critic_method="gauss_newton")
    save_checkpoint(tmp_path / "old.safetensors", state)
    with pytest.raises(CheckpointError, match="unknown option 'critic_method'"):
        TRPO.load(tmp_path / "old.safetensors")


def test_options_of_this_version_stay_as_they_are():
    with TRPO("CartPole-v1", seed=0, **TINY) as agent:
        options = agent.config.to_json()
    assert current_options(options) == options


def test_a_runs_config_json_is_read_by_its_old_names(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"trpo_fast": "0.1.0", "options": {"squash": True, "seed": 3}}))
    found = read(path)
    assert found == {**EARLIER, "distribution": "squashed", "seed": 3, "env_kwargs": {}}
