"""Observations that are not what their space says are refused by name, never bent to fit."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from agent_cases import small
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toy_environments import Fractions

from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.environments.flattening import ObservationFlattener
from trpo_fast.environments.make import make_vector_env
from trpo_fast.environments.observation_check import ObservationCheck

WHOLE = spaces.Box(0, 1, (2,), np.int64)
# Space, an observation that it holds, one that it does not, and what the refusal names.
CASES: dict[str, tuple[Any, Any, Any, str]] = {
    "fractions in int64": (WHOLE, [0, 1], [0.25, 1], r"0\.25, which .* of int64 cannot"),
    "fractions in bool": (spaces.Box(0, 1, (2,), bool), [0, 1], [0.5, 1], "0.5, which .* of bool"),
    "256 in uint8": (spaces.Box(0, 255, (2,), np.uint8), [255, 0], [0, 256], "256, which"),
    "-1 in uint8": (spaces.Box(0, 255, (2,), np.uint8), [255, 0], [-1, 0], "-1, which"),
    "NaN in int32": (spaces.Box(0, 9, (2,), np.int32), [1.0, 2.0], [np.nan, 1], "nan, which"),
    "2049 in float16": (
        spaces.Box(0, 1e4, (2,), np.float16),
        [2048, 1],
        [2049, 1],
        "2049, which .* of float16",
    ),
    "a fraction in Discrete": (spaces.Discrete(3), 2, 1.5, r"1\.5, which"),
    "beyond Discrete": (spaces.Discrete(3, start=1), 3, 4, r"4, outside"),
    "a fraction in bits": (spaces.MultiBinary(2), [1, 0], [0.5, 0], r"0\.5, which"),
    "2 in bits": (spaces.MultiBinary(2), [1, 0], [2, 0], r"2, outside .*MultiBinary\(2\)"),
    "a fraction in MultiDiscrete": (spaces.MultiDiscrete([3, 2]), [2, 1], [0.5, 1], r"0\.5, which"),
    "beyond MultiDiscrete": (spaces.MultiDiscrete([3, 2]), [2, 1], [2, 2], r"2, outside"),
    "text": (spaces.Box(0, 1, (2,), np.float32), [0.5, 1], ["0.5", "1"], "which its space"),
    "nothing": (spaces.Box(0, 1, (), np.float32), 0.5, None, "which its space"),
}


@pytest.mark.reliability("outside_its_space")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("nested", [False, True])
def test_what_a_space_cannot_hold_is_named(name: str, nested: bool) -> None:
    space, right, wrong, text = CASES[name]
    other = spaces.Box(0, 1, (1,), np.float32)
    if nested:
        space = spaces.Dict(a=other, b=spaces.Tuple((other, space)))
        right, wrong = ({"a": [0.5], "b": ([0.5], value)} for value in (right, wrong))
    ObservationCheck(space)(right)
    ObservationFlattener(space).one(right)
    where = r"\(at b/1\) " if nested else ""
    with pytest.raises(ValueError, match=f"the observation {where}holds .*{text}"):
        ObservationCheck(space)(wrong)
    if "Discrete" not in name:
        with pytest.raises(ValueError, match=text):
            ObservationFlattener(space).one(wrong)


def test_floating_point_spaces_round_what_they_are_given() -> None:
    for dtype in (np.float32, np.float64):
        check = ObservationCheck(spaces.Box(-1, 1, (2,), dtype))
        for value in ([0.1, 5.0], np.array([0.1, 7], np.float64), np.array([1, 2**60])):
            check(value)
        with pytest.raises(ValueError, match=r"has shape \(3,\), its space says \(2,\)"):
            check([0, 0, 0])


@pytest.mark.reliability("outside_its_space")
@pytest.mark.parametrize("vectorization", ["sync", "async", "workers"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("at", "where"), [(0, "reset"), (2, "step 2"), (3, "step 3")])
def test_training_is_told_of_fractions(
    vectorization: str, nested: bool, at: int, where: str
) -> None:
    with (
        small(lambda: Fractions(at, 0, nested), vectorization=vectorization) as agent,
        pytest.raises(EnvironmentFault, match=rf"environment 0 .*5, which .*int64.*{where}"),
    ):
        agent.learn(64, progress_bar=False)


@pytest.mark.reliability("outside_its_space")
@pytest.mark.parametrize("nested", [False, True])
def test_evaluation_and_predict_are_told_too(nested: bool) -> None:
    with small(lambda: Fractions(2, 0, nested)) as agent:
        with pytest.raises((EnvironmentFault, ValueError), match=r"5, which .*int64"):
            agent.evaluate(1)
        half = np.full(2, 0.5)
        for shown in (half, np.stack([half, half])):
            with pytest.raises(ValueError, match=r"0\.5, which .*int64"):
                agent.predict({"a": shown} if nested else shown)


@pytest.mark.reliability("outside_its_space")
def test_whole_numbers_of_another_type_are_as_good() -> None:
    """What float arrays of whole numbers lead to is what integers do, to the bit."""

    class Whole(Fractions):
        kind: Any = np.int64

        def _shown(self, observation: Any) -> Any:
            return np.trunc(observation).astype(self.kind)

    class Floats(Whole):
        kind = np.float32

    results = []
    for env in (Whole, Floats):
        with small(lambda env=env: env(-1)) as agent:
            agent.learn(64, progress_bar=False)
            results.append(agent.predict(np.array([3, -4]))[0].tolist())
    assert results[0] == results[1]


@pytest.mark.reliability("outside_its_space")
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("at", [0, 2])
def test_a_vector_of_the_users_own_names_the_environment(
    mode: AutoresetMode, nested: bool, at: int
) -> None:
    made = [lambda i=i: Fractions(at, i, nested) for i in range(3)]
    env = make_vector_env(SyncVectorEnv(made, autoreset_mode=mode), seed=0)
    out = np.empty((3, 2), np.float32)

    def drive() -> None:
        env.reset(out)
        for _ in range(3):
            env.step(np.zeros((3, 2), np.float32), out)

    with pytest.raises(EnvironmentFault, match=r"environment 0 of") as caught:
        drive()
    assert caught.value.env_index == 0


class Odd(gym.Env[Any, Any]):
    """Environment `index` of a vector; number `wrong` returns something else than its space."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: Any, right: Any, given: Any, at: int) -> None:
        self.observation_space = space
        self.right, self.given, self.at = right, given, at

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return (self.given if self.at == 0 else self.right), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return (self.given if self.at == self.time else self.right), 0.0, False, False, {}


PLAIN = spaces.Box(-1, 1, (2,), np.float32)
ODD = {
    "another shape": (PLAIN, np.zeros(2, np.float32), np.zeros(3, np.float32)),
    "a nested shape": (
        spaces.Dict(a=PLAIN),
        {"a": np.zeros(2, np.float32)},
        {"a": np.zeros((2, 1), np.float32)},
    ),
    "a missing entry": (spaces.Dict(a=PLAIN), {"a": np.zeros(2, np.float32)}, {"b": 0}),
    "no entries": (spaces.Tuple((PLAIN, PLAIN)), (np.zeros(2), np.zeros(2)), (np.zeros(2),)),
    "nothing": (PLAIN, np.zeros(2, np.float32), None),
    "an array of one": (spaces.Discrete(3), 1, np.array([1, 2])),
    "bits": (spaces.MultiBinary(2), np.zeros(2, np.int8), np.zeros(3, np.int8)),
}


@pytest.mark.reliability("blame")
@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("given", [False, True], ids=["made here", "given"])
def test_the_environment_that_is_wrong_is_blamed(name: str, at: int, given: bool) -> None:
    space, right, wrong = ODD[name]
    count = iter(range(100))

    def make() -> Any:
        return Odd(space, right, wrong if next(count) == 1 else right, at)

    if given:
        env = make_vector_env(SyncVectorEnv([make] * 4), seed=0)
    else:
        env = make_vector_env(make, num_envs=4, seed=0)
    out = np.empty((4, env.observation_width), np.float32)

    def drive() -> None:
        env.reset(out)
        for _ in range(4):
            env.step(np.zeros(4, np.int64), out)

    with pytest.raises(EnvironmentFault) as caught:
        drive()
    assert caught.value.env_index == 1
