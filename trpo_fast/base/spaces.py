"""What the policies can serve of gymnasium's spaces."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

from trpo_fast.base.errors import UnsupportedSpaceError

Space = spaces.Space[Any]
Path = tuple[Any, ...]  # keys that lead to a part of a nested space
SUPPORTED_ACTIONS = (
    "Box (floating point), Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these"
)
SUPPORTED_OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these"


def observation_width(space: spaces.Space) -> int:  # type: ignore[type-arg]
    """Width of the flattened observation.

    Raises:
        ValueError: for a space that has no fixed width, or no entry at all.
    """
    if not _flattens(space):
        raise ValueError(
            f"observation space {space} is not supported; supported: {SUPPORTED_OBSERVATIONS}"
        )
    width = int(spaces.flatdim(space))
    if width < 1:
        raise ValueError(f"observation space {space} is empty")
    return width


def _flattens(space: spaces.Space) -> bool:  # type: ignore[type-arg]
    if isinstance(space, spaces.Dict):
        return all(_flattens(part) for part in space.spaces.values())
    if isinstance(space, spaces.Tuple):
        return all(_flattens(part) for part in space.spaces)
    kinds = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    return isinstance(space, kinds)


def leaves(space: Space, path: Path = ()) -> Iterator[tuple[Path, Space]]:
    """The parts of a nested space that hold numbers, with the keys that lead there."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from leaves(part, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, part in enumerate(space.spaces):
            yield from leaves(part, (*path, index))
    else:
        yield path, space


def unsupported(space: Space, path: Path) -> UnsupportedSpaceError:
    """What to raise for a part of an observation space that has no fixed size."""
    return UnsupportedSpaceError(
        f"observations of {type(space).__name__}{at(path)} are not supported. "
        f"Supported: {SUPPORTED_OBSERVATIONS}. Wrap the environment, for example in "
        "gymnasium.wrappers.TransformObservation, to get one of these, or leave an entry of a Dict "
        "out by gymnasium.wrappers.FilterObservation."
    )


def at(path: Path) -> str:
    """The keys that lead to a leaf, in words for a message; "" where there are none."""
    return f" (at {'/'.join(map(str, path))})" if path else ""


def check_action_space(space: Space, name: str = "") -> None:
    """Raise UnsupportedSpaceError unless a policy can act in ``space``.

    Args:
        space: Of one action.
        name: Of a part in messages: "action['grip'][1]"; "" for the whole.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in parts:
            check_action_space(part, f"{name or 'action'}[{key!r}]")
        if not len(space.spaces):
            raise UnsupportedSpaceError(f"{name or 'the action space'} {space} has no parts.")
        return
    floating = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)
    if not floating and not isinstance(
        space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    ):
        kind = f"Box of {space.dtype}" if isinstance(space, spaces.Box) else type(space).__name__
        raise UnsupportedSpaceError(
            f"{f'{name}: ' if name else ''}actions of {kind} are not supported. Supported: "
            f"{SUPPORTED_ACTIONS}. Wrap the environment, for example in "
            "gymnasium.wrappers.TransformAction, to get one of these."
        )
    if not np.prod(space.shape or ()):
        what = f"{name}, {space}," if name else f"the action space {space}"
        raise UnsupportedSpaceError(f"{what} holds nothing to choose.")


def logit_blocks(space: Space) -> tuple[int, ...]:
    """Number of choices of each discrete action; () where actions cannot be masked."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return tuple(n for part in parts for n in logit_blocks(part))
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(int(n) for n in space.nvec.ravel())
    return ()


def action_dimensions(space: Space) -> int:
    """How many numbers or choices an action has: A for a Box, 1 for a Discrete; parts add up."""
    if isinstance(space, spaces.Dict):
        return sum(action_dimensions(part) for part in space.spaces.values())
    if isinstance(space, spaces.Tuple):
        return sum(action_dimensions(part) for part in space.spaces)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.size)
    return math.prod(space.shape or ())
