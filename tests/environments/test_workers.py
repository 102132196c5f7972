"""Environments stepped by worker processes give the bits of `sync`."""

from __future__ import annotations

import multiprocessing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from patience import PATIENCE
from toy_environments import Masked, Scripted, Walk
from worker_cases import actions_for, assert_same, both, heard, shared_names

from trpo_fast.environments.make import make_vector_env
from trpo_fast.environments.seeded_episodes import episode_seed
from trpo_fast.environments.workers import Workers

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


@pytest.mark.reliability("clock")
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
