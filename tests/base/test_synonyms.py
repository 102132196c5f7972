"""Names that people bring from other libraries lead to the options that are meant."""

from __future__ import annotations

import pytest
import torch

from trpo_fast import TRPO, TRPOOptimizer, cli
from trpo_fast.agent.config import OPTIONS, Config
from trpo_fast.base.synonyms import ELSEWHERE, SYNONYMS
from trpo_fast.update.options import TABLE


@pytest.mark.parametrize("name", SYNONYMS)
def test_each_name_leads_to_an_option_there_is(name: str) -> None:
    meant = SYNONYMS[name].split(" ")[0]
    assert meant in OPTIONS or meant == "run_dir"
    assert name not in OPTIONS
    assert name not in TABLE
    with pytest.raises(TypeError, match=rf"unknown option '{name}'; that is {meant} here"):
        Config.from_options({name: 1})


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_is_no_option_says_what_there_is(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TypeError) as caught:
        TRPO("CartPole-v1", **{name: 1})
    assert ELSEWHERE[name] in str(caught.value)
    with pytest.raises(SystemExit):
        cli.main(["train", "CartPole-v1", f"--{name.replace('_', '-')}", "1"])
    assert ELSEWHERE[name] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--target-kl", "--max-kl"),
        ("--gae-lambda", "--lam"),
        ("--n_envs", "--num-envs"),
        ("--learning-rate=3e-4", "--critic-lr"),
        ("--logdir", "--run-dir"),
    ],
)
def test_the_command_line_answers_in_its_own_spelling(
    given: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "CartPole-v1", given, "0.1"])
    assert caught.value.code == 2
    assert f"; that is {meant} here" in capsys.readouterr().err


def test_the_optimizer_knows_them_too() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    with pytest.raises(TypeError, match="'target_kl'; that is max_kl here"):
        TRPOOptimizer(parameters, target_kl=0.01)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"'gae_lambda'$"):
        TRPOOptimizer(parameters, gae_lambda=0.9)  # type: ignore[call-arg]


def test_a_policy_before_the_environment() -> None:
    with pytest.raises(
        TypeError, match=r"environment alone by position, got 'MlpPolicy' and 'Cart"
    ):
        TRPO("MlpPolicy", "CartPole-v1")  # type: ignore[call-arg]
