"""Stable-Baselines3's callbacks do on this agent what they do on theirs."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agent_cases import small
from toy_environments import TERMINATED, Scripted

from trpo_fast.agent.agent import TRPO

sb3 = pytest.importorskip(
    "stable_baselines3", reason="needs stable_baselines3: pip install '.[test]'"
)

from stable_baselines3.common import callbacks as theirs  # noqa: E402
from stable_baselines3.common.env_util import make_vec_env  # noqa: E402

pytestmark = pytest.mark.reliability("sb3_callbacks")


def learn(steps: int, callback: Any, **options: Any) -> TRPO:
    """Rollouts of 2 environments x 32 steps."""
    with small(**options) as agent:
        return agent.learn(steps, callback, progress_bar=False)


@pytest.mark.parametrize("stop", [False, np.False_])
@pytest.mark.parametrize("answer", [0, None, "", np.bool_(True)])
def test_false_stops_and_nothing_else_does(stop: Any, answer: Any) -> None:
    answers = [answer, answer, stop]
    agent = learn(640, lambda local, global_: answers.pop(0))
    assert agent.num_timesteps == 192


def test_a_list_of_callbacks_is_called_one_by_one() -> None:
    called: list[str] = []

    class Mine:
        def on_step(self) -> bool:
            called.append("object")
            return True

    def function(local: Any, global_: Any) -> bool:
        called.append("function")
        return len(called) < 4

    agent = learn(640, [Mine(), function, None])
    assert called == ["object", "function"] * 2
    assert agent.num_timesteps == 128
    with pytest.raises(TypeError, match="or a list of those; got int"):
        learn(64, [3])


def test_evaluations_happen_as_often_as_asked_and_stop_at_a_threshold(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = make_vec_env("CartPole-v1", n_envs=1)
    stop = theirs.StopTrainingOnRewardThreshold(5.0)
    every = theirs.EvalCallback(
        env,
        eval_freq=48,
        n_eval_episodes=2,
        callback_on_new_best=stop,
        best_model_save_path=str(tmp_path / "best"),
        log_path=str(tmp_path / "log"),
        verbose=0,
    )
    agent = learn(640, every, run_dir=tmp_path / "run")
    # The 48th of their calls is in the second update of 32 steps.
    assert agent.num_timesteps == 128
    assert np.load(tmp_path / "log" / "evaluations.npz")["timesteps"].tolist() == [96]
    with TRPO.load(tmp_path / "best" / "best_model") as best:
        assert best.num_timesteps == 128


def test_what_they_log_is_in_the_next_row(tmp_path: Path) -> None:
    class Logs(theirs.BaseCallback):
        def _on_step(self) -> bool:
            self.logger.record("eval/mean_reward", np.float32(self.n_calls))
            self.logger.record("a/text", "words")
            self.logger.record("train/kl", 99.0)  # not theirs to say
            return True

    learn(192, Logs(), run_dir=tmp_path)
    rows = list(csv.DictReader((tmp_path / "progress.csv").read_text().splitlines()))
    assert [row["eval/mean_reward"] for row in rows] == ["", "32", "64"]
    assert all(float(row["train/kl"]) < 1 for row in rows)


def test_a_recorded_mean_is_of_one_row(tmp_path: Path) -> None:
    class Means(theirs.BaseCallback):
        def _on_step(self) -> bool:
            self.logger.record_mean("eval/mean_reward", self.n_calls)
            return True

    learn(192, Means(), run_dir=tmp_path)
    rows = list(csv.DictReader((tmp_path / "progress.csv").read_text().splitlines()))
    found = [float(row["eval/mean_reward"] or "nan") for row in rows]
    # The calls of an update, in the row of the next.
    assert np.isnan(found[0])
    assert found[1:] == pytest.approx([np.mean(range(1, 33)), np.mean(range(33, 65))], rel=1e-12)


def test_episodes_and_steps_are_counted_one_by_one() -> None:
    seen: list[tuple[int, int]] = []

    class Count(theirs.BaseCallback):
        def _on_step(self) -> bool:
            seen.append((self.num_timesteps, int(self.locals["dones"].sum())))
            assert self.training_env.num_envs == len(self.locals["infos"]) == 2
            return True

    options = {"env": lambda: Scripted(((8, TERMINATED),))}
    learn(128, Count(), **options)
    assert [steps for steps, _ in seen] == list(range(2, 129, 2))
    assert [ended for _, ended in seen] == [0, 0, 0, 0, 0, 0, 0, 2] * 8
    # 5 episodes in each environment are over at step 40 of 64.
    agent = learn(640, theirs.StopTrainingOnMaxEpisodes(5), **options)
    assert agent.num_timesteps == 128


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_their_other_callbacks_run(tmp_path: Path) -> None:
    counted: list[int] = []

    class Event(theirs.BaseCallback):
        def _on_step(self) -> bool:
            counted.append(self.num_timesteps)
            return True

    several = [
        theirs.CheckpointCallback(32, str(tmp_path)),
        theirs.EveryNTimesteps(50, Event()),
        theirs.LogEveryNTimesteps(20),
        theirs.ProgressBarCallback(),
        theirs.CallbackList([Event(), theirs.ConvertCallback(lambda *_: True)]),
    ]
    agent = learn(128, several)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "rl_model_128_steps.zip",
        "rl_model_64_steps.zip",
    ]
    assert several[3].pbar.n == several[3].pbar.total == 128
    assert counted.count(50) == 2
    assert agent.num_timesteps == 128


def test_what_the_agent_cannot_answer_is_said_in_words() -> None:
    class Asks(theirs.BaseCallback):
        def __init__(self, ask: Any) -> None:
            super().__init__()
            self.ask = ask

        def _on_step(self) -> bool:
            self.ask(self)
            return True

    for ask, text in (
        (lambda c: c.model.replay_buffer, "model.replay_buffer, which trpo_fast's agent"),
        (lambda c: c.training_env.envs, "training_env.envs; .* num_envs, observation_space"),
    ):
        with pytest.raises(AttributeError, match=text):
            learn(64, Asks(ask))
