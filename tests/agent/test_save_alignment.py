"""Every way in which a save and the ends of episodes can fall together, and going on from there."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clockwork import (
    ENDS,
    LENGTHS,
    MIXED,
    ROLLOUTS,
    TINY,
    Bomb,
    Clockwork,
    clockworks,
    moment,
    one_after_the_other,
    spoiled,
    train,
    uninterrupted,
)
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toy_environments import BOTH, TERMINATED, TRUNCATED
from training_process import assert_identical

from trpo_fast import TRPO
from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.runs.directory import RunDirectory
from trpo_fast.runs.recorder import RunRecorder

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*its episode is dropped",
    "ignore:the batch's advantages are all equal",  # of one row they are
)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody cuts the power here, and a thousand runs need no picture."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(RunRecorder, "_draw", lambda _: None)


def saves_until_they_repeat(length: int, rollout: int, every: int) -> int:
    """Saves after which they fall on the same steps of an episode again."""
    return length // math.gcd(length, rollout * every) if length else 4


def check_each_save(
    directory: Path, moments: list[dict[str, Any]], make_env: Any, every: int
) -> None:
    """Each checkpoint holds its moment and leads to the next one's: so all lead to the last."""
    steps = [there["progress"]["num_timesteps"] for there in moments]
    files = {steps.index(steps_of(file)): file for file in RunDirectory(directory).rolling()}
    final = len(moments) - 1
    assert list(files) == sorted({*range(every, final + 1, every), final})
    for updates, file in files.items():
        later = min(updates + every, final)
        with TRPO.load(file, make_env()) as agent:
            assert_identical(moment(agent), moments[updates], f"saved after {updates}")
            train(agent, later - updates)
            assert_identical(moment(agent), moments[later], f"going on after {updates}")


def steps_of(rolling: Path) -> int:
    return int(rolling.stem.removeprefix("step-"))


def crowds(turn: int) -> list[tuple[str, ...]]:
    """One, two and three environments; the three end at once, in each way."""
    return [ENDS[turn % 3 :][:1], (TRUNCATED, TERMINATED), ENDS]


@pytest.mark.parametrize("length", [*LENGTHS, MIXED])
@pytest.mark.parametrize("rollout", ROLLOUTS)
def test_a_training_goes_on_from_each_save(tmp_path, length, rollout):
    turn = length + rollout
    cases = [(1, ends) for ends in crowds(turn)]
    # The saves of every other update are among those of each; here another crowd each time.
    cases.append((2, crowds(turn + 1)[turn % 3]))
    for number, (every, ends) in enumerate(cases):
        updates = every * saves_until_they_repeat(length, rollout, every) + 1
        options = {"num_envs": len(ends), "rollout_steps": rollout, "save_every": every}
        run = tmp_path / str(number)
        moments = uninterrupted(clockworks(length, ends), updates, run, **options)
        check_each_save(run, moments, lambda ends=ends: clockworks(length, ends), every)


@pytest.mark.parametrize("poison", ["reward", "observation", "reset"])
@pytest.mark.parametrize("length", [*LENGTHS, MIXED])
def test_a_training_that_drops_episodes_goes_on_from_each_save(tmp_path, length, poison):
    """Two environments are spoiled, one is not: a rollout without a row would end the training."""

    def make_env() -> Any:
        return one_after_the_other(
            lambda: Clockwork(length, TERMINATED),
            spoiled(1, length, TRUNCATED, poison),
            spoiled(2, length, BOTH, poison),
        )

    for rollout in (1, 2, 3, 5):
        options = {"num_envs": 3, "rollout_steps": rollout, "save_every": 1, "on_fault": "drop"}
        run = tmp_path / str(rollout)
        moments = uninterrupted(make_env(), max(4, 7 // rollout), run, **options)
        assert poison == "reset" or moments[-1]["progress"]["dropped_episodes"]
        check_each_save(run, moments, make_env, 1)


SPACES = [
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(2),
    spaces.Box(-1, 1, (3,), np.float64),
    spaces.Box(-1, 1, (2, 2), np.float32),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_recorded_actions_keep_the_shape_and_type_of_their_space(tmp_path, space):
    def make_env() -> Any:
        return lambda: Clockwork(2, action_space=space)

    kinds = set()
    for rollout in (1, 2):  # every other save, or each, finds only episodes that have just begun
        options = {"num_envs": 2, "rollout_steps": rollout, "save_every": 1}
        run = tmp_path / str(rollout)
        moments = uninterrupted(make_env(), 4, run, **options)
        check_each_save(run, moments, make_env, 1)
        for there in moments[1:]:
            actions, counts = there["collector"]["actions"], there["collector"]["action_counts"]
            assert actions.shape == (counts.sum(), *space.shape)
            kinds.add((actions.dtype, bool(len(actions))))
    (dtype,) = {dtype for dtype, _ in kinds}
    assert kinds == {(dtype, True), (dtype, False)}


@pytest.mark.parametrize("rollout", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_worker_processes_go_on_from_each_save_as_one_process_does(tmp_path, length, rollout):
    def make_env() -> Any:
        return lambda: Clockwork(length, BOTH)

    updates = saves_until_they_repeat(length, rollout, 1) + 1
    options = {"num_envs": 2, "rollout_steps": rollout, "save_every": 1}
    here = uninterrupted(make_env(), updates, **options)
    moments = uninterrupted(make_env(), updates, tmp_path, vectorization="async", **options)
    check_each_save(tmp_path, moments, make_env, 1)
    for there in (*here, *moments):
        del there["config"]["vectorization"]
    assert_identical(moments, here)


# Environments that cannot be replayed: what they promise is that going on is repeatable


def check_each_save_repeats(
    directory: Path, moments: list[dict[str, Any]], load: Callable[[Path], TRPO]
) -> None:
    """Each checkpoint holds its moment, and going on twice gives the same bits, in new episodes."""
    files = RunDirectory(directory).rolling()
    for file, there in zip(files, moments[1:], strict=True):
        ways = []
        for _ in range(2):
            with load(file) as agent:
                assert_identical(moment(agent), there)
                train(agent, 1)
                ways.append(moment(agent))
        assert_identical(*ways)
        assert ways[0]["collector"]["restarts"] == there["collector"]["restarts"] + 1


@pytest.mark.parametrize("mode", AutoresetMode, ids=lambda mode: mode.name)
@pytest.mark.parametrize("length", [*LENGTHS, MIXED])
def test_a_vector_object_goes_on_from_each_save(tmp_path, length, mode):
    def make_env(rollout: int) -> Any:
        ends = crowds(length)[rollout % 3]
        factories = [lambda end=end: Clockwork(length, end) for end in ends]
        return SyncVectorEnv(factories, autoreset_mode=mode)

    for rollout in (1, 2, 3):
        run = tmp_path / str(rollout)
        options = {"rollout_steps": rollout, "save_every": 1}
        moments = uninterrupted(make_env(rollout), 2, run, **options)
        check_each_save_repeats(
            run, moments, lambda file, rollout=rollout: TRPO.load(file, make_env(rollout))
        )


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_pool_goes_on_from_each_save(tmp_path, length):
    pytest.importorskip("envpool", reason="EnvPool is not installed")
    for rollout in (1, 2, 3):
        run = tmp_path / str(rollout)
        options = {"rollout_steps": rollout, "save_every": 1, "num_envs": 2}
        options |= {"vectorization": "envpool", "env_kwargs": {"max_episode_steps": length}}
        moments = uninterrupted("CartPole-v1", 3, run, **options)
        check_each_save_repeats(run, moments, TRPO.load)


# Saves that nobody planned


@pytest.mark.parametrize("rollout", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, MIXED])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_training_goes_on_from_a_step_that_broke_off(tmp_path, length, rollout, error):
    """At the first step as well, before there is anything but the start to save."""
    ends = (BOTH, TRUNCATED)
    options = {"num_envs": 2, "rollout_steps": rollout, "save_every": 99, "vectorization": "sync"}
    moments = uninterrupted(clockworks(length, ends), 2, **options)
    for call in range(1, 2 * rollout + 1):
        run = tmp_path / str(call)
        done = (call - 1) // rollout
        with TRPO(clockworks(length, ends), run_dir=run, **(TINY | options)) as agent:
            agent.env.vector.step = Bomb(agent.env.vector.step, call, error)
            raised = error if error is KeyboardInterrupt else EnvironmentFault
            with pytest.raises(raised) as caught:
                train(agent, 2)
            (file,) = RunDirectory(run).rolling()
            assert str(file) in caught.value.__notes__[-1]
            assert_identical(moment(agent), moments[done])
            train(agent, 2 - done)
            assert_identical(moment(agent), moments[2])
        with TRPO.load(file, clockworks(length, ends)) as agent:
            assert_identical(moment(agent), moments[done])
            train(agent, 2 - done)
            assert_identical(moment(agent), moments[2])


@pytest.mark.parametrize("length", [*LENGTHS, MIXED])
def test_an_agent_saved_before_its_first_step_begins_as_it_would_have(tmp_path, length):
    for rollout in (1, 2, 5):
        options = {"num_envs": 3, "rollout_steps": rollout}
        moments = uninterrupted(clockworks(length, ENDS), 2, **options)
        with TRPO(clockworks(length, ENDS), **(TINY | options)) as agent:
            file = agent.save(tmp_path / f"{rollout}")
        with TRPO.load(file, clockworks(length, ENDS)) as agent:
            assert_identical(moment(agent), moments[0])
            train(agent, 2)
            assert_identical(moment(agent), moments[2])
