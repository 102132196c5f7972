"""Observations to rows, actions to what the environment takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from torch import nn

from trpo_fast.base.errors import UnsupportedSpaceError
from trpo_fast.base.spaces import check_action_space
from trpo_fast.environments.flattening import ObservationFlattener, action_converter
from trpo_fast.networks.mlp import MlpPolicy

BOX = spaces.Box(-2, 2, (2, 3), np.float64)
OBSERVATIONS = {
    "box": BOX,
    "image": spaces.Box(0, 255, (4, 4, 3), np.uint8),
    "scalar": spaces.Box(-1, 1, (), np.float32),
    "discrete": spaces.Discrete(5),
    "discrete from -2": spaces.Discrete(5, start=-2),
    "multi-discrete": spaces.MultiDiscrete([3, 2, 4]),
    "multi-discrete, 2-D": spaces.MultiDiscrete([[3, 2], [4, 2]]),
    "multi-binary": spaces.MultiBinary((2, 2)),
    "dict": spaces.Dict({"b": BOX, "a": spaces.Discrete(3)}),
    "tuple": spaces.Tuple((spaces.Discrete(3), BOX)),
    "nested": spaces.Dict(
        {"x": spaces.Tuple((spaces.MultiBinary(2), BOX)), "w": spaces.Dict({"v": BOX})}
    ),
}


NESTED = ("dict", "tuple", "nested")


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_rows_equal_gymnasiums_flatten(name: str) -> None:
    space: spaces.Space[Any] = OBSERVATIONS[name]
    space.seed(0)
    samples = [space.sample() for _ in range(6)]
    batch = concatenate(space, samples, create_empty_array(space, 6))
    expected = np.stack([spaces.flatten(space, sample) for sample in samples])
    flattener = ObservationFlattener(space)
    rows = flattener(batch)
    # Only float64 holds what BOX may show.
    assert rows.dtype == (np.float64 if name in ("box", *NESTED) else np.float32)
    np.testing.assert_array_equal(rows, expected.astype(rows.dtype))
    assert flattener.width == spaces.flatdim(space)
    np.testing.assert_array_equal(np.stack([flattener.one(s) for s in samples]), rows)
    out = np.full_like(rows, np.nan)
    assert flattener(batch, out) is out
    np.testing.assert_array_equal(out, rows)


@pytest.mark.parametrize("value", [-3, 3, 100])
def test_discrete_observation_out_of_range_is_an_error(value: int) -> None:
    space = spaces.Discrete(5, start=-2)
    with pytest.raises(ValueError, match=rf"environment 1 holds {value}, outside .*5, start=-2"):
        ObservationFlattener(space)(np.array([0, value]))


def test_whose_number_its_space_cannot_hold_is_said() -> None:
    space = spaces.Box(0, 9, (2,), np.int64)
    with pytest.raises(ValueError, match=r"environment 2 holds 0\.5, which its space"):
        ObservationFlattener(space)(np.array([[0, 1], [3, 4], [5, 0.5]]))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(5),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Graph(spaces.Box(0, 1, (2,)), None),
        spaces.Dict({"fine": BOX, "not": spaces.Text(5)}),
    ],
)
def test_unsupported_observations_list_the_supported_ones(space: Any) -> None:
    with pytest.raises(UnsupportedSpaceError, match=r"Supported: Box, Discrete, .* Dict or Tuple"):
        ObservationFlattener(space)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"a": spaces.Text(3)}),
        spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 10, (2,), np.int64))),
        spaces.Text(3),
        spaces.Box(0, 10, (2,), np.int64),
    ],
)
def test_unsupported_actions_list_the_supported_ones(space: Any) -> None:
    with pytest.raises(UnsupportedSpaceError, match=r"Supported: Box .* Discrete, MultiDiscrete"):
        check_action_space(space)


def test_actions_without_a_number_are_refused() -> None:
    with pytest.raises(UnsupportedSpaceError, match="holds nothing to choose"):
        check_action_space(spaces.Box(-1, 1, (0,)))


ACTIONS = [
    (spaces.Box(-1, 2, (2,), np.float32), [[-5.0, 0.5], [3.0, 2.0]], [[-1.0, 0.5], [2.0, 2.0]]),
    (spaces.Box(-1, 2, (1, 2), np.float32), [[-5.0, 0.5]], [[[-1.0, 0.5]]]),
    (spaces.Box(-np.inf, np.inf, (1,), np.float64), [[1e6]], [[1e6]]),
    (spaces.Discrete(3), [0, 2], [0, 2]),
    (spaces.Discrete(3, start=5), [0, 2], [5, 7]),
    (spaces.MultiDiscrete([3, 2], start=[1, -1]), [[0, 1], [2, 0]], [[1, 0], [3, -1]]),
    (spaces.MultiBinary(2), [[0.0, 1.0]], [[0, 1]]),
]


@pytest.mark.parametrize(("space", "sampled", "expected"), ACTIONS, ids=lambda v: str(v)[:30])
def test_actions_reach_the_environment_in_its_own_terms(
    space: Any, sampled: Any, expected: Any
) -> None:
    """The same from our policy's own map and from a foreign module's lack of one."""
    actions = torch.tensor(sampled)
    for policy in (MlpPolicy(BOX, space), nn.Linear(1, 1)):
        converted = action_converter(policy, space)(actions)
        assert converted.dtype == space.dtype
        np.testing.assert_array_equal(converted, expected)
        assert space.contains(
            converted[0] if converted.ndim > 1 else converted.dtype.type(converted[0])
        )


def test_a_policys_own_map_is_used() -> None:
    class Doubling(nn.Module):
        def to_env(self, actions: torch.Tensor) -> torch.Tensor:
            return 2 * actions

    space = spaces.Box(-1, 1, (1,), np.float32)
    converted = action_converter(Doubling(), space)(torch.tensor([[0.25], [0.5]]))
    np.testing.assert_array_equal(converted, [[0.5], [1.0]])
