"""Environments stepped by worker processes: the bits of `sync`, and every way that can fail."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from patience import PATIENCE, wait_until
from slow_environment import FOREVER
from test_observation_check import Fractions
from toy_environments import Masked, Raising, Scripted, Walk
from training_process import runs

from trpo_fast.base.errors import EnvironmentFault, EnvironmentSetupError, UnsupportedSpaceError
from trpo_fast.environments.make import make_vector_env
from trpo_fast.environments.seeded_episodes import episode_seed
from trpo_fast.environments.workers import Workers, usable_cores

BOX = spaces.Box(-2, 2, (2, 3), np.float32)
OBSERVATIONS = {
    "box": BOX,
    "wide box": spaces.Box(-1e300, 1e300, (2,), np.float64),
    "bytes": spaces.Box(0, 255, (2, 2), np.uint8),
    "discrete": spaces.Discrete(5, start=-2),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-binary": spaces.MultiBinary(4),
    "dict": spaces.Dict({"a": BOX, "b": spaces.Dict({"c": spaces.Discrete(3)})}),
    "tuple": spaces.Tuple((spaces.Discrete(2), BOX)),
}
ACTIONS = {
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "double": spaces.Box(-1, 1, (1, 2), np.float64),
    "discrete": spaces.Discrete(3, start=4),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-binary": spaces.MultiBinary(4),
}


def shared_names() -> set[str]:
    """What has a name in shared memory."""
    return {path.name for path in Path("/dev/shm").iterdir()}


class Anything(gym.Env[Any, Any]):
    """Samples of any space, which depend on the seed and on every action so far."""

    def __init__(self, observed: str = "box", acted: str = "box") -> None:
        self.observation_space = OBSERVATIONS[observed]
        self.action_space = ACTIONS[acted]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.kept: list[Any] = []
        return self._sample(), {}

    def _sample(self) -> Any:
        # A seed of whatever it was given, kept without a copy: what changes it changes the sample.
        actions = [float(number) for action in self.kept for number in np.ravel(action)]
        mixed = abs(hash((int(self.np_random.integers(1 << 31)), *actions))) % (1 << 31)
        self.observation_space.seed(mixed)
        return self.observation_space.sample()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.kept.append(action)
        over, cut = self.np_random.random(2) < 0.1
        return self._sample(), float(self.np_random.normal()), bool(over), bool(cut), {"x": 1}


def actions_for(env: Any, steps: int) -> list[np.ndarray]:
    space = gym.vector.utils.batch_space(env.action_space, env.num_envs)
    space.seed(1)
    return [space.sample() for _ in range(steps)]


def heard(env: Any, steps: int = 60) -> list[Any]:
    """All that an environment says, and what it would be replayed by."""
    out = np.empty((env.num_envs, env.observation_width), env.observation_dtype)
    with np.errstate(over="ignore"):
        masks = env.reset(out)
        said: list[Any] = [out.copy(), masks]
        for actions in actions_for(env, steps):
            transition = env.step(actions, out)
            said += [*transition, out.copy()]
    return said + [part for episode in env.running_episodes() for part in episode]


def assert_same(one: list[Any], other: list[Any]) -> None:
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a, b, equal_nan=isinstance(a, np.ndarray) and a.dtype.kind == "f")
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None)


def both(kind: Any, num_envs: int = 3, workers: int = 2, **options: Any) -> Iterator[Any]:
    """The environments in this process, then the same in workers."""
    for vectorization in ("sync", "workers"):
        given = options | ({"num_workers": workers} if vectorization == "workers" else {})
        env = make_vector_env(kind, num_envs=num_envs, vectorization=vectorization, seed=5, **given)
        yield env
        env.close()


@pytest.mark.parametrize(
    ("observed", "acted"),
    [*((name, "box") for name in OBSERVATIONS), *(("box", name) for name in ACTIONS)],
)
def test_every_space_gives_the_bits_of_sync(observed: str, acted: str) -> None:
    sync, workers = (heard(env) for env in both(lambda: Anything(observed, acted)))
    assert_same(sync, workers)
    assert any(np.any(part) for part in sync[4::11])  # episodes did end


class Clock(Walk):
    """Shows seconds since 1970 to their last digits, float32's being 128 of them apart."""

    def __init__(self, nested: bool = False) -> None:
        super().__init__()
        self.nested = nested
        if nested:
            parts = {"t": Walk.observation_space, "even": spaces.Discrete(2)}
            self.observation_space = spaces.Dict(parts)

    def _shown(self, position: Any) -> Any:
        clock = 1.7e9 + position
        return {"t": clock, "even": self.time % 2} if self.nested else clock

    def reset(self, **keywords: Any) -> Any:
        position, info = super().reset(**keywords)
        return self._shown(position), info

    def step(self, action: Any) -> Any:
        position, *rest = super().step(action)
        return (self._shown(position), *rest)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("workers", [1, 3])  # 1: the others are in this process's own share
def test_wide_numbers_keep_the_digits_of_sync(nested: bool, workers: int) -> None:
    sync, other = (heard(env) for env in both(lambda: Clock(nested), workers=workers))
    assert_same(sync, other)
    shown = [sync[0], *sync[12:-6:11]]  # what is acted on
    finals = np.concatenate(sync[10:-6:11])  # where episodes were truncated
    assert len(finals)
    for rows in (*shown, finals):
        assert rows.dtype == np.float64
        assert np.all(np.abs(rows[:, -1] - 1.7e9) < 64)
        assert np.any(rows[:, -1] != rows[:, -1].astype(np.float32))


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("num_envs", [1, 7])
@pytest.mark.parametrize("step_timeout", [0.0, PATIENCE])
def test_any_number_of_workers_gives_the_bits_of_sync(
    num_envs: int, workers: int, step_timeout: float
) -> None:
    """With and without a share of this process's own."""
    sync = make_vector_env(Walk, num_envs=num_envs, seed=5)
    expected = heard(sync)
    env = make_vector_env(
        *(Walk,),
        num_envs=num_envs,
        seed=5,
        vectorization="workers",
        num_workers=workers,
        step_timeout=step_timeout,
    )
    assert isinstance(env, Workers)
    assert len(env.processes) == min(workers, num_envs)
    assert_same(expected, heard(env))
    env.close()


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_every_start_method_gives_the_bits_of_sync(method: str) -> None:
    before = multiprocessing.get_start_method()
    names = shared_names()
    multiprocessing.set_start_method(method, force=True)
    try:
        # a function that pickle cannot send
        sync, workers = (heard(env) for env in both(lambda: gym.make("CartPole-v1")))
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert_same(sync, workers)
    assert shared_names() <= names


@pytest.mark.parametrize("place", ["observation", "info", "method"])
def test_action_masks_arrive(place: str) -> None:
    for env in both(lambda: Masked(place, (3, 2)), num_envs=3, workers=2):
        out = np.empty((3, 1), np.float32)
        masks = env.reset(out)
        for _ in range(13):
            assert masks.tolist() == [
                [i == t % 3 for i in range(3)] + [t % 2 == 0, t % 2 == 1]
                for t in out[:, 0].astype(int)
            ]
            blocks = np.split(masks, [3], axis=1)
            masks = env.step(np.stack([b.argmax(axis=1) for b in blocks], 1), out).action_masks
        words = {"observation": "entry of the", "info": "infos[", "method": "action_masks()"}
        assert words[place] in str(env.mask_source)


class SometimesMasked(Scripted):
    """Gives masks in some environments and at some steps alone: those of an even seed, later."""

    def step(self, action: Any) -> Any:
        *most, _ = super().step(action)
        even = self.np_random_seed % 2 == 0
        return (*most, {"action_mask": [True, even]} if self.time == 2 else {})

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        observation, _ = super().reset(seed=seed, options=options)
        return observation, {"action_mask": [True, True]} if seed == episode_seed(5, 0, 0) else {}


def test_masks_of_some_environments_are_those_of_sync() -> None:
    """The first one's mask at its reset tells that the others' later ones are meant, too."""
    sync, workers = (heard(env, 12) for env in both(SometimesMasked, num_envs=4, workers=3))
    assert_same(sync, workers)
    assert not np.all(sync[1 + 11 * 2])


def test_some_environments_can_begin_anew() -> None:
    found = []
    for env in both(Walk, num_envs=4, workers=2):
        said = []
        for where in ([True, False, False, False], [False, True, False, True]):
            said += heard(env, 5)
            out = np.zeros((4, 2), np.float32)
            assert env.reset_where(np.array(where), out, None) is None
            assert out.any(axis=1).tolist() == where
            said += [out.copy(), *(n for n, _ in env.running_episodes())]
        found.append(said)
    assert_same(*found)


@pytest.mark.parametrize(("kept", "entered"), [("sync", "workers"), ("workers", "sync")])
def test_running_episodes_can_be_entered_from_either_side(kept: str, entered: str) -> None:
    def make(vectorization: str) -> Any:
        return make_vector_env(Walk, num_envs=3, seed=5, vectorization=vectorization)

    original, other = make(kept), make(entered)
    heard(original, 23)
    out, again = np.empty((2, 3, 2), np.float32)
    actions = actions_for(original, 40)
    original.step(actions[0], out)
    other.replay(original.running_episodes(), again)
    np.testing.assert_array_equal(again, out)
    for action in actions[1:]:
        assert_same([*original.step(action, out), out], [*other.step(action, again), again])
    original.close()
    other.close()


def test_what_has_ended_is_not_asked() -> None:
    env = make_vector_env(Walk, num_envs=3, seed=5, vectorization="workers")
    heard(env, 9)
    env.close()
    env.close()
    with pytest.raises(EnvironmentFault, match="processes of Walk were ended"):
        env.running_episodes()


# Faults


def workers_of(kind: Any, num_envs: int = 3, **options: Any) -> Workers:
    """A process for each environment."""
    env = make_vector_env(
        kind, num_envs=num_envs, seed=1, vectorization="workers", num_workers=num_envs, **options
    )
    assert isinstance(env, Workers)
    return env


class Doomed(Scripted):
    """Does something to itself at step 3 of the first episode of environment 2 of seed 1."""

    def __init__(self, doom: Callable[[], Any]) -> None:
        super().__init__(((9, "terminated"),))
        self.doom = doom

    def step(self, action: Any) -> Any:
        if self.time == 2 and self.np_random_seed == episode_seed(1, 2, 0):
            self.doom()
        return super().step(action)


def always(env: Any, actions: list[int]) -> None:
    """The same actions for five steps."""
    out = np.empty((env.num_envs, env.observation_width), np.float32)
    env.reset(out)
    for _ in range(5):
        env.step(np.array(actions), out)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("doom", "words"),
    [
        (kill, r"its process died \(SIGKILL\)"),
        (lambda: os._exit(7), r"its process died \(exit code 7\)"),
    ],
)
def test_a_worker_that_dies_is_named_with_step_and_action(doom: Any, words: str) -> None:
    env = workers_of(lambda: Doomed(doom))
    processes = env.processes
    pattern = rf"environment 2 of .*{words} in step\(\) \(step 3, action 1\)"
    with pytest.raises(EnvironmentFault, match=pattern) as caught:
        always(env, [0, 0, 1])
    assert (caught.value.env_index, caught.value.step, caught.value.action) == (2, 3, 1)
    assert ended(processes)
    env.close()


def test_the_environment_under_way_is_named_among_those_of_its_worker() -> None:
    env = make_vector_env(
        lambda: Doomed(kill), num_envs=5, seed=1, vectorization="workers", num_workers=1
    )
    with pytest.raises(EnvironmentFault, match=r"environment 2 of .*SIGKILL") as caught:
        heard(env, 5)
    assert caught.value.env_index == 2


def ended(processes: list[Any]) -> bool:
    """All of them, which were waited for, so that their objects are closed."""
    found = []
    for process in processes:
        with pytest.raises(ValueError, match="process object is closed"):
            found.append(process.pid)
    return not found


def test_a_worker_that_hangs_is_named_with_step_and_action() -> None:
    env = workers_of(lambda: Doomed(lambda: time.sleep(FOREVER)), step_timeout=1.0)
    processes = env.processes
    pattern = r"environment 2 of .* did not answer within 1 s in step\(\) \(step 3, action \d\)"
    with pytest.raises(EnvironmentFault, match=pattern):
        heard(env, 5)
    assert ended(processes)
    env.close()


class SlowToBegin(Scripted):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed == episode_seed(1, 1, 0):
            time.sleep(FOREVER)
        return super().reset(seed=seed, options=options)


def test_a_reset_that_hangs_is_named() -> None:
    env = workers_of(SlowToBegin, step_timeout=1.0)
    with pytest.raises(EnvironmentFault, match=r"environment 1 of .* 1 s in reset\(\)") as caught:
        env.reset(np.empty((3, 3), np.float32))
    assert caught.value.env_index == 1


@pytest.mark.parametrize("workers", [1, 3])  # 1: in this process's own share
@pytest.mark.parametrize("at", [0, 3])
def test_an_exception_is_that_of_sync(at: int, workers: int) -> None:
    class ThirdRaises(Raising):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            if seed != episode_seed(5, 2, 0):
                self.at = 10**6
            return super().reset(seed=seed, options=options)

    faults = []
    for env in both(lambda: ThirdRaises(at), workers=workers):
        with pytest.raises(EnvironmentFault, match="environment 2 raised ZeroDiv") as caught:
            heard(env)
        faults.append(caught.value)
    sync, other = faults
    assert str(sync) == str(other)
    assert (sync.env_index, sync.step, sync.action) == (other.env_index, other.step, other.action)
    for fault in faults:
        assert 'raise self.error("broken on purpose")' in fault.traceback
    if workers == 3:
        assert 'raise self.error("broken on purpose")' in "".join(other.__notes__)


class ThirdHalves(Fractions):
    """Fractions of the third environment alone, in its first episode."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.index = int(seed != episode_seed(5, 2, 0))
        return super().reset(seed=seed, options=options)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("at", "where"), [(0, "reset"), (2, "step"), (3, "step")])
def test_an_observation_that_its_space_cannot_hold_is_refused_as_in_sync(
    at: int, where: str, nested: bool, workers: int
) -> None:
    """At a reset, amid an episode, and in its last step."""
    faults = []
    lost = rf"environment 2 raised ValueError: .*5, which its space .*int64 cannot.*{where}\(\)"
    for env in both(lambda: ThirdHalves(at, 0, nested), workers=workers):
        with pytest.raises(EnvironmentFault, match=lost) as caught:
            heard(env)
        faults.append(caught.value)
    sync, other = faults
    assert str(sync) == str(other)
    assert (sync.env_index, sync.step, other.env_index, other.step) == (2, at, 2, at)
    assert (sync.action is None) == (at == 0)
    np.testing.assert_array_equal(sync.action, other.action)


class ThirdForbids(Scripted):
    """Gives a mask in the third environment, at step 2 of its first episode."""

    def __init__(self, mask: list[bool]) -> None:
        super().__init__()
        self.mask = mask

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        observation, _ = super().reset(seed=seed, options=options)
        return observation, {"action_mask": [True, True]}

    def step(self, action: Any) -> Any:
        *most, _ = super().step(action)
        wrong = self.time == 2 and self.np_random_seed == episode_seed(5, 2, 0)
        return (*most, {"action_mask": self.mask if wrong else None})


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ([True] * 3, r"raised ValueError: the action mask has 3 entries; .*step 2, action"),
        ([False] * 2, "allows no choice for action 0"),
    ],
)
def test_a_mask_that_cannot_be_is_refused_as_in_sync(
    mask: list[bool], words: str, workers: int
) -> None:
    faults = []
    for env in both(lambda: ThirdForbids(mask), workers=workers):
        with pytest.raises(EnvironmentFault, match=f"environment 2 {words}") as caught:
            heard(env)
        faults.append(caught.value)
    sync, other = faults
    assert str(sync) == str(other)
    assert sync.env_index == other.env_index == 2


def test_of_two_faults_the_first_environments_is_told() -> None:
    """As in sync, which gets no further; here the second is in this process's own share."""
    env = make_vector_env(
        lambda: Raising(2), num_envs=4, seed=1, vectorization="workers", num_workers=1
    )
    with pytest.raises(EnvironmentFault, match="environment 0 raised"):
        heard(env, 3)
    assert not env.processes


class UnsendableError(Exception):
    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.handle = lambda: code


def test_an_exception_that_cannot_be_pickled_still_arrives() -> None:
    env = workers_of(lambda: Raising(2, error=UnsendableError))
    with pytest.raises(EnvironmentFault, match="raised UnsendableError: broken on purpose"):
        heard(env)


class Narrow(Scripted):
    def _observation(self) -> Any:
        found = super()._observation()
        return found[:1] if self.time == 2 else found


def test_an_observation_of_another_size_is_named() -> None:
    env = workers_of(Narrow)
    wrong = r"environment 0 raised ValueError: the observation has shape \(1,\), .*step 2, action"
    with pytest.raises(EnvironmentFault, match=wrong):
        heard(env)


def test_actions_of_another_shape_are_refused() -> None:
    env = workers_of(Walk)
    env.reset(np.empty((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"actions must have shape \(3, 2\), got \(2,\)"):
        env.step(np.zeros(2, np.float32), np.empty((3, 2), np.float32))
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


def test_processes_files_and_memory_are_given_back() -> None:
    def once() -> tuple[int, int]:
        env = make_vector_env(Walk, num_envs=4, seed=5, vectorization="workers", num_workers=2)
        heard(env, 3)
        env.close()
        del env
        gc.collect()
        mapped = Path("/proc/self/maps").read_text().count("memfd:trpo_fast")
        return len(list(Path("/proc/self/fd").iterdir())), mapped

    files, mapped = once()
    for _ in range(5):
        after = once()
        assert after[0] <= files
        assert after[1] <= mapped
    assert not multiprocessing.active_children()


def test_more_processes_than_environments_are_not_started() -> None:
    env = make_vector_env(Walk, num_envs=2, seed=5, vectorization="workers", num_workers=9)
    assert len(env.processes) == 2
    env.close()
    env = make_vector_env(Walk, num_envs=64, seed=5, vectorization="workers")
    assert len(env.processes) == max(1, usable_cores() - 1)
    env.close()
