"""What `auto` takes environments to share with the program that makes them."""

from __future__ import annotations

import functools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from toy_environments import Masked, Scripted, Walk

from trpo_fast.environments.sharing import shared_object

ID = "CartPole-v1"
LEVEL = [0]


def of_script(thing: Any) -> Any:
    """As if a script had defined it."""
    thing.__module__ = "__main__"
    return thing


class Local:
    """Objects that are somebody's."""

    level = 0

    def make(self) -> gym.Env[Any, Any]:
        return Walk()


def made_by_lambda() -> Any:
    place, ends = "info", ((3, "terminated"),)
    return lambda: (Masked(place), Scripted(ends))


def made_with_list() -> Any:
    levels = [0]
    return lambda: levels and Walk()


def class_with_list(levels: list[int]) -> Any:
    class Leveled(Walk):
        def step(self, action: Any) -> Any:
            return super().step(action + levels[0])

    return Leveled


def class_of_function() -> Any:
    class Plain(Walk):
        def step(self, action: Any) -> Any:
            return super().step(action)

    return Plain


def with_default(levels: Any = LEVEL) -> Any:
    return levels


def inner_of_script() -> Any:
    return of_script(lambda: [w(LEVEL) for w in (lambda level: level,)])


@pytest.mark.parametrize(
    ("source", "kwargs"),
    [
        (ID, {}),
        (ID, {"size": 3, "weights": [1.0, {"a": np.zeros(2)}], "kind": Walk}),
        (Walk, {}),
        (class_of_function(), {}),
        (made_by_lambda(), {}),
        (of_script(lambda: gym.make(ID)), {}),
        (functools.partial(gym.make, ID), {}),
        (of_script(lambda: [Walk() for _ in range(1)]), {}),
    ],
)
def test_what_shares_nothing(source: Any, kwargs: dict[str, Any]) -> None:
    assert shared_object(source, gym.make(ID), kwargs) is None


@pytest.mark.parametrize(
    ("source", "kwargs", "what"),
    [
        (ID, {"task": Local()}, "a Local (env_kwargs, task)"),
        (ID, {"tasks": [1, (2, Local())]}, "a Local (env_kwargs, tasks)"),
        (Local().make, {}, "a method"),
        (made_with_list(), {}, "a list"),
        (class_with_list([0]), {}, "a list"),
        (with_default, {}, "a list"),
        (of_script(lambda: LEVEL and Walk()), {}, "a list"),
        (inner_of_script(), {}, "a list"),
        (functools.partial(Walk, Local()), {}, "a Local"),
        (of_script(type("Mine", (Walk,), {})), {}, "the class Mine of this script"),
    ],
)
def test_what_may_be_shared_is_named(source: Any, kwargs: dict[str, Any], what: str) -> None:
    assert shared_object(source, gym.make(ID), kwargs) == what


@pytest.mark.parametrize("as_text", [True, False])
def test_a_registered_class_of_a_script_is_its_own(as_text: bool) -> None:
    made = gym.make(ID)
    made.unwrapped.spec.entry_point = (
        "__main__:Mine" if as_text else of_script(type("Mine", (Walk,), {}))
    )
    assert shared_object(ID, made, {}) == "the class Mine of this script"


@pytest.mark.parametrize("source", [functools.partial(gym.make, ID), lambda: gym.make(ID)])
def test_a_registered_class_of_a_script_is_seen_behind_a_function(source: Any) -> None:
    made = gym.make(ID)
    made.unwrapped.spec.entry_point = of_script(type("Mine", (Walk,), {}))
    assert shared_object(source, made, {}) == "the class Mine of this script"


@pytest.mark.parametrize("kind", [gym.Wrapper, gym.ObservationWrapper])
def test_a_wrapper_of_a_script_is_its_own(kind: Any) -> None:
    made = of_script(type("Around", (kind,), {}))(gym.make(ID))
    wrapped = gym.wrappers.RecordEpisodeStatistics(made)
    source = functools.partial(gym.make, ID)
    assert shared_object(source, wrapped, {}) == "the class Around of this script"
