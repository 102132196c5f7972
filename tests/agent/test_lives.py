"""Agents whose environments were closed, killed or interrupted: they save, act and learn on."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Self

import gymnasium.vector
import numpy as np
import pytest
import torch
from agent_cases import small, weights
from patience import wait_until
from toy_environments import Walk
from training_process import runs

import trpo_fast
from trpo_fast.agent.agent import TRPO
from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.runs.checkpoint import load_checkpoint
from trpo_fast.runs.directory import RunDirectory

KINDS = ["sync", "async", "workers", "auto"]
WATCHED = tuple(
    str(Path(m.__file__).parent) for m in (trpo_fast, gymnasium.vector, multiprocessing)
)
BATCH = 3 * 8
TOTAL = 3 * BATCH


def agent_of(vectorization: str) -> TRPO:
    workers = {"num_workers": 2} if vectorization in ("workers", "auto") else {}
    options = {"num_envs": 3, "rollout_steps": 8, "critic_epochs": 1, **workers}
    return small(Walk, vectorization=vectorization, **options)


def learn(agent: TRPO) -> None:
    """Up to the end of the training."""
    agent.learn(TOTAL - agent.num_timesteps, progress_bar=False)


@pytest.fixture(scope="module")
def undisturbed() -> torch.Tensor:
    with agent_of("sync") as agent:
        learn(agent)
        return weights(agent)


def processes_of(agent: TRPO) -> list[Any]:
    env: Any = getattr(agent.env, "current", agent.env)
    return list(env.processes if hasattr(env, "processes") else env.vector.processes)


def assert_alive(agent: TRPO, path: Path) -> None:
    """All but learning."""
    agent.predict(np.zeros(2))
    agent.evaluate(1, progress_bar=False)
    with TRPO.load(agent.save(path), Walk) as again:
        assert torch.equal(weights(again), weights(agent))
        assert again.num_timesteps == agent.num_timesteps


@pytest.mark.reliability("closed_agent")
@pytest.mark.parametrize("updates", [0, 1])
@pytest.mark.parametrize("vectorization", KINDS)
def test_a_closed_agent_saves_and_learns_on(
    tmp_path: Path, undisturbed: torch.Tensor, vectorization: str, updates: int
) -> None:
    agent = agent_of(vectorization)
    agent.learn(updates * BATCH, progress_bar=False)
    agent.close()
    assert_alive(agent, tmp_path / "closed")
    learn(agent)
    agent.close()
    assert torch.equal(weights(agent), undisturbed)


@pytest.mark.reliability("closed_agent")
def test_an_environment_that_cannot_be_stepped_once_closed_is_made_anew(
    undisturbed: torch.Tensor,
) -> None:
    class Viewer(Walk):
        closed = False

        def step(self, action: Any) -> Any:
            assert not self.closed
            return super().step(action)

        def close(self) -> None:
            self.closed = True

    agent = small(Viewer, num_envs=3, rollout_steps=8, critic_epochs=1)
    agent.learn(BATCH, progress_bar=False)
    agent.close()
    learn(agent)
    agent.close()
    assert torch.equal(weights(agent), undisturbed)


@pytest.mark.reliability("killed_process")
@pytest.mark.parametrize("updates", [0, 1])
@pytest.mark.parametrize("vectorization", ["async", "workers"])
def test_a_process_that_was_killed_between_two_calls_is_named_and_replaced(
    tmp_path: Path, undisturbed: torch.Tensor, vectorization: str, updates: int
) -> None:
    agent = agent_of(vectorization)
    agent.learn(updates * BATCH, progress_bar=False)
    killed = processes_of(agent)[1]
    os.kill(killed.pid, signal.SIGKILL)
    wait_until(lambda: not runs(killed.pid))
    assert_alive(agent, tmp_path / "killed")
    with pytest.raises(EnvironmentFault, match=r"environment \d.*: its process died \(SIGKILL\)"):
        learn(agent)
    assert_alive(agent, tmp_path / "after")
    learn(agent)
    agent.close()
    assert torch.equal(weights(agent), undisturbed)


@pytest.mark.parametrize("vectorization", ["async", "workers"])
def test_closing_after_a_process_was_killed_is_quiet(vectorization: str) -> None:
    agent = agent_of(vectorization)
    processes = processes_of(agent)
    os.kill(processes[0].pid, signal.SIGKILL)
    agent.close()
    assert not multiprocessing.active_children()


class Moment:
    """Does something when so many lines of ours and of what steps environments have been run."""

    def __init__(self, at: int, act: Callable[[], Any]) -> None:
        self.at, self.act, self.lines = at, act, 0
        self.pid = os.getpid()  # a process that is forked meanwhile counts lines of its own

    def __enter__(self) -> Self:
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, _: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(WATCHED) else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.at and os.getpid() == self.pid:
                self.act()
        return self._line


@cache
def lines_of(vectorization: str) -> int:
    """How many a whole training has."""
    with agent_of(vectorization) as agent, Moment(0, lambda: None) as counted:
        learn(agent)
    return counted.lines


def disturbed(vectorization: str, act: Callable[[TRPO], Any], seed: int) -> tuple[TRPO, list[Any]]:
    """A training in which something is done at two moments, and what it raised."""
    rng = np.random.default_rng(seed)
    lines = lines_of(vectorization)
    agent, raised = agent_of(vectorization), []
    for _ in range(2):
        try:
            with Moment(int(rng.integers(1, int(0.9 * lines))), lambda: act(agent)):
                learn(agent)
        except (KeyboardInterrupt, EnvironmentFault) as error:
            raised.append(error)
    return agent, raised


# Python drops an exception that a signal raises in a finalizer: then nothing was interrupted.
@pytest.mark.reliability("interrupted_learn")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("vectorization", KINDS)
def test_an_interrupt_at_any_moment_changes_no_bit(
    tmp_path: Path, undisturbed: torch.Tensor, vectorization: str, seed: int
) -> None:
    struck = []

    def interrupt(_: TRPO) -> None:
        struck.append(1)
        os.kill(os.getpid(), signal.SIGINT)

    agent, _ = disturbed(vectorization, interrupt, seed)
    assert struck
    agent.predict(np.zeros(2))
    agent.save(tmp_path / "interrupted")
    learn(agent)
    agent.close()
    assert torch.equal(weights(agent), undisturbed)
    assert not multiprocessing.active_children()


@pytest.mark.reliability("killed_process")
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("vectorization", ["async", "workers"])
def test_a_process_killed_at_any_moment_is_named_and_changes_no_bit(
    tmp_path: Path, undisturbed: torch.Tensor, vectorization: str, seed: int
) -> None:
    def kill(agent: TRPO) -> None:
        processes = processes_of(agent)
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            if processes and processes[-1].pid is not None:
                os.kill(processes[-1].pid, signal.SIGKILL)

    agent, raised = disturbed(vectorization, kill, seed)
    assert all("its process died (SIGKILL)" in str(error) for error in raised)
    agent.save(tmp_path / "killed")
    learn(agent)
    agent.close()
    assert torch.equal(weights(agent), undisturbed)


@pytest.mark.reliability("interrupted_learn")
def test_a_vector_given_whole_that_was_interrupted_says_what_is_lost(tmp_path: Path) -> None:
    vector = gymnasium.vector.AsyncVectorEnv([Walk, Walk])
    agent = TRPO(vector, rollout_steps=8, seed=0, hidden_sizes=(8,))
    agent.learn(16, progress_bar=False)
    wait, calls = vector.step_wait, []

    def interrupted(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return wait(*given, **named)

    vector.step_wait = interrupted
    with pytest.raises(KeyboardInterrupt):
        agent.learn(16, progress_bar=False)
    with pytest.raises(EnvironmentFault, match=r"given whole .* load it with a new one \(env=\)"):
        agent.learn(16, progress_bar=False)
    path = agent.save(tmp_path / "saved")
    agent.close()
    with TRPO.load(path, gymnasium.vector.AsyncVectorEnv([Walk, Walk])) as again:
        again.learn(16, progress_bar=False)


@pytest.mark.reliability("interrupted_learn")
@pytest.mark.parametrize("method", ["reset_async", "step_async", "call_async"])
def test_an_interrupt_while_async_asks_its_processes_leaves_no_stray_answer(
    monkeypatch: pytest.MonkeyPatch, undisturbed: torch.Tensor, method: str
) -> None:
    """gymnasium notes what it waits for once all are asked: until then, some owe answers."""
    agent = agent_of("async")
    ask = getattr(gymnasium.vector.AsyncVectorEnv, method)

    def interrupted(vector: Any, *given: Any, **named: Any) -> None:
        state = vector._state
        ask(vector, *given, **named)
        vector._state = state
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(gymnasium.vector.AsyncVectorEnv, method, interrupted)
    with pytest.raises(KeyboardInterrupt):
        learn(agent)
    learn(agent)
    agent.close()
    assert torch.equal(weights(agent), undisturbed)


@pytest.mark.reliability("interrupted_learn")
def test_an_interrupt_while_a_fault_is_handled_keeps_the_last_whole_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = TRPO(Walk, run_dir=tmp_path, num_envs=1, rollout_steps=8, save_every=100, seed=0)
    steps = 0

    def step(_: Any, action: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > 20:
            raise ZeroDivisionError("of the third rollout")
        return walk(_, action)

    walk = Walk.step
    monkeypatch.setattr(Walk, "step", step)
    load = agent.learner.load_state_dict

    def interrupting(*given: Any, **named: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        load(*given, **named)

    monkeypatch.setattr(agent.learner, "load_state_dict", interrupting)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(64, progress_bar=False)
    monkeypatch.undo()
    (newest,) = RunDirectory(tmp_path).rolling()
    assert load_checkpoint(newest)["progress"]["num_timesteps"] == 16 == agent.num_timesteps


@pytest.mark.reliability("interrupted_learn")
def test_a_second_interrupt_leaves_no_half_of_an_update(
    monkeypatch: pytest.MonkeyPatch, undisturbed: torch.Tensor
) -> None:
    agent = agent_of("sync")
    learner = agent.learner
    update, load = learner.update, learner.load_state_dict

    def interrupting(call: Callable[..., Any], first: bool) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            returned = call(*given, **named) if first else None
            os.kill(os.getpid(), signal.SIGINT)
            return returned if first else call(*given, **named)

        return run

    monkeypatch.setattr(learner, "update", interrupting(update, first=True))
    monkeypatch.setattr(learner, "load_state_dict", interrupting(load, first=False))
    with pytest.raises(KeyboardInterrupt):
        learn(agent)
    monkeypatch.undo()
    learn(agent)
    assert torch.equal(weights(agent), undisturbed)
