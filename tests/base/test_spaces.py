"""What is said of spaces."""

from __future__ import annotations

import pytest
from gymnasium import spaces

from trpo_fast.base.spaces import action_dimensions

BOX = spaces.Box(-1.0, 1.0, (2, 3))


@pytest.mark.parametrize(
    ("space", "count"),
    [
        (BOX, 6),
        (spaces.Discrete(9), 1),
        (spaces.MultiDiscrete([3, 4, 5]), 3),
        (spaces.MultiDiscrete([[3, 4], [5, 2]]), 4),
        (spaces.MultiBinary(4), 4),
        (spaces.Tuple([BOX, spaces.Discrete(2)]), 7),
        (spaces.Dict(a=BOX, b=spaces.Tuple([spaces.MultiBinary(2)])), 8),
    ],
)
def test_action_dimensions_are_counted(space: spaces.Space, count: int) -> None:
    assert action_dimensions(space) == count
