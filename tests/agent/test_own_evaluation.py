"""Evaluation in the training's own environments: right scores, and a training that goes on."""

from __future__ import annotations

import math
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_cases import small, weights
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toy_environments import TERMINATED, TRUNCATED, Masked, Poisoned, Scripted, Walk

from trpo_fast.agent.config import Config
from trpo_fast.agent.own_evaluation import run_in
from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.environments.make import make_vector_env
from trpo_fast.environments.vector_environment import VectorEnvironment

MODES = list(AutoresetMode)
OWN = {"eval_envs": 0, "eval_every": 64, "eval_episodes": 3}


def zeros(rows: Any, masks: Any, state: Any, fresh: Any) -> Any:
    return np.zeros(len(rows), np.int64), state


class Single(Walk):
    """A simulator of which one instance may exist."""

    alive = 0

    def __init__(self) -> None:
        if Single.alive:
            raise RuntimeError("the licence is for one instance")
        Single.alive += 1
        super().__init__()

    def close(self) -> None:
        Single.alive -= 1


def vector(mode: AutoresetMode | None, count: int, kind: Any = None) -> VectorEnvironment:
    kind = kind or (lambda: Scripted(((3, TERMINATED), (2, TRUNCATED))))
    if mode is None:
        made: Any = make_vector_env(kind, num_envs=count, seed=0)
        return made
    return VectorEnvironment(SyncVectorEnv([kind] * count, autoreset_mode=mode), name="V", seed=0)


@pytest.mark.parametrize("mode", [None, *MODES])
def test_returns_and_lengths_are_those_of_whole_episodes(mode: AutoresetMode | None) -> None:
    result = run_in(vector(mode, 2), zeros, 5, Config())
    # Episodes of one environment that exists are numbered on; a replay enters one before.
    first = 1 if mode is None else 0
    played = [first + k for k in (0, 0, 1, 1, 2)]
    lengths = [(3, 2)[k % 2] for k in played]
    assert result.lengths == tuple(lengths)
    assert result.returns == tuple(
        sum(10.0 * k + step for step in range(1, n + 1))
        for k, n in zip(played, lengths, strict=True)
    )


@pytest.mark.parametrize("vectorization", ["sync", "workers"])
def test_a_training_goes_on_as_if_it_had_been_evaluated_elsewhere(vectorization: str) -> None:
    options = {"vectorization": vectorization, "num_envs": 3}
    found = []
    for given in ({"eval_every": 0}, OWN):
        with small(Walk, **options, **given) as agent:
            agent.learn(64 * 3, progress_bar=False)
            assert (agent.progress.best_evaluation is None) == (given != OWN)
            found.append(weights(agent))
    assert torch.equal(*found)


@pytest.mark.reliability("one_instance")
def test_a_simulator_of_one_instance_is_evaluated_and_resumed(tmp_path: Any) -> None:
    with small(Single(), run_dir=tmp_path / "whole", **OWN) as agent:
        agent.learn(256, progress_bar=False)
        whole, best = weights(agent), agent.progress.best_evaluation
        assert agent.evaluate(4) == agent.evaluate(4)
    with small(Single(), run_dir=tmp_path / "cut", **OWN) as agent:
        agent.learn(128, progress_bar=False)
        agent.evaluate(2)
        path = agent.save(tmp_path / "half")
    with type(agent).load(path, Single()) as agent:
        agent.learn(128, progress_bar=False)
        assert torch.equal(weights(agent), whole)
        assert agent.progress.best_evaluation == best
    assert Single.alive == 0


def test_environments_that_cannot_be_replayed_begin_new_episodes() -> None:
    made = SyncVectorEnv([Walk] * 2)
    with small(made, **OWN) as agent:
        agent.learn(192, progress_bar=False)
        assert agent.progress.best_evaluation is not None


def test_an_evaluation_before_the_first_rollout_costs_no_later_episode() -> None:
    made = SyncVectorEnv([lambda: Scripted(((10**6, TERMINATED),))] * 2)
    with small(made, eval_envs=0, eval_max_steps=3, rollout_steps=16) as agent:
        with pytest.warns(UserWarning, match="eval_max_steps"):
            agent.evaluate(2, progress_bar=False)
        agent.learn(64, progress_bar=False)
        assert agent.collector.state()["lengths"].tolist() == [32, 32]


class Forgetful(Scripted):
    """Its episodes grow shorter, whatever their seed."""

    def _observation(self) -> Any:
        return np.zeros(3, np.float32)

    def step(self, action: Any) -> Any:
        *most, _, _, info = super().step(action)
        return *most, self.time >= max(2, 40 - self.episode), False, info


def test_episodes_that_do_not_repeat_themselves_are_left_with_a_warning() -> None:
    with (
        small(Forgetful, num_envs=1, **OWN) as agent,
        pytest.warns(RuntimeWarning, match="before an evaluation .* new ones begin"),
    ):
        agent.learn(64 * 5, progress_bar=False)
    assert agent.num_timesteps >= 64 * 5


def test_masks_are_obeyed() -> None:
    for place in ("info", "method", "observation"):
        with small(lambda place=place: Masked(place), eval_envs=0) as agent:
            # The environment raises on a masked action.
            assert agent.evaluate(4) == (5.0, 0.0)


@pytest.mark.reliability("evaluation_nan")
@pytest.mark.parametrize("mode", [None, *MODES])
@pytest.mark.parametrize("where", ["reward", "observation"])
def test_nan_is_a_fault_or_dropped(mode: AutoresetMode | None, where: str) -> None:
    at = (2, 2) if mode is None else (1, 2)

    def make() -> Any:
        return Poisoned(where, at, ((3, TERMINATED),))

    with pytest.raises(EnvironmentFault, match=f"environment 0 of .* {where}.* at step 2 of an ev"):
        run_in(vector(mode, 1, make), zeros, 3, Config())
    with pytest.warns(RuntimeWarning, match="The episode is left out"):
        result = run_in(vector(mode, 1, make), zeros, 3, Config(on_fault="drop"))
    assert result.dropped == 1
    assert len(result.returns) == 2
    assert all(map(math.isfinite, result.returns))
    assert result.lengths == (3, 3)


@pytest.mark.reliability("endless_episodes")
@pytest.mark.parametrize("mode", [None, *MODES])
def test_an_episode_without_end_is_stopped(mode: AutoresetMode | None) -> None:
    env = vector(mode, 2, lambda: Scripted(((9_999, TERMINATED),)))
    with pytest.warns(UserWarning, match="3 of 3 evaluation episodes were stopped after 7 steps"):
        result = run_in(env, zeros, 3, Config(eval_max_steps=7))
    assert result.lengths == (7, 7, 7)


def test_a_fault_says_that_it_was_in_an_evaluation_and_training_goes_on() -> None:
    class Raising(Walk):
        armed = True

        def step(self, action: Any) -> Any:
            if Raising.armed and self.np_random_seed not in seen:
                raise ZeroDivisionError("in an evaluation")
            return super().step(action)

        def reset(self, **given: Any) -> Any:
            found = super().reset(**given)
            if training:
                seen.add(self.np_random_seed)
            return found

    seen: set[Any] = set()
    training = True
    with small(Raising, eval_envs=0) as agent:
        agent.learn(64, progress_bar=False)
        training = False
        with pytest.raises(EnvironmentFault, match="ZeroDivisionError") as caught:
            agent.evaluate(2)
        assert any("eval_envs=0" in note for note in caught.value.__notes__)
        training = True
        agent.learn(64, progress_bar=False)
        assert agent.num_timesteps == 128


def test_an_environment_given_for_the_evaluation_is_taken() -> None:
    with small(Single(), eval_envs=0) as agent:
        assert agent.evaluate(2, env=Walk) != (0, 0)
        gym.register("OwnWalk-v0", entry_point=Walk)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            agent.evaluate(2, env="OwnWalk-v0")
