"""Actions of Tuple and Dict spaces as rows of numbers, from the policy to the environment's door.

Vectors, processes, recordings and checkpoints so carry one array, whatever the nesting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from trpo_fast.base.spaces import Space, leaves
from trpo_fast.base.trees import aligned, refilled, tree_map

Rows = npt.NDArray[np.float64]


def is_nested_space(space: Space) -> bool:
    """Whether its actions are nested."""
    return isinstance(space, spaces.Tuple | spaces.Dict)


class FlatActions(spaces.Box):
    """Rows of numbers in the place of a nested space's actions.

    float64 holds every float32 and every whole number up to 2^53.

    Args:
        nested: A Tuple or Dict.
    """

    def __init__(self, nested: Space) -> None:
        super().__init__(-np.inf, np.inf, (ActionNesting(nested).width,), np.float64)
        self.nested = nested

    def __eq__(self, other: object) -> bool:
        """Whether they stand for the same space."""
        return isinstance(other, FlatActions) and self.nested == other.nested

    __hash__ = None  # type: ignore[assignment]


def as_given(space: Space) -> Space:
    """The space of what a vector is given: rows for nested actions."""
    return FlatActions(space) if is_nested_space(space) else space


def own_space(space: Space) -> Space:
    """The environment's space behind what :func:`as_given` gave."""
    return space.nested if isinstance(space, FlatActions) else space


class ActionNesting:
    """Between rows of numbers and the actions of a Tuple or Dict space.

    Args:
        space: of one action.
    """

    def __init__(self, space: Space) -> None:
        self._nesting = nesting_of(space)
        self._parts = [part for _, part in leaves(space)]
        self._sizes = [part_size(part) for part in self._parts]
        self._ends = np.cumsum(self._sizes)
        self.width = sum(self._sizes)

    def one(self, row: Rows) -> Any:
        """The action of a row ``[D]``, each part as its space has it."""
        blocks = np.split(row, self._ends[:-1])
        found = (_action(part, block) for part, block in zip(self._parts, blocks, strict=True))
        return refilled(self._nesting, found)

    def batch(self, rows: Rows) -> Any:
        """The actions of rows ``[n, D]``, as a vector environment takes them."""
        blocks = np.split(rows, self._ends[:-1], axis=1)
        found = (
            block.reshape(len(rows), *(part.shape or ())).astype(part.dtype)
            for part, block in zip(self._parts, blocks, strict=True)
        )
        return refilled(self._nesting, found)

    def rows(self, parts: list[npt.NDArray[Any]]) -> Rows:
        """Rows ``[n, D]`` of the parts' actions ``[n, ...]``, in order."""
        columns = [part.reshape(len(part), -1).astype(np.float64) for part in parts]
        return np.concatenate(columns, axis=1)

    def split(self, actions: Any) -> list[Any]:
        """The parts' own of nested actions, or of rows ``[n, D]`` of any kind that can be split.

        Raises:
            ValueError: another nesting or width, named by its path.
        """
        if not hasattr(actions, "shape"):
            return aligned("action", actions, self._nesting)
        if actions.ndim != 2 or actions.shape[1] != self.width:
            raise ValueError(
                f"the policy's actions have shape {tuple(actions.shape)}, expected a nesting of "
                f"them or (n, {self.width})"
            )
        firsts = self._ends - self._sizes
        pairs = zip(firsts, self._ends, strict=True)
        return [actions[:, first:end] for first, end in pairs]

    def each(self, function: Callable[[Space], Any]) -> list[Any]:
        """``function`` of each part's space, in order."""
        return [function(part) for part in self._parts]


def in_lists(action: Any) -> Any:
    """An action as a message shows it, nested or not."""
    return tree_map(lambda part: np.asarray(part).tolist(), action)


def nesting_of(space: Space) -> Any:
    """Dicts and tuples nested as the space is, with the parts' spaces for leaves."""
    if isinstance(space, spaces.Dict):
        return {key: nesting_of(part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(nesting_of(part) for part in space.spaces)
    return space


def part_size(space: Space) -> int:
    """Numbers in an action of a space without parts."""
    return int(np.prod(space.shape or ()))


def _action(space: Space, numbers: Rows) -> Any:
    if isinstance(space, spaces.Discrete):
        return np.dtype(space.dtype).type(numbers[0])
    return numbers.reshape(space.shape or ()).astype(space.dtype)
