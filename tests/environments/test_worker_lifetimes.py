"""Worker processes start or say why not, and end with what they held, whatever ends first."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from patience import PATIENCE, wait_until
from slow_environment import FOREVER
from toy_environments import Scripted, Walk
from training_process import runs
from worker_cases import (
    Doomed,
    actions_for,
    always,
    assert_same,
    ended,
    heard,
    kill,
    shared_names,
    workers_of,
)

from trpo_fast.base.errors import EnvironmentFault, EnvironmentSetupError, UnsupportedSpaceError
from trpo_fast.base.threads import usable_cores
from trpo_fast.environments.make import make_vector_env


def test_more_processes_than_environments_are_not_started() -> None:
    env = make_vector_env(Walk, num_envs=2, seed=5, vectorization="workers", num_workers=9)
    assert len(env.processes) == 2
    env.close()
    env = make_vector_env(Walk, num_envs=64, seed=5, vectorization="workers")
    assert len(env.processes) == max(1, usable_cores() - 1)
    env.close()


def test_spaces_that_differ_between_environments_are_refused() -> None:
    class Growing(Scripted):
        made = 0

        def __init__(self) -> None:
            super().__init__()
            type(self).made += 1
            self.observation_space = spaces.Box(0, 1, (self.made // 2 + 1,))

    with pytest.raises(EnvironmentSetupError, match=r"environment \d of Growing has other spaces"):
        workers_of(Growing)
    assert not multiprocessing.active_children()


def test_unsupported_spaces_are_refused_before_anything_runs() -> None:
    class Wordy(Scripted):
        observation_space = spaces.Text(4)

    with pytest.raises(UnsupportedSpaceError, match="Supported: "):
        workers_of(Wordy)


def test_one_object_cannot_be_in_several_processes() -> None:
    with pytest.raises(EnvironmentSetupError, match="pass its id or a function"):
        make_vector_env(gym.make("CartPole-v1"), vectorization="workers")


def only_here(then: Callable[[], Any]) -> Callable[[], Scripted]:
    """A factory that does something else in every other process."""
    here = os.getpid()

    def make() -> Scripted:
        if os.getpid() != here:
            then()
        return Scripted()

    return make


def test_a_constructor_that_raises_in_a_worker_is_reported() -> None:
    with pytest.raises(EnvironmentFault, match=r"environment 0 raised .*ZeroDiv") as caught:
        workers_of(only_here(lambda: 1 / 0))
    assert "1 / 0" in caught.value.traceback
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_while_starting_is_reported() -> None:
    with pytest.raises(EnvironmentSetupError, match=r"could not be started: .*exit code 3"):
        workers_of(only_here(lambda: os._exit(3)))
    assert not multiprocessing.active_children()


def test_workers_ignore_ctrl_c_and_obey_terminate() -> None:
    env = workers_of(Scripted)
    for process in env.processes:
        os.kill(process.pid, signal.SIGINT)
    heard(env, 9)
    first = env.processes[0]
    first.terminate()
    first.join(PATIENCE)
    assert first.exitcode == -signal.SIGTERM
    with pytest.raises(EnvironmentFault, match=r"environment 0 of Scripted.*SIGTERM"):
        heard(env)


def test_after_a_fault_a_reset_begins_in_new_processes() -> None:
    env = workers_of(lambda: Doomed(kill))
    with pytest.raises(EnvironmentFault):
        heard(env, 5)
    out = np.empty((3, 3), np.float32)
    with pytest.raises(EnvironmentFault, match="have ended: reset begins anew"):
        env.step(np.zeros(3, np.int64), out)
    env.reset(out)
    assert out.tolist() == [[0, 0, 0]] * 3
    assert len(env.processes) == 3
    env.close()


def test_what_has_ended_is_not_asked() -> None:
    env = make_vector_env(Walk, num_envs=3, seed=5, vectorization="workers")
    heard(env, 9)
    env.close()
    env.close()
    with pytest.raises(EnvironmentFault, match="processes of Walk were ended"):
        env.running_episodes()


def test_a_stuck_worker_does_not_keep_close_from_returning(tmp_path: Path) -> None:
    marker = tmp_path / "stuck"

    def stay() -> None:
        marker.touch()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(FOREVER)

    env = workers_of(lambda: Doomed(stay))
    processes = env.processes
    before = signal.signal(signal.SIGUSR1, interrupt)
    threading.Thread(
        target=lambda: (wait_until(marker.exists), os.kill(os.getpid(), signal.SIGUSR1))
    ).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            always(env, [0, 0, 0])
    finally:
        signal.signal(signal.SIGUSR1, before)
    env.close()
    assert ended(processes)


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


ORPHANS = """
import os, signal, sys, threading, time
import numpy as np
from trpo_fast.environments.make import make_vector_env
from toy_environments import Scripted

class Stuck(Scripted):
    def step(self, action):
        open(os.path.join(PLACE, str(os.getpid())), "w").close()
        time.sleep(36000)

def kill():
    while len(os.listdir(PLACE)) < COUNT:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

env = make_vector_env(Stuck, num_envs=3, seed=0, vectorization="workers", num_workers=3)
env.reset(np.empty((3, 3), np.float32))
print(*(process.pid for process in env.processes), flush=True)
threading.Thread(target=kill).start()
if COUNT:
    env.step(np.zeros(3, np.int64), np.empty((3, 3), np.float32))
"""


@pytest.mark.reliability("orphans")
@pytest.mark.parametrize("stuck", [0, 3])
def test_nothing_outlives_a_killed_trainer(
    run_python: Callable[..., Any], tmp_path: Path, stuck: int
) -> None:
    shared = shared_names()
    code = ORPHANS.replace("PLACE", repr(str(tmp_path))).replace("COUNT", str(stuck))
    done = run_python(code, PYTHONPATH=str(Path(__file__).parents[1]))
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 3
    wait_until(lambda: not any(runs(pid) for pid in pids))
    assert shared_names() <= shared


def test_what_nobody_holds_ends_beside_younger_processes() -> None:
    one, other = (
        make_vector_env(Walk, num_envs=4, seed=5, vectorization="workers", num_workers=2)
        for _ in range(2)
    )
    processes = one.processes
    del one
    gc.collect()
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [1, 1]
    heard(other, 3)
    other.close()


@pytest.mark.parametrize("closed", [True, False])
def test_processes_files_and_memory_are_given_back(closed: bool) -> None:
    def once() -> tuple[int, int]:
        env = make_vector_env(Walk, num_envs=4, seed=5, vectorization="workers", num_workers=2)
        heard(env, 3)
        if closed:
            env.close()
        del env
        gc.collect()
        for process in multiprocessing.active_children():  # that nobody closed: they notice
            process.join()
        mapped = Path("/proc/self/maps").read_text().count("memfd:trpo_fast")
        return len(list(Path("/proc/self/fd").iterdir())), mapped

    files, mapped = once()
    for _ in range(5):
        after = once()
        assert after[0] <= files
        assert after[1] <= mapped
    assert not multiprocessing.active_children()


def in_a_fork(do: Callable[[], Any]) -> Any:
    """What a forked copy of this program makes of something."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=lambda: theirs.send(do()))
    process.start()
    theirs.close()
    assert ours.poll(PATIENCE)
    told = ours.recv()
    process.join(PATIENCE)
    assert process.exitcode == 0
    return told


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("vectorization", ["workers", "async"])
def test_a_fork_of_the_trainer_has_processes_of_its_own(vectorization: str) -> None:
    env = make_vector_env(Walk, num_envs=3, seed=5, vectorization=vectorization)
    heard(env, 9)
    episodes, actions = env.running_episodes(), actions_for(env, 9)

    def go_on() -> list[Any]:
        out = np.empty((env.num_envs, env.observation_width), env.observation_dtype)
        if env.ended:  # as a collector asks before each rollout
            env.replay(episodes, out)
        found = [(env.step(action, out).rewards, out.copy()) for action in actions]
        env.close()
        return [part for row in found for part in row]

    assert not env.ended
    assert in_a_fork(env.close) is None
    assert_same(in_a_fork(go_on), go_on())


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_leaves_alone_the_processes_of_a_vector_that_was_given_whole() -> None:
    ours, undisturbed = (
        make_vector_env(gym.vector.AsyncVectorEnv([Walk] * 2), num_envs=2, seed=5) for _ in range(2)
    )
    out, same = np.empty((2, 2)), np.empty((2, 2))
    actions = actions_for(ours, 3)
    ours.reset(out)
    undisturbed.reset(same)

    def told() -> list[str]:
        with pytest.raises(EnvironmentFault) as stepped:
            ours.step(actions[0], out)
        with pytest.raises(EnvironmentFault) as begun:
            ours.reset(out)
        return [str(stepped.value), str(begun.value)]

    assert all("are another program's" in text for text in in_a_fork(told))
    for action in actions:
        assert np.array_equal(
            ours.step(action, out).rewards, undisturbed.step(action, same).rewards
        )
        assert np.array_equal(out, same)
    ours.close()
    undisturbed.close()


FORKING = """
import os, sys
import numpy as np
from trpo_fast.environments.make import make_vector_env

if __name__ == "__main__":
    env = make_vector_env("CartPole-v1", num_envs=2, seed=5, vectorization=sys.argv[1])
    out = np.empty((2, 4), np.float32)
    env.reset(out)
    pid = os.fork()
    if not pid:
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    env.step(np.zeros(2, np.int64), out)
    env.close()
    print("went on")
"""


@pytest.mark.parametrize("vectorization", ["workers", "async"])
def test_a_fork_that_exits_ends_none_of_the_trainer_s_processes(
    vectorization: str, tmp_path: Path
) -> None:
    """As multiprocessing would, for it finds them among its own children."""
    script = tmp_path / "forking.py"
    script.write_text(FORKING)
    ran = subprocess.run(
        [sys.executable, str(script), vectorization],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.stdout == "went on\n", ran.stderr
    assert "Traceback" not in ran.stderr
