"""How environments in other processes end: together, soon, with their trainer, and in words."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import wait_until
from slow_environment import FOREVER
from toy_environments import Scripted
from training_process import runs

from trpo_fast.base.errors import EnvironmentFault, EnvironmentSetupError
from trpo_fast.environments import processes, silence
from trpo_fast.environments.make import make_vector_env
from trpo_fast.environments.seeded_episodes import episode_seed

IN_PROCESSES = ["async", "workers"]


def vector_of(kind: Any, vectorization: str, num_envs: int = 3, **options: Any) -> Any:
    """A process for each environment where they are in processes."""
    if vectorization == "workers":
        options["num_workers"] = num_envs
    env = make_vector_env(
        kind, num_envs=num_envs, seed=1, vectorization=vectorization, step_timeout=0.0, **options
    )
    env.reset(np.empty((num_envs, env.observation_width), np.float32))
    return env


def processes_of(env: Any) -> list[Any]:
    return list(env.processes if hasattr(env, "processes") else env.vector.processes)


def step(env: Any) -> None:
    env.step(np.zeros(env.num_envs, np.int64), np.empty((env.num_envs, 3), np.float32))


@pytest.mark.reliability("orphans")
@pytest.mark.parametrize("vectorization", IN_PROCESSES)
def test_stopped_processes_are_ended_together(vectorization: str) -> None:
    env = vector_of(Scripted, vectorization, num_envs=6)
    pids = [process.pid for process in processes_of(env)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    env.close()
    # one after the other they would take three times as long
    assert time.monotonic() - began < 4 * processes.LAST_WORDS
    assert not any(runs(pid) for pid in pids)


class Unclosable(Scripted):
    """Does something else than to close, in environment 1 of seed 1."""

    def __init__(self, instead: Callable[[], Any]) -> None:
        super().__init__()
        self.instead = instead
        self.mine = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.mine = self.mine or seed == episode_seed(1, 1, 0)
        return super().reset(seed=seed, options=options)

    def close(self) -> None:
        if self.mine:
            self.instead()


@pytest.mark.reliability("bad_close")
@pytest.mark.parametrize("vectorization", ["sync", "async", "workers"])
def test_what_close_raises_is_a_warning_with_its_environment(
    vectorization: str, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"

    class Last(Unclosable):
        def close(self) -> None:
            super().close()
            if self.np_random_seed == episode_seed(1, 2, 0):
                closed.touch()

    env = vector_of(lambda: Last(lambda: 1 / 0), vectorization)
    wrong = r"environment 1 raised ZeroDivisionError: division by zero in close\(\)"
    with pytest.warns(RuntimeWarning, match=wrong):
        env.close()
    assert closed.exists()  # the others are closed
    env.close()  # and no second warning


@pytest.mark.reliability("bad_close")
@pytest.mark.parametrize("vectorization", IN_PROCESSES)
def test_a_close_that_hangs_is_ended_with_a_warning(
    vectorization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "CLOSING", 0.5)
    env = vector_of(lambda: Unclosable(lambda: time.sleep(FOREVER)), vectorization)
    pids = [process.pid for process in processes_of(env)]
    with pytest.warns(RuntimeWarning, match=r"environment 1.* did not return from close\(\)"):
        env.close()
    assert not any(runs(pid) for pid in pids)


class Refusing(Scripted):
    """Cannot be closed at all, as those whose viewer was never opened."""

    def close(self) -> None:
        raise AttributeError("'NoneType' object has no attribute 'close'")


@pytest.mark.parametrize("vectorization", ["sync", "async", "workers"])
def test_what_cannot_be_closed_can_be_stepped(vectorization: str) -> None:
    env = vector_of(Refusing, vectorization)
    step(env)
    with pytest.warns(RuntimeWarning, match="environment 0 raised AttributeError"):
        env.close()


class Slow(Scripted):
    """Takes a while for each step, in environment 1 of seed 1."""

    def step(self, action: Any) -> Any:
        if self.np_random_seed == episode_seed(1, 1, 0):
            time.sleep(0.7)
        return super().step(action)


@pytest.mark.reliability("hung_environment")
@pytest.mark.parametrize("vectorization", IN_PROCESSES)
def test_a_silent_step_is_told_of_and_then_ever_more_rarely(
    vectorization: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(silence, "SILENCE", 0.1)
    env = vector_of(Slow, vectorization)
    for _ in range(2):
        step(env)
    env.close()
    lines = [line for line in capsys.readouterr().err.splitlines() if "waiting" in line]
    # after 0.1 s, 0.2 s, 0.4 s and 0.8 s more, of 1.4 s
    assert 2 <= len(lines) <= 4
    for line in lines:
        assert "environment 1 of Slow" in line
        assert "in step()" in line
        assert "--step-timeout" in line


@pytest.mark.parametrize("vectorization", IN_PROCESSES)
def test_quick_steps_are_not_told_of(
    vectorization: str, capsys: pytest.CaptureFixture[str]
) -> None:
    env = vector_of(Slow, vectorization)
    step(env)
    env.close()
    assert not capsys.readouterr().err


class Hanging(Scripted):
    def step(self, action: Any) -> Any:
        if self.time == 1 and self.np_random_seed == episode_seed(1, 1, 0):
            time.sleep(FOREVER)
        return super().step(action)


@pytest.mark.parametrize("vectorization", IN_PROCESSES)
def test_a_limit_longer_than_the_silence_is_kept(
    vectorization: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(silence, "SILENCE", 0.3)
    env = make_vector_env(
        Hanging, num_envs=3, seed=1, vectorization=vectorization, num_workers=3, step_timeout=1.0
    )
    env.reset(np.empty((3, 3), np.float32))
    step(env)
    began = time.monotonic()
    with pytest.raises(EnvironmentFault, match=r"environment 1 .* within 1 s in step\(\)"):
        step(env)
    assert time.monotonic() - began >= 1.0
    assert "waiting for environment 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("doom", "words"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"its process died \(SIGKILL\)"),
        (lambda: os._exit(7), r"its process died \(exit code 7\)"),
    ],
)
@pytest.mark.reliability("killed_process")
@pytest.mark.parametrize("vectorization", IN_PROCESSES)
def test_a_process_that_dies_says_by_what(vectorization: str, doom: Any, words: str) -> None:
    class Dying(Scripted):
        def step(self, action: Any) -> Any:
            if self.np_random_seed == episode_seed(1, 1, 0):
                doom()
            return super().step(action)

    env = vector_of(Dying, vectorization)
    with pytest.raises(EnvironmentFault, match=f"environment 1 of .*: {words}"):
        step(env)


@pytest.mark.parametrize("vectorization", IN_PROCESSES)
def test_a_process_that_dies_while_starting_says_by_what(vectorization: str) -> None:
    here = os.getpid()

    def make() -> Scripted:
        if os.getpid() != here:
            os._exit(3)
        return Scripted()

    with pytest.raises(EnvironmentSetupError, match=r"could not be started: .*\(exit code 3\)"):
        vector_of(make, vectorization)


ORPHANS = """
import os, signal, sys, threading, time
import numpy as np
from trpo_fast.environments.make import make_vector_env
from toy_environments import Scripted

class Stuck(Scripted):
    def step(self, action):
        open(os.path.join(PLACE, str(os.getpid())), "w").close()
        if STOPPED:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(36000)

def kill():
    while len(os.listdir(PLACE)) < 3:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

def train():
    env = make_vector_env(Stuck, num_envs=3, seed=0, vectorization=KIND, num_workers=3)
    env.reset(np.empty((3, 3), np.float32))
    threading.Thread(target=kill).start()
    env.step(np.zeros(3, np.int64), np.empty((3, 3), np.float32))

if THREAD:
    threading.Thread(target=train).start()
else:
    train()
"""


@pytest.mark.reliability("orphans")
@pytest.mark.parametrize("state", ["busy", "stopped", "of a thread"])
@pytest.mark.parametrize("vectorization", IN_PROCESSES)
def test_no_busy_or_stopped_process_outlives_a_killed_trainer(
    run_python: Callable[..., Any], tmp_path: Path, vectorization: str, state: str
) -> None:
    shared = set(Path("/dev/shm").iterdir())
    place = tmp_path / "pids"
    place.mkdir()
    code = ORPHANS.replace("PLACE", repr(str(place))).replace("KIND", repr(vectorization))
    code = code.replace("STOPPED", str(state == "stopped")).replace(
        "THREAD:", f"{state == 'of a thread'}:"
    )
    done = run_python(code, PYTHONPATH=str(Path(__file__).parents[1]))
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(path.name) for path in place.iterdir()]
    assert len(pids) == 3
    wait_until(lambda: not any(runs(pid) for pid in pids))
    assert set(Path("/dev/shm").iterdir()) <= shared


def test_processes_outlive_the_thread_that_made_them() -> None:
    """The kernel counts a thread's end as that of the parent."""
    for vectorization in IN_PROCESSES:
        made: list[Any] = []
        thread = threading.Thread(
            target=lambda made=made, kind=vectorization: made.append(vector_of(Scripted, kind))
        )
        thread.start()
        thread.join()
        time.sleep(0.1)
        step(made[0])
        made[0].close()
