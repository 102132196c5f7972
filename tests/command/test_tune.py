"""`trpo-fast tune`: trials, what is kept of them, and the file that comes out."""

from __future__ import annotations

import json
import math
import multiprocessing
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from patience import PATIENCE

from trpo_fast import cli
from trpo_fast.agent.config import OPTIONS, Config
from trpo_fast.agent.policies import first_log_std
from trpo_fast.command.config_file import read
from trpo_fast.command.search import SPACE, Range, Task, open_study, search

optuna = pytest.importorskip("optuna", reason="optuna is not installed: pip install '.[test]'")

TINY = [
    *("--num-envs", "2", "--value-hidden-sizes", "4", "--hidden-sizes", "4"),
    *("--critic-epochs", "1", "--rollout-steps", "32", "--total-steps", "192"),
]


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def tune(*arguments: str, env: str = "CartPole-v1") -> int:
    return cli.main(["tune", env, *TINY, *arguments])


def test_a_search_goes_on_and_writes_what_train_takes(capsys):
    assert tune("--trials", "2") == 0
    assert tune("--trials", "3", "--out", "best.json") == 0
    out = capsys.readouterr().out
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("trial ")] == [
        *("trial 0", "trial 1", "trial 2")
    ]
    assert "2 of 3 trials are in tune-CartPole-v1.db" in out
    study = optuna.load_study(study_name="trpo-fast", storage="sqlite:///tune-CartPole-v1.db")
    first = study.trials[0].params
    assert first == {name: OPTIONS[name].default for name in first}
    assert set(first) == {"max_kl", "damping", "gamma", "lam", "critic_lr"}  # the rest is given
    best = read(Path("best.json"))
    assert {name: best[name] for name in first} == study.best_params
    assert best["hidden_sizes"] == [4]
    again = ("--config", "best.json", "--total-steps", "64", "--quiet", "--run-dir", "r")
    assert cli.main(["train", "CartPole-v1", *again]) == 0
    options = json.loads(Path("r/config.json").read_text())["options"]
    assert options["max_kl"] == study.best_params["max_kl"]


class Parts(gym.ActionWrapper):
    """CartPole with an action of two parts, of which the first counts."""

    def __init__(self, second: spaces.Space) -> None:
        super().__init__(CartPoleEnv())
        self.action_space = spaces.Tuple([spaces.Discrete(2), second])

    def action(self, action):
        return action[0]


@pytest.mark.parametrize(
    ("second", "distribution", "searched"),
    [
        (spaces.Box(0, 9, (2, 2)), "gaussian", {"log_std_init"}),
        (spaces.Box(0, 9, (2, 2)), "auto", {}),
        (spaces.Box(-np.inf, 9, (2, 2)), "auto", {"log_std_init"}),
        (spaces.Discrete(3), "auto", {}),
    ],
)
def test_the_first_trial_has_the_deviation_of_a_gaussians_actions(second, distribution, searched):
    gym.register("Parts-v0", lambda: Parts(second), max_episode_steps=50)
    try:
        how = ("--gamma", "0.9", "--distribution", distribution)
        assert tune("--trials", "1", *how, env="Parts-v0") == 0
    finally:
        del gym.registry["Parts-v0"]
    study = optuna.load_study(study_name="trpo-fast", storage="sqlite:///tune-Parts-v0.db")
    first = study.trials[0].params
    assert set(first) & {"log_std_init"} == set(searched)
    assert first.get("log_std_init", -math.log(4) / 2) == -math.log(4) / 2


@pytest.mark.parametrize("numbers", [1, 17, 400])
def test_the_default_deviation_can_be_drawn(numbers):
    for distribution in ("gaussian", "squashed"):
        first = first_log_std(None, spaces.Box(-1, 1, (numbers,)), distribution)
        assert SPACE["log_std_init"].holds(first)


def test_a_search_without_a_seed_is_refused(capsys):
    assert tune("--trials", "1", "--seed", "none") == 2
    assert "seed must be a number here, got None" in capsys.readouterr().err


def test_another_search_in_the_same_file_is_refused(capsys):
    assert tune("--trials", "1") == 0
    assert tune("--trials", "1", "--gamma", "0.9") == 2
    error = capsys.readouterr().err
    assert "name another --study" in error
    assert "gamma" in error
    Path("broken.db").write_text("no database")
    assert tune("--trials", "1", "--study", "broken.db") == 2
    assert "cannot be used" in capsys.readouterr().err


def test_a_search_of_other_ranges_is_another(monkeypatch, capsys):
    assert tune("--trials", "1") == 0
    monkeypatch.setitem(SPACE, "damping", Range(0.1, 10.0, log=True))
    assert tune("--trials", "2") == 2
    error = capsys.readouterr().err
    assert "name another --study" in error
    assert "0.01 to 1" in error


@pytest.mark.parametrize("given", ["--no-relative-damping", "--relative-damping"])
def test_damping_is_not_searched_in_units_that_were_chosen(given):
    assert tune("--trials", "1", given) == 0
    study = optuna.load_study(study_name="trpo-fast", storage="sqlite:///tune-CartPole-v1.db")
    assert set(study.trials[0].params) == {"max_kl", "gamma", "lam", "critic_lr"}


def test_no_other_file_is_overwritten(capsys):
    Path("mine.toml").write_text("gamma = 0.9")
    assert tune("--trials", "1", "--out", "mine.toml") == 2
    assert "ends in .json" in capsys.readouterr().err
    Path("mine.json").write_text("{}")
    assert tune("--trials", "1", "--out", "mine.json") == 2
    assert "name another file" in capsys.readouterr().err
    assert Path("mine.toml").read_text() == "gamma = 0.9"
    assert Path("mine.json").read_text() == "{}"


def test_without_an_episode_that_ends_there_is_nothing_to_compare(capsys):
    assert tune("--trials", "1", "--total-steps", "64", env="Pendulum-v1") == 2
    assert "raise --total-steps" in capsys.readouterr().err
    assert not Path("tune-Pendulum-v1.json").exists()


def test_without_optuna_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("trpo_fast.command.tune.find_spec", lambda _: None)
    assert tune() == 2
    assert "[tune]" in capsys.readouterr().err


def test_a_trial_that_falls_behind_is_stopped(monkeypatch):
    """Five trials as good as one another, and one that is worse from its beginning on."""

    def score(task, trial):
        SPACE["max_kl"].ask(trial, "max_kl")
        value = 100.0 if trial.number < 5 else 10.0
        for step in range(1, 11):
            trial.report(value, step)
            if trial.should_prune():
                looks.append(step)
                raise optuna.TrialPruned
        return value

    looks: list[int] = []
    monkeypatch.setattr(Task, "score", score)
    task = Task("CartPole-v1", {}, ("max_kl",), 100, (1,))
    told: list[str] = []
    study = open_study(Path("s.db"), task, {"max_kl": 0.01})
    search(study, task, 7, lambda trial: told.append(trial.state.name))
    assert told == ["COMPLETE"] * 5 + ["PRUNED"] * 2
    assert looks == [3, 3]
    search(study, task, 7, lambda _: pytest.fail("seven are there"))


class Drawn(Task):
    """Trains nothing: a trial's score is what was drawn."""

    def score(self, trial):
        return sum(SPACE[name].ask(trial, name) for name in self.searched)


def draws(file, trials, meeting=None, seed=1):
    """What is drawn by a search of so many trials, in the order of their numbers."""
    task = Drawn("CartPole-v1", {}, ("max_kl", "critic_lr"), 100, (seed,))
    if meeting is not None:
        meeting.wait(PATIENCE)
    study = open_study(Path(file), task, {"max_kl": 0.01, "critic_lr": 1e-3})
    search(study, task, trials, lambda _: None)
    return [tuple(trial.params.values()) for trial in study.trials]


def test_a_seed_decides_the_draws_wherever_the_search_was_stopped():
    whole = draws("whole.db", 12)  # from the eleventh on by what the others gave
    draws("parts.db", 4)
    assert draws("parts.db", 12) == whole
    assert len(set(whole)) == 12
    assert whole[0] == (0.01, 1e-3)
    other = draws("other.db", 2, seed=2)
    assert other[0] == whole[0]
    assert other[1] not in whole


@pytest.mark.slow
def test_processes_that_begin_at_once_share_the_work():
    context = multiprocessing.get_context("spawn")
    meeting = context.Barrier(2)
    both = [context.Process(target=draws, args=("s.db", 6, meeting)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(PATIENCE)
    assert [each.exitcode for each in both] == [0, 0]
    study = optuna.load_study(study_name="trpo-fast", storage="sqlite:///s.db")
    found = [tuple(trial.params.values()) for trial in study.trials]
    assert len(found) in (6, 7)  # each begins one where the other's sixth has not ended
    assert len(set(found)) == len(found)  # the defaults once, too


@pytest.mark.parametrize("name", SPACE)
def test_all_that_is_searched_is_an_option_within_its_limits(name):
    span: Range = SPACE[name]
    for value in span.choices or (span.low, span.high):
        assert span.holds(value)
        assert getattr(Config.from_options({name: value}), name) == value
    assert not span.holds(-9.0)


def test_the_mean_over_seeds_is_the_score():
    task = Task("CartPole-v1", {**_tiny(), "lam": 0.95}, ("max_kl",), 64, (3, 4))
    apart = [Task(**{**vars(task), "seeds": (seed,)}) for seed in task.seeds]
    fixed = {"max_kl": 0.01}
    both, *each = (each.score(optuna.trial.FixedTrial(fixed)) for each in (task, *apart))
    assert both == pytest.approx(sum(each) / 2)


def _tiny():
    return {"num_envs": 2, "rollout_steps": 32, "hidden_sizes": (4,), "value_hidden_sizes": (4,)}
