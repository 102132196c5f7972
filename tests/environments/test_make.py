"""make_vector_env: everything a user may name an environment by, and every way that can fail."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from patience import PATIENCE, wait_until
from slow_environment import FOREVER
from toy_environments import Raising, Scripted, Walk
from training_process import runs

from trpo_fast.base.errors import (
    EnvironmentFault,
    EnvironmentSetupError,
    MissingExtraError,
    UnknownEnvironmentError,
    UnsupportedSpaceError,
)
from trpo_fast.base.install import install_line
from trpo_fast.environments import env_pool
from trpo_fast.environments.make import make_vector_env
from trpo_fast.environments.seeded_episodes import episode_seed
from trpo_fast.environments.vector_environment import VectorEnvironment


def observe(env: VectorEnvironment, steps: int = 20) -> list[np.ndarray]:
    """Observations of a fixed sequence of actions."""
    rng = np.random.default_rng(0)
    out = np.empty((env.num_envs, env.observation_width), np.float32)
    env.reset(out)
    seen = [out.copy()]
    shape = (env.num_envs, *(env.action_space.shape or ()))
    for _ in range(steps):
        if isinstance(env.action_space, spaces.Box):
            actions: Any = rng.uniform(-1, 1, shape).astype(env.action_space.dtype)
        else:
            actions = rng.integers(0, 2, shape)
        env.step(actions, out)
        seen.append(out.copy())
    return seen


def test_an_id_a_spec_a_factory_and_a_process_each_give_the_same_episodes() -> None:
    ways: list[Any] = [
        make_vector_env("CartPole-v1", num_envs=2, seed=3),
        make_vector_env(gym.spec("CartPole-v1"), num_envs=2, seed=3),
        make_vector_env(lambda: gym.make("CartPole-v1"), num_envs=2, seed=3),
        make_vector_env("CartPole-v1", num_envs=2, seed=3, vectorization="async"),
    ]
    expected = observe(ways[0])
    for env in ways[1:]:
        np.testing.assert_array_equal(observe(env), expected)
        assert env.resumable
        env.close()
    other = observe(make_vector_env("CartPole-v1", num_envs=2, seed=4))
    assert not np.array_equal(other, expected)
    assert not np.array_equal(expected[0][0], expected[0][1])


def test_one_env_object_is_a_vector_of_one() -> None:
    env = make_vector_env(gym.make("CartPole-v1"), num_envs=8, seed=3)
    assert env.num_envs == 1
    first_alone = [rows[:1] for rows in observe(make_vector_env("CartPole-v1", num_envs=1, seed=3))]
    np.testing.assert_array_equal(observe(env), first_alone)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_users_vector_environment_is_used_as_it_is(mode: AutoresetMode) -> None:
    given = SyncVectorEnv([Scripted] * 3, autoreset_mode=mode)
    env = make_vector_env(given, num_envs=8, seed=0)
    assert env.vector is given
    assert env.num_envs == 3
    assert env.autoreset_mode == mode
    assert not env.resumable
    assert env.running_episodes() == []


def test_a_vector_environment_that_does_not_state_its_mode_is_taken_as_next_step() -> None:
    given = SyncVectorEnv([Scripted])
    del given.metadata["autoreset_mode"]
    with pytest.warns(UserWarning, match="NEXT_STEP"):
        assert make_vector_env(given).autoreset_mode == AutoresetMode.NEXT_STEP


def test_constructor_arguments_reach_every_environment() -> None:
    env = make_vector_env(Scripted, num_envs=2, env_kwargs={"index": 7})
    assert observe(env, 1)[0][:, 0].tolist() == [7, 7]
    env = make_vector_env("Pendulum-v1", num_envs=2, env_kwargs={"g": 1.5})
    assert [e.unwrapped.g for e in env.vector.envs] == [1.5, 1.5]


def test_a_seed_is_drawn_and_kept_when_none_is_given() -> None:
    first, second = (make_vector_env("CartPole-v1", num_envs=1) for _ in range(2))
    assert first.seed != second.seed
    again = make_vector_env("CartPole-v1", num_envs=1, seed=first.seed)
    np.testing.assert_array_equal(observe(again), observe(first))


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("cartpole-v1", "CartPole-v1"),
        ("CartPole-v7", "CartPole-v1"),
        ("HalfCheeta-v5", "HalfCheetah-v5"),
        ("Pendulum-v9", "Pendulum-v1"),
    ],
)
def test_an_unknown_id_gets_a_suggestion(name: str, suggested: str) -> None:
    with pytest.raises(UnknownEnvironmentError, match=f"Did you mean .*{suggested}"):
        make_vector_env(name)


def test_an_id_like_no_other_gets_advice() -> None:
    with pytest.raises(UnknownEnvironmentError, match=r"gymnasium\.register"):
        make_vector_env("Zzzzqqqq-v0")
    with pytest.raises(EnvironmentSetupError, match="no_such_module"):
        make_vector_env("no_such_module:Thing-v0")


@pytest.mark.parametrize(
    ("error", "extra"),
    [
        (gym.error.DependencyNotInstalled("MuJoCo is not installed, run ..."), "mujoco"),
        (gym.error.DependencyNotInstalled("Box2D is not installed ..."), "box2d"),
        (ModuleNotFoundError("No module named 'mujoco'"), "mujoco"),
    ],
)
def test_a_missing_extra_gets_the_install_line(error: Exception, extra: str) -> None:
    def make() -> Any:
        raise error

    with pytest.raises(MissingExtraError, match=re.escape(install_line(extra))):
        make_vector_env(make)


def test_missing_envpool_gets_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env_pool, "is_installed", lambda: False)
    with pytest.raises(MissingExtraError, match=re.escape(install_line("envpool"))):
        make_vector_env("CartPole-v1", vectorization="envpool")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs must be a whole number >= 1, got 0"),
        ({"num_envs": 2.5}, "num_envs must be a whole number"),
        ({"vectorization": "threads"}, "must be one of auto, .*, envpool, tensor; got"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"env_kwargs": {"wind": 3}}, "CartPole-v1 could not be made with .*wind"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvironmentSetupError, match=message):
        make_vector_env("CartPole-v1", **arguments)


@pytest.mark.parametrize("env", [None, 3, [], {"id": "CartPole-v1"}])
def test_what_is_no_environment_is_named(env: Any) -> None:
    with pytest.raises(EnvironmentSetupError, match=r"env is .*; it must be an id such as"):
        make_vector_env(env)


def test_what_is_already_made_takes_no_constructor_arguments() -> None:
    for made in (gym.make("CartPole-v1"), SyncVectorEnv([Scripted])):
        with pytest.raises(EnvironmentSetupError, match=r"env_kwargs \['x'\] come too late"):
            make_vector_env(made, env_kwargs={"x": 1})
    with pytest.raises(EnvironmentSetupError, match="pass its id or a function"):
        make_vector_env(gym.make("CartPole-v1"), vectorization="async")


def test_a_factory_must_make_an_environment() -> None:
    with pytest.raises(
        EnvironmentSetupError, match=r"returned SyncVectorEnv, not a gymnasium\.Env"
    ):
        make_vector_env(lambda: SyncVectorEnv([Scripted]))


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_unsupported_spaces_are_refused_before_anything_runs(vectorization: str) -> None:
    class Wordy(Scripted):
        observation_space = spaces.Text(4)

    class Composite(Scripted):
        action_space = spaces.Dict({"a": spaces.Text(2)})

    for kind in (Wordy, Composite):
        with pytest.raises(UnsupportedSpaceError, match="Supported: "):
            make_vector_env(kind, num_envs=2, vectorization=vectorization)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("at", [0, 3])
def test_an_exception_in_an_environment_names_it_and_leaves_no_process(
    vectorization: str, at: int
) -> None:
    env = make_vector_env(_third_raises(at), num_envs=3, seed=0, vectorization=vectorization)
    processes = getattr(env.vector, "processes", [])
    with pytest.raises(EnvironmentFault, match="environment 2 raised ZeroDivisionError") as caught:
        observe(env)
    fault = caught.value
    assert (fault.env_index, fault.step) == (2, at)
    assert 'raise self.error("broken on purpose")' in fault.traceback
    if vectorization == "async":
        assert 'raise self.error("broken on purpose")' in "".join(fault.__notes__)
    assert not any(process.is_alive() for process in processes)
    env.close()


class UnpicklableError(Exception):
    """Cannot be rebuilt from its text, and holds what cannot be sent."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.handle = lambda: code


def test_an_exception_that_cannot_be_pickled_still_arrives() -> None:
    env = make_vector_env(
        lambda: Raising(2, error=UnpicklableError), num_envs=2, seed=0, vectorization="async"
    )
    with pytest.raises(EnvironmentFault, match="raised UnpicklableError: broken on purpose"):
        observe(env)


def _third_raises(at: int) -> Any:
    made: list[int] = []

    def make() -> gym.Env[Any, Any]:
        # environments are made in order in sync mode; worker processes count from a copy
        made.append(1)
        return RaisesAtIndexTwo(at)

    return make


class RaisesAtIndexTwo(Raising):
    """Misbehaves only under the seed of environment 2 of seed 0."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if seed != episode_seed(0, 2, 0):
            self.at = 10**6
        return super().reset(seed=seed, options=options)


def test_a_constructor_that_fails_in_a_worker_only_is_reported(tmp_path: Path) -> None:
    """The probe in this process works; every later construction raises."""
    marker = tmp_path / "made"

    def make() -> Scripted:
        if marker.exists() and os.getpid() != int(marker.read_text()):
            raise ZeroDivisionError("broken on purpose")
        marker.write_text(str(os.getpid()))
        return Scripted()

    with pytest.raises(
        EnvironmentFault, match=r"environment . raised .*ZeroDivisionError"
    ) as caught:
        make_vector_env(make, num_envs=2, vectorization="async")
    assert 'raise ZeroDivisionError("broken on purpose")' in caught.value.traceback
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_while_starting_is_reported() -> None:
    parent = os.getpid()

    def make() -> Scripted:
        if os.getpid() != parent:
            os._exit(3)
        return Scripted()

    with pytest.raises(EnvironmentSetupError, match="processes of make could not be started"):
        make_vector_env(make, num_envs=2, vectorization="async")
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_is_named() -> None:
    class Dying(Scripted):
        def step(self, action: Any) -> Any:
            if self.time == 2 and self.np_random_seed % 2 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().step(action)

    env = make_vector_env(
        lambda: Dying(((9, "terminated"),)), num_envs=4, seed=1, vectorization="async"
    )
    doomed = [i for i in range(4) if episode_seed(1, i, 0) % 2 == 0]
    assert doomed
    processes = env.vector.processes
    with pytest.raises(
        EnvironmentFault, match=f"environment {doomed[0]} of .* process died"
    ) as caught:
        observe(env)
    assert caught.value.env_index == doomed[0]
    assert not any(process.is_alive() for process in processes)


def test_a_worker_that_is_dying_and_not_dead_yet_is_named() -> None:
    """As the system ends a process: its files first, and the rest when it finds the time."""

    class Dying(Scripted):
        def step(self, action: Any) -> Any:
            if self.np_random_seed == episode_seed(1, 2, 0):
                for file in list(Path("/proc/self/fd").iterdir()):
                    if file.is_socket():
                        os.close(int(file.name))
                time.sleep(FOREVER)
            return super().step(action)

    env = make_vector_env(Dying, num_envs=4, seed=1, vectorization="async")
    processes = env.vector.processes
    with pytest.raises(EnvironmentFault, match=r"environment 2 of .* process died"):
        observe(env)
    assert not any(process.is_alive() for process in processes)


# gymnasium announces a worker's exception in a warning
@pytest.mark.filterwarnings("ignore:.*ERROR:UserWarning")
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_an_exception_in_a_users_vector_environment_names_the_environment(kind: Any) -> None:
    env = make_vector_env(kind([Scripted, lambda: Raising(2), Scripted]), seed=0)
    with pytest.raises(EnvironmentFault, match=r"environment 1 of .* ZeroDivisionError") as caught:
        observe(env)
    assert caught.value.env_index == 1
    assert "ZeroDivisionError: broken on purpose" in caught.value.traceback


def test_workers_ignore_ctrl_c_and_obey_terminate() -> None:
    env = make_vector_env(Scripted, num_envs=2, seed=0, vectorization="async")
    for process in env.vector.processes:
        os.kill(process.pid, signal.SIGINT)  # there before it can answer anything
    assert len(observe(env)) == 21
    env.vector.processes[0].terminate()
    env.vector.processes[0].join(PATIENCE)
    assert env.vector.processes[0].exitcode == -signal.SIGTERM
    with pytest.raises(EnvironmentFault, match="environment 0"):
        observe(env)


ORPHANS = """
import os, signal, sys
import numpy as np
from trpo_fast.environments.make import make_vector_env
env = make_vector_env("CartPole-v1", num_envs=3, seed=0, vectorization="async")
env.reset(np.empty((3, 4), np.float32))
print(*(process.pid for process in env.vector.processes), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_do_not_outlive_a_killed_parent(run_python: Callable[..., Any]) -> None:
    done = run_python(ORPHANS)
    assert done.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 3
    wait_until(lambda: not any(runs(pid) for pid in pids))


COPIES = """
from trpo_fast.environments.make import make_vector_env
make_vector_env("HalfCheetah-v5", num_envs=4, seed=0)
"""


def test_mujocos_warnings_about_a_model_are_not_repeated(run_python: Callable[..., Any]) -> None:
    pytest.importorskip("mujoco")
    done = run_python(COPIES)
    assert done.returncode == 0
    assert done.stderr.count("settotalmass") <= 1


def test_walks_differ_between_environments_and_episodes() -> None:
    env = make_vector_env(Walk, num_envs=2, seed=0)
    starts = np.concatenate(observe(env, 40))
    assert len(np.unique(starts, axis=0)) == len(starts)


@pytest.mark.reliability("old_or_foreign_id")
@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("HalfCheetah-v2", "no longer has .*Did you mean HalfCheetah-v5"),
        ("Hopper-v3", "Did you mean Hopper-v5"),
        ("ALE/Breakout-v5", "package ale-py registers it.*ale_py:ALE/Breakout-v5"),
        ("BreakoutNoFrameskip-v4", "package ale-py registers it"),
        ("MiniGrid-Empty-5x5-v0", "package minigrid registers it: pip install 'minigrid'"),
        ("FetchReach-v4", "package gymnasium-robotics registers it"),
        ("CartPole-v9", "Did you mean CartPole-v1"),
    ],
)
def test_an_id_of_elsewhere_or_of_old_says_where_it_went(name: str, text: str) -> None:
    with pytest.raises(UnknownEnvironmentError, match=text) as caught:
        make_vector_env(name, num_envs=1)
    assert "trpo-fast[" not in str(caught.value)


def test_an_installed_package_that_does_not_load_is_not_to_be_installed() -> None:
    def broken() -> Any:
        raise ImportError("mujoco: libOSMesa.so.8: cannot open shared object file")

    pytest.importorskip("mujoco")
    with pytest.raises(MissingExtraError, match=r"cannot be imported: .*libOSMesa"):
        make_vector_env(broken, num_envs=1)
