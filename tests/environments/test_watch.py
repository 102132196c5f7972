"""Steps in this process that do not come back: told of, since nobody can end them."""

from __future__ import annotations

import gc
import os
import threading
import time
from typing import Any

import numpy as np
import pytest
from patience import wait_until
from toy_environments import Scripted

from trpo_fast.agent.evaluation import run_episodes
from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.environments import silence, watch
from trpo_fast.environments.make import make_vector_env

WAIT = 0.6


class Slow(Scripted):
    """The second one takes a while for its second step, or for a reset."""

    where = "step"
    made = 0

    def __init__(self) -> None:
        super().__init__(((9, "terminated"),))
        self.number = Slow.made
        Slow.made += 1

    def step(self, action: Any) -> Any:
        if self.where == "step" and self.number == 1 and self.time == 1:
            time.sleep(WAIT)
        return super().step(action)

    def reset(self, **given: Any) -> Any:
        if self.where == "reset" and self.number == 1:
            time.sleep(WAIT)
        return super().reset(**given)

    def close(self) -> None:
        if self.where == "close" and self.number == 1:
            time.sleep(WAIT)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slow, "made", 0)
    monkeypatch.setattr(watch, "LOOK", 0.05)
    monkeypatch.setattr(silence, "SILENCE", 0.2)


def steps(env: Any, count: int = 2) -> None:
    out = np.empty((env.num_envs, 3), np.float32)
    env.reset(out)
    for _ in range(count):
        env.step(np.zeros(env.num_envs, np.int64), out)


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "trpo_fast-watch"]


@pytest.mark.reliability("hung_here")
def test_a_silent_step_is_told_of(capfd: pytest.CaptureFixture[str]) -> None:
    env = make_vector_env(Slow, num_envs=3, seed=1)
    steps(env)
    env.close()
    said = capfd.readouterr().err
    assert "waiting for environment 1 of Slow: no answer for" in said
    assert "in step 2 of its episode" in said
    assert "--vectorization workers" in said


@pytest.mark.reliability("hung_here")
def test_a_step_past_its_limit_shows_where_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    env = make_vector_env(Slow, num_envs=3, seed=1, step_timeout=0.2)
    steps(env)
    env.close()
    said = capfd.readouterr().err
    assert said.count("environment 1 of Slow did not answer within 0.2 s in step 2") == 1
    assert "test_watch.py" in said
    assert "in step" in said


@pytest.mark.reliability("hung_here")
def test_a_silent_reset_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Slow, "where", "reset")
    env = make_vector_env(Slow, num_envs=3, seed=1)
    steps(env)
    env.close()
    assert "waiting for an environment of Slow: no answer for" in capfd.readouterr().err


@pytest.mark.reliability("hung_here")
def test_the_trainers_own_share_is_watched_too(capfd: pytest.CaptureFixture[str]) -> None:
    class LastIsSlow(Scripted):
        def step(self, action: Any) -> Any:
            if self.time == 1 and os.getpid() == trainer:
                time.sleep(WAIT)
            return super().step(action)

    trainer = os.getpid()
    env = make_vector_env(LastIsSlow, num_envs=2, seed=1, vectorization="workers", num_workers=1)
    steps(env)
    env.close()
    assert "waiting for environment 1 of LastIsSlow" in capfd.readouterr().err


@pytest.mark.reliability("hung_here")
@pytest.mark.parametrize("where", ["step", "reset", "close"])
def test_an_evaluation_that_hangs_is_told_of(
    where: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Slow, "where", where)
    run_episodes(lambda shown, masks: [0 for _ in shown], Slow, 2, seed=0, max_steps=9)
    said = capfd.readouterr().err
    who = "an environment" if where == "close" else "environment 1"
    assert f"waiting for {who} of the evaluation: no answer for" in said


def test_quick_steps_and_pauses_between_them_are_not_told_of(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Slow, "where", "nowhere")
    env = make_vector_env(Slow, num_envs=3, seed=1, step_timeout=0.2)
    steps(env)
    time.sleep(0.3)
    steps(env)
    env.close()
    assert not capfd.readouterr().err


def test_a_step_that_raised_is_not_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    class Raising(Scripted):
        def step(self, action: Any) -> Any:
            raise ZeroDivisionError

    env = make_vector_env(Raising, num_envs=2, seed=1)
    with pytest.raises(EnvironmentFault, match="ZeroDivisionError"):
        steps(env)
    time.sleep(0.4)
    env.close()
    assert not capfd.readouterr().err


def test_the_watch_ends_with_its_environments() -> None:
    gc.collect()
    before = len(watchers())
    closed, lost = (make_vector_env(Scripted, num_envs=2, seed=1) for _ in range(2))
    for env in (closed, lost):
        steps(env)
    assert len(watchers()) == before + 2
    closed.close()
    del lost, env
    gc.collect()
    wait_until(lambda: len(watchers()) <= before)
