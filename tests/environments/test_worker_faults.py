"""Faults in worker processes: told as in `sync`, and a death or a hang by its environment."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest
from slow_environment import FOREVER
from toy_environments import Fractions, Raising, Scripted, Walk
from worker_cases import Doomed, always, both, ended, heard, kill, workers_of

from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.environments.make import make_vector_env
from trpo_fast.environments.seeded_episodes import episode_seed


@pytest.mark.reliability("killed_process")
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


@pytest.mark.reliability("hung_environment")
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


@pytest.mark.reliability("hung_environment")
def test_a_reset_that_hangs_is_named() -> None:
    env = workers_of(SlowToBegin, step_timeout=1.0)
    with pytest.raises(EnvironmentFault, match=r"environment 1 of .* 1 s in reset\(\)") as caught:
        env.reset(np.empty((3, 3), np.float32))
    assert caught.value.env_index == 1


def test_a_limit_that_is_over_before_the_wait_begins_counts() -> None:
    class Unhurried(Scripted):
        def reset(self, **given: Any) -> Any:
            time.sleep(0.3)
            return super().reset(**given)

    env = workers_of(Unhurried, step_timeout=1e-9)
    with pytest.raises(EnvironmentFault, match=r"environments? .* did not answer within 1e-09 s"):
        env.reset(np.empty((3, 3), np.float32))


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


@pytest.mark.reliability("outside_its_space", "blame")
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
