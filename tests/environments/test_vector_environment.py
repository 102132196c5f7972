"""One interface over three conventions of resetting: values checked by hand, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from toy_environments import BOTH, TERMINATED, TRUNCATED, Masked, Scripted

from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.environments.action_masks import MaskSource
from trpo_fast.environments.make import make_vector_env
from trpo_fast.environments.vector_environment import VectorEnvironment

SCRIPTS = [
    ((2, TERMINATED), (1, TRUNCATED), (3, BOTH)),
    ((3, TRUNCATED), (2, TRUNCATED)),
]
FACTORIES = [lambda i=i: Scripted(SCRIPTS[i], i) for i in range(2)]


def vector(mode: AutoresetMode, kind: Any = SyncVectorEnv) -> VectorEnvironment:
    return make_vector_env(kind(FACTORIES, autoreset_mode=mode), seed=0)


def rows(env: VectorEnvironment, steps: int) -> tuple[list[Any], np.ndarray]:
    """(transition, observations that follow) of every step, and the first observations."""
    out = np.full((env.num_envs, env.observation_width), np.nan, np.float32)
    env.reset(out)
    first = out.copy()
    taken = []
    for _ in range(steps):
        transition = env.step(np.zeros(env.num_envs, np.int64), out)
        taken.append((transition, out.copy()))
    return taken, first


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_every_row_of_the_modes_without_a_reset_row(mode: AutoresetMode, kind: Any) -> None:
    env = vector(mode, kind)
    taken, first = rows(env, 4)
    env.close()
    # environment 0: episode 0 terminates at step 2, episode 1 is truncated at step 1
    # environment 1: episode 0 is truncated at step 3
    assert first.tolist() == [[0, 0, 0], [1, 0, 0]]
    rewards = [t.rewards.tolist() for t, _ in taken]
    assert rewards == [[1, 1], [2, 2], [11, 3], [21, 11]]
    assert [t.terminated.tolist() for t, _ in taken] == [[0, 0], [1, 0], [0, 0], [0, 0]]
    assert [t.truncated.tolist() for t, _ in taken] == [[0, 0], [0, 0], [1, 1], [0, 0]]
    assert [following.tolist() for _, following in taken] == [
        [[0, 0, 1], [1, 0, 1]],
        [[0, 1, 0], [1, 0, 2]],
        [[0, 2, 0], [1, 1, 0]],
        [[0, 2, 1], [1, 1, 1]],
    ]
    finals = [(t.final_envs.tolist(), t.final_observations.tolist()) for t, _ in taken]
    none: tuple[list[int], list[Any]] = ([], [])
    assert finals == [none, none, ([0, 1], [[0, 1, 1], [1, 0, 3]]), none]
    assert not any(t.resetting.any() for t, _ in taken)
    assert [t.fresh.tolist() for t, _ in taken] == [[0, 0], [1, 0], [1, 1], [0, 0]]


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_every_row_of_the_mode_with_one(kind: Any) -> None:
    env = vector(AutoresetMode.NEXT_STEP, kind)
    taken, _ = rows(env, 5)
    env.close()
    assert [t.rewards.tolist() for t, _ in taken] == [[1, 1], [2, 2], [0, 3], [11, 0], [0, 11]]
    assert [t.truncated.tolist() for t, _ in taken] == [[0, 0], [0, 0], [0, 1], [1, 0], [0, 0]]
    assert [t.resetting.tolist() for t, _ in taken] == [[0, 0], [0, 0], [1, 0], [0, 1], [1, 0]]
    assert [following.tolist() for _, following in taken] == [
        [[0, 0, 1], [1, 0, 1]],
        [[0, 0, 2], [1, 0, 2]],
        [[0, 1, 0], [1, 0, 3]],
        [[0, 1, 1], [1, 1, 0]],
        [[0, 2, 0], [1, 1, 1]],
    ]
    finals = [(t.final_envs.tolist(), t.final_observations.tolist()) for t, _ in taken]
    none: tuple[list[int], list[Any]] = ([], [])
    assert finals == [none, none, ([1], [[1, 0, 3]]), ([0], [[0, 1, 1]]), none]
    assert [t.fresh.tolist() for t, _ in taken] == [[0, 0], [0, 0], [1, 0], [0, 1], [1, 0]]


def test_an_episode_that_is_terminated_and_truncated_needs_no_final_observation() -> None:
    env = make_vector_env(SyncVectorEnv([lambda: Scripted(((1, BOTH),))]), seed=0)
    transition = rows(env, 1)[0][0][0]
    assert transition.terminated.all()
    assert transition.truncated.all()
    assert transition.final_envs.size == 0


def test_same_step_without_final_observations_is_an_error() -> None:
    class Forgetful(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            *most, infos = super().step(actions)
            return (*most, {k: v for k, v in infos.items() if "final" not in k})

    given = Forgetful(FACTORIES, autoreset_mode=AutoresetMode.SAME_STEP)
    with pytest.raises(EnvironmentFault, match=r"no infos\['final_obs'\]"):
        rows(make_vector_env(given, seed=0), 3)


def test_final_observations_of_composite_spaces() -> None:
    class Composite(Scripted):
        observation_space = spaces.Dict({"x": Scripted.observation_space, "k": spaces.Discrete(4)})

        def _observation(self) -> Any:
            return {"x": super()._observation(), "k": self.time}

    script = ((2, TRUNCATED),)
    for mode in AutoresetMode:
        given = SyncVectorEnv([lambda: Composite(script)] * 2, autoreset_mode=mode)
        transition = rows(make_vector_env(given, seed=0), 2)[0][1][0]
        assert transition.final_observations.tolist() == [[0, 0, 1, 0, 0, 0, 2]] * 2


PLACES = ["observation", "info", "method"]


@pytest.mark.parametrize("nvec", [(4,), (3, 2)])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_masks_are_found_wherever_they_are_given(
    vectorization: str, place: str, nvec: tuple[int, ...]
) -> None:
    """Masked raises when given an action that its mask forbids."""
    env = make_vector_env(
        lambda: Masked(place, nvec), num_envs=2, seed=0, vectorization=vectorization
    )
    check_masks(env, nvec)
    env.close()
    words = {
        "observation": "entry of the observation",
        "info": "infos[",
        "method": "action_masks()",
    }
    assert env.mask_source is not None
    assert words[place] in str(env.mask_source)
    assert env.observation_width == 1


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("place", PLACES)
def test_masks_of_a_users_vector_environment(place: str, mode: AutoresetMode) -> None:
    given = SyncVectorEnv([lambda: Masked(place)] * 2, autoreset_mode=mode)
    check_masks(make_vector_env(given, seed=0), (4,))


def check_masks(env: VectorEnvironment, nvec: tuple[int, ...]) -> None:
    out = np.empty((env.num_envs, env.observation_width), np.float32)
    masks = env.reset(out)
    resetting = np.zeros(env.num_envs, bool)
    resets = 0
    for _ in range(13):
        assert masks is not None
        assert masks.shape == (env.num_envs, sum(nvec))
        blocks = np.split(masks, np.cumsum(nvec)[:-1], axis=1)
        time = out[:, 0].astype(int)
        for n, block in zip(nvec, blocks, strict=True):
            expected = resetting[:, None] | (np.arange(n) == time[:, None] % n)
            np.testing.assert_array_equal(block, expected)
        choice = np.stack([block.argmax(axis=1) for block in blocks], axis=1)
        transition = env.step(choice if len(nvec) > 1 else choice[:, 0], out)
        next_step = env.autoreset_mode == AutoresetMode.NEXT_STEP
        resetting = transition.ended if next_step else resetting
        masks = transition.action_masks
        resets += int(transition.fresh.any())
    assert resets == 2


def test_a_vector_environments_own_mask_method() -> None:
    class WithMasks(SyncVectorEnv):
        def action_masks(self) -> Any:
            return np.array([[True, False], [False, True]])

    env = make_vector_env(WithMasks([Scripted] * 2), seed=0)
    masks = env.reset(np.empty((2, 3), np.float32))
    assert env.mask_source is MaskSource.VECTOR
    assert masks is not None
    assert masks.tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_an_environment_that_gives_no_mask_allows_everything(mode: AutoresetMode) -> None:
    class Sometimes(Masked):
        def _info(self) -> dict[str, Any]:
            return super()._info() if self.time % 2 == 0 else {}

    for count in (1, 2):
        kinds = [lambda: Sometimes("info"), lambda: Masked("info")][:count]
        env = make_vector_env(SyncVectorEnv(kinds, autoreset_mode=mode), seed=0)
        out = np.empty((count, 1), np.float32)
        masks = env.reset(out)
        assert masks is not None
        assert masks.tolist() == [[True, False, False, False]] * count
        masks = env.step(np.zeros(count, np.int64), out).action_masks
        assert masks is not None
        assert masks.tolist() == [[True] * 4, [False, True, False, False]][:count]


def test_final_observations_may_come_as_a_batch() -> None:
    class Composite(Scripted):
        observation_space = spaces.Dict({"x": Scripted.observation_space})

        def _observation(self) -> Any:
            return {"x": super()._observation()}

    class Batching(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            *most, infos = super().step(actions)
            if "final_obs" in infos:
                rows = [np.zeros(3) if o is None else o["x"] for o in infos["final_obs"]]
                infos["final_obs"] = {"x": np.stack(rows)}
            return (*most, infos)

    factories = [lambda i=i: Composite(SCRIPTS[i], i) for i in range(2)]
    env = make_vector_env(Batching(factories, autoreset_mode=AutoresetMode.SAME_STEP), seed=0)
    finals = [t.final_observations.tolist() for t, _ in rows(env, 3)[0]]
    assert finals == [[], [], [[0, 1, 1], [1, 0, 3]]]


def test_closing_with_a_call_under_way_ends_the_processes() -> None:
    env = make_vector_env(Scripted, num_envs=2, seed=0, vectorization="async")
    env.reset(np.empty((2, 3), np.float32))
    env.vector.step_async(np.zeros(2, np.int64))
    processes = env.vector.processes
    env.close()
    assert not any(process.is_alive() for process in processes)


def test_no_masks_for_actions_that_cannot_be_masked() -> None:
    class Continuous(Masked):
        def __init__(self) -> None:
            super().__init__("observation")
            self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    env = make_vector_env(Continuous, num_envs=1, seed=0)
    assert env.reset(np.empty((1, 5), np.float32)) is None
    assert env.mask_source is None
    assert env.observation_width == 5  # the entry is an observation like any other


def test_a_mask_that_allows_nothing_in_a_running_episode_is_an_error() -> None:
    class Stuck(Masked):
        def mask(self) -> Any:
            return np.zeros(4, bool) if self.time == 2 else super().mask()

    env = make_vector_env(lambda: Stuck("info"), num_envs=2, seed=0)
    out = np.empty((2, 1), np.float32)
    env.reset(out)
    env.step(np.array([0, 0]), out)
    with pytest.raises(EnvironmentFault, match="environment 0 allows no choice for action 0"):
        env.step(np.array([1, 1]), out)


def test_a_mask_of_the_wrong_width_is_an_error() -> None:
    class Wide(Masked):
        def mask(self) -> Any:
            return np.ones(7, bool)

    env = make_vector_env(lambda: Wide("method"), num_envs=1, seed=0)
    with pytest.raises(EnvironmentFault, match=r"7 entries; Discrete\(4\) has 4"):
        env.reset(np.empty((1, 1), np.float32))


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_some_environments_can_be_reset_in_mid_episode(mode: AutoresetMode, kind: Any) -> None:
    env = vector(mode, kind)
    out = np.empty((2, 3), np.float32)
    env.reset(out)
    env.step(np.zeros(2, np.int64), out)
    assert env.reset_where(np.array([True, False]), out, None) is None
    assert out.tolist() == [[0, 1, 0], [1, 0, 1]]
    transition = env.step(np.zeros(2, np.int64), out)
    assert transition.rewards.tolist() == [11, 2]
    env.close()


def test_other_vector_environments_cannot_reset_some() -> None:
    class Foreign(VectorEnv[Any, Any, Any]):
        num_envs = 2
        single_observation_space = Scripted.observation_space
        single_action_space = Scripted.action_space

        def __init__(self) -> None:
            self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.zeros((2, 3), np.float32), {}

    env = make_vector_env(Foreign(), seed=0)
    out = np.empty((2, 3), np.float32)
    env.reset(out)
    with pytest.raises(EnvironmentFault, match="Foreign cannot reset single environments"):
        env.reset_where(np.array([True, False]), out, None)


def test_replay_refuses_an_environment_that_does_not_repeat_itself() -> None:
    class Shrinking(Scripted):
        made = 0

        def __init__(self) -> None:
            type(self).made += 1
            super().__init__(((9 - 4 * type(self).made, TERMINATED),))

    first = make_vector_env(Shrinking, num_envs=1, seed=0)  # episodes of 5 steps
    rows(first, 3)
    second = make_vector_env(Shrinking, num_envs=1, seed=0)  # of 1 step
    with pytest.raises(EnvironmentFault, match="ended its episode while it was being replayed"):
        second.replay(first.running_episodes(), np.empty((1, 3), np.float32))
