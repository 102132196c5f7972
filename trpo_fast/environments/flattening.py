"""Observations as rows of numbers, actions as the environment takes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import nn

from trpo_fast.base.errors import UnsupportedSpaceError
from trpo_fast.base.spaces import Space, at, leaves, unsupported
from trpo_fast.base.tensors import bad_rows, finite_rows
from trpo_fast.environments.interface import Rows
from trpo_fast.environments.nested_actions import ActionNesting, is_nested_space
from trpo_fast.environments.observation_check import as_kept, pick, require_inside

# Writes one leaf of a batch [B, ...] into its columns [B, width].
_Write = Callable[[npt.NDArray[Any], Rows], None]
_Leaf = tuple[tuple[Any, ...], slice, _Write]


class ObservationFlattener:
    """Batches of a space's observations to rows [B, O], as gymnasium.spaces.flatten orders them.

    Boxes and MultiBinary are unrolled, Discrete and MultiDiscrete become one-hot blocks, Dict and
    Tuple entries stand side by side. Rows have ``dtype``: float64 where a part of the space is
    wider than float32, whose digits a mean far from 0 would use up, else float32.

    Args:
        space: the space of one observation.

    Raises:
        UnsupportedSpaceError: the space, or a part of it, has no fixed width.
    """

    def __init__(self, space: Space) -> None:
        self._leaves: list[_Leaf] = []
        self.width = 0
        for path, leaf in leaves(space):
            width, write = _leaf_writer(leaf, path)
            self._leaves.append((path, slice(self.width, self.width + width), write))
            self.width += width
        if not self.width:
            raise UnsupportedSpaceError(f"the observation space {space} holds nothing.")
        wide = any(_is_wide(leaf) for _, leaf in leaves(space))
        self.dtype: type[np.floating[Any]] = np.float64 if wide else np.float32

    def __call__(self, batch: Any, out: Rows | None = None) -> Rows:
        """Flatten a batch as gymnasium's vector environments stack it, into ``out`` if given.

        Raises:
            ValueError: the batch does not have the space's shape, or an index is out of range.
        """
        first = pick(batch, self._leaves[0][0])
        rows = np.empty((len(first), self.width), self.dtype) if out is None else out
        for path, columns, write in self._leaves:
            write(np.asarray(pick(batch, path)), rows[:, columns])
        return rows

    def one(self, observation: Any) -> Rows:
        """Flatten a single observation to [O]."""
        row: Rows = np.empty(self.width, self.dtype)
        for path, columns, write in self._leaves:
            write(np.asarray(pick(observation, path))[None], row[None, columns])
        return row

    def bad_rows(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which rows hold NaN, infinity, or a number that float32 does not reach, ``[B]``."""
        return bad_rows(rows)

    def finite_rows(self, array: Rows) -> Callable[[int], bool]:
        """Whether ``array[i]`` holds none, as a function of i, while the array is filled."""
        return finite_rows(array)

    def bad_number(self, row: Rows) -> str:
        """What and where the first such number of a row is, in words."""
        with np.errstate(over="ignore"):  # what is beyond float32 is infinite to networks
            narrow = row.astype(np.float32, copy=False)
        index = int(np.flatnonzero(~np.isfinite(narrow))[0])
        return f"{narrow[index]} at index {index} of its {len(row)} numbers (flattened, as float32)"

    def bad_place(self, row: Rows) -> str:
        """Where a row holds what `bad_rows` tells of, in words; "" where there is but one place."""
        for path, columns, _ in self._leaves:
            if bad_rows(row[None, columns]).any():
                return at(path)
        return ""


def _leaf_writer(space: Space, path: tuple[Any, ...]) -> tuple[int, _Write]:
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return int(np.prod(space.shape)), _numbers(space, path)
    if isinstance(space, spaces.Discrete):
        return _one_hot(space, path, np.array([space.n]), np.array([space.start]))
    if isinstance(space, spaces.MultiDiscrete):
        return _one_hot(space, path, space.nvec.ravel(), np.asarray(space.start).ravel())
    raise unsupported(space, path)


def _is_wide(space: Space) -> bool:
    """Whether a leaf's numbers may need more than float32's 24 bits."""
    return isinstance(space, spaces.Box) and not np.can_cast(space.dtype, np.float32)


def _numbers(space: Space, path: tuple[Any, ...]) -> _Write:
    def write(batch: npt.NDArray[Any], rows: Rows) -> None:
        kept = as_kept(batch, space, path)
        require_inside(kept, space, path)
        rows[...] = kept.reshape(rows.shape)

    return write


def _one_hot(
    space: Space, path: tuple[Any, ...], nvec: npt.NDArray[Any], start: npt.NDArray[Any]
) -> tuple[int, _Write]:
    offsets = np.concatenate([[0], np.cumsum(nvec)[:-1]]).astype(np.int64)

    def write(batch: npt.NDArray[Any], rows: Rows) -> None:
        kept = as_kept(batch, space, path)
        require_inside(kept, space, path)
        index = kept.reshape(len(rows), -1).astype(np.int64) - start  # [B, k]
        rows[...] = 0
        np.put_along_axis(rows, index + offsets, 1, axis=1)

    return int(nvec.sum()), write


def action_converter(policy: nn.Module, space: Space) -> Callable[[Any], npt.NDArray[Any]]:
    """The map from what ``distribution.sample()`` gave, [B, ...], to what ``env.step`` takes.

    It is the policy's own ``to_env`` where it has one. Otherwise Box actions are clipped to the
    bounds (as Stable-Baselines3 does), and discrete ones shifted by the space's ``start``. It
    raises ValueError where actions are not of the space's shape. Of a Tuple or Dict space actions
    are nested, or rows of all parts' numbers side by side, and rows ``[B, D]`` come back
    (``nested_actions``).
    """
    if is_nested_space(space):
        return _nested_converter(policy, space)
    shape = tuple(space.shape or ())
    size = math.prod(shape)
    to_env = getattr(policy, "to_env", None)
    in_dtype = dtype_converter(space)

    def finish(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if array.size != len(array) * size:
            raise ValueError(
                f"the policy's actions have shape {array.shape}; {space} takes "
                f"{(len(array), *shape)}: its forward must give a distribution over such actions"
            )
        shaped: npt.NDArray[Any] = array.reshape(len(array), *shape)
        return in_dtype(shaped)

    if callable(to_env):

        def convert(actions: torch.Tensor) -> npt.NDArray[Any]:
            return finish(to_env(actions).numpy(force=True))

    elif isinstance(space, spaces.Box):
        low, high = space.low, space.high

        def convert(actions: torch.Tensor) -> npt.NDArray[Any]:
            clipped: npt.NDArray[Any] = np.clip(finish(actions.numpy(force=True)), low, high)
            return clipped

    else:
        start = np.asarray(getattr(space, "start", 0))

        def convert(actions: torch.Tensor) -> npt.NDArray[Any]:
            shifted: npt.NDArray[Any] = finish(actions.numpy(force=True)) + start.astype(
                space.dtype
            )
            return shifted

    return convert


def _nested_converter(policy: nn.Module, space: Space) -> Callable[[Any], npt.NDArray[Any]]:
    nesting = ActionNesting(space)
    to_env = getattr(policy, "to_env", None)
    # What is left to be done for a part: all, or to have its shape and dtype.
    made = callable(to_env)
    parts = nesting.each(lambda part: action_converter(_Done() if made else nn.Identity(), part))

    def convert(actions: Any) -> npt.NDArray[Any]:
        found = nesting.split(to_env(actions) if callable(to_env) else actions)
        return nesting.rows([part(own) for part, own in zip(parts, found, strict=True)])

    return convert


class _Done(nn.Module):
    """Stands for a policy whose actions are the environment's already."""

    @staticmethod
    def to_env(actions: torch.Tensor) -> torch.Tensor:
        """As they are."""
        return actions


def dtype_converter(space: Space) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
    """The cast of actions [B, ...] to the space's dtype.

    A bound of a float64 Box rounded to float32 may lie outside: an action on the rounded bound is
    put on the space's own.
    """
    if not isinstance(space, spaces.Box):
        return lambda actions: actions.astype(space.dtype, copy=False)
    with np.errstate(over="ignore"):
        rounded = [(bound, bound.astype(np.float32)) for bound in (space.low, space.high)]
    exact = all(np.array_equal(bound, narrow) for bound, narrow in rounded)

    def convert(actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
        cast = actions.astype(space.dtype, copy=False)
        for bound, narrow in () if exact else rounded:
            cast = np.where(actions == narrow, bound, cast)
        return cast

    return convert
