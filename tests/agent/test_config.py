"""Options: limits, types, suggestions, and one definition for Python and the command line."""

from __future__ import annotations

import dataclasses
import json

import pytest

from trpo_fast.agent.config import (
    GROUPS,
    OPTIONS,
    Config,
    ConfigError,
    UnknownOptionError,
    differences,
)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_kl", 0, "> 0"),
        ("max_kl", float("nan"), "finite"),
        ("max_kl", "0.01", "a number"),
        ("gamma", 1.5, "<= 1"),
        ("num_envs", 0, ">= 1"),
        ("num_envs", 2.0, "a whole number"),
        ("num_envs", True, "a whole number"),
        ("hidden_sizes", "64", "a list"),
        ("hidden_sizes", (64, 0), ">= 1"),
        ("constraint", "hrad", "did you mean 'hard'"),
        ("state_dependent_std", 1, "true or false"),
        ("env_kwargs", [1], "a mapping"),
        ("backtrack_coeff", 1.0, "< 1"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_limit(name, value, words):
    with pytest.raises(ConfigError, match=words) as caught:
        Config(**{name: value})
    assert name in str(caught.value)


def test_an_unknown_option_offers_the_nearest_name():
    with pytest.raises(UnknownOptionError, match="did you mean 'rollout_steps'"):
        Config.from_options({"rollout_step": 3})
    with pytest.raises(TypeError):
        Config.from_options({"rollout_step": 3})


def test_json_round_trip():
    config = Config(hidden_sizes=(3, 5), env_kwargs={"a": [1, None]}, seed=7, gamma=0.9)
    assert Config.from_options(json.loads(json.dumps(config.to_json()))) == config


def test_every_option_has_help_and_a_known_group():
    assert set(OPTIONS) == {field.name for field in dataclasses.fields(Config)}
    assert all(option.text and option.group in GROUPS for option in OPTIONS.values())


def test_differences_tell_fixed_options_from_free_ones():
    old, new = Config(), Config(num_envs=2, max_kl=0.5)
    assert differences(old, new, fixed=True) == ["num_envs: 8 -> 2"]
    assert [line.split(":")[0] for line in differences(old, new, fixed=False)] == ["max_kl"]


def test_a_configuration_is_data_and_never_code():
    text = "__import__('os').system('true')"
    assert Config.from_options({"activation": text}).activation == text


def test_a_seed_that_torch_cannot_take_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"seed must be .* <= 9223372036854775807, or None, got"):
        Config(seed=2**70)
