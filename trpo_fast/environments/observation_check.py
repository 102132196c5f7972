"""Whether an observation is what its space says: gymnasium's arrays would bend it to fit.

Those have the space's dtype, so fractions returned for a space of whole numbers are cut there, one
number fills a row, and 256 is 0 in uint8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from trpo_fast.base.spaces import Path, Space, at, leaves


def entry(observation: Any, key: Any, path: Path = ()) -> Any:
    """One entry of a nested observation, itself at ``path``; ValueError where it has none."""
    try:
        return observation[key]
    except (KeyError, IndexError, TypeError):
        raise ValueError(
            f"the observation{at(path)}, a {type(observation).__name__}, has no entry {key}"
        ) from None


def pick(observation: Any, path: Path) -> Any:
    """The part of a nested observation that the keys lead to; ValueError where there is none."""
    for depth, key in enumerate(path):
        observation = entry(observation, key, path[:depth])
    return observation


def as_kept(values: npt.NDArray[Any], space: Space, path: Path = ()) -> npt.NDArray[Any]:
    """The values of a leaf, or a batch of them, in the space's dtype.

    ValueError where that cannot hold them. Floating-point spaces round to their width, but for
    float16, which would lose what float32 holds.
    """
    dtype = np.dtype(space.dtype)
    if values.dtype == dtype:
        return values
    with np.errstate(invalid="ignore", over="ignore"):
        if dtype.kind == "f" and dtype.itemsize >= 4 and values.dtype.kind in "biuf":
            return values.astype(dtype)
        kept = values.astype(dtype) if values.dtype.kind in "biuf" else None
    if kept is None or not np.array_equal(kept, values):
        raise ValueError(
            f"the observation{_first_lost(values, space, path)}, which its space "
            f"{_short(space)} of {dtype} cannot: declare the space with a dtype that can "
            "(dtype=np.float32 for fractions), or return such numbers"
        )
    return kept


def require_inside(values: npt.NDArray[Any], space: Space, path: Path = ()) -> None:
    """ValueError where a value is none of a discrete space's; Boxes say what is usual, no more."""
    outside = _outside(values, space)
    if np.any(outside):
        raise ValueError(
            f"the observation{_first(values, outside, space, path)}, outside its space "
            f"{_short(space)}"
        )


class ObservationCheck:
    """Passes on single observations, each leaf in its space's dtype.

    Args:
        space: of one observation.
    """

    def __init__(self, space: Space) -> None:
        self._leaves = list(leaves(space))
        path, only = self._leaves[0] if len(self._leaves) == 1 else ((), None)
        # The one leaf of a plain Box: what every step of most environments has.
        self._box = only if not path and isinstance(only, spaces.Box) else None
        self._size = 0 if self._box is None else int(np.prod(self._box.shape))

    def __call__(self, observation: Any) -> Any:
        """The observation; ValueError naming leaf, value or shape, and space where it is none."""
        if (
            self._box is not None
            and type(observation) is np.ndarray
            and observation.size == self._size
        ):
            return as_kept(observation, self._box)
        for path, space in self._leaves:
            given = np.asarray(pick(observation, path))
            # A plain Box of another shape but the same size fits its row of a batch.
            fits = self._box is not None and given.size == self._size
            if not fits and given.shape != tuple(space.shape or ()):
                raise ValueError(
                    f"the observation{at(path)} has shape {given.shape}, its space says "
                    f"{tuple(space.shape or ())}"
                )
            kept = as_kept(given, space, path)
            require_inside(kept, space, path)
            if kept is not given:
                observation = _replaced(observation, path, kept)
        return observation


def _replaced(observation: Any, path: Path, value: Any) -> Any:
    """A copy of a nested observation with another value at one place."""
    if not path:
        return value
    inner = _replaced(entry(observation, path[0]), path[1:], value)
    if isinstance(observation, Mapping):
        return {**observation, path[0]: inner}
    return tuple(inner if i == path[0] else part for i, part in enumerate(observation))


def _outside(values: npt.NDArray[Any], space: Space) -> Any:
    """Where, an array or one bool."""
    if isinstance(space, spaces.MultiBinary):
        return (values != 0) & (values != 1)
    elif isinstance(space, spaces.Discrete):
        return (values < space.start) | (values >= space.start + space.n)
    elif isinstance(space, spaces.MultiDiscrete):
        return (values < space.start) | (values >= space.start + space.nvec)
    return False


def _first_lost(values: npt.NDArray[Any], space: Space, path: Path) -> str:
    if values.dtype.kind not in "biuf":
        first = str(values.flat[0])[:40] if values.size else "nothing"
        return f"{at(path)} holds {values.dtype} ({first})"
    with np.errstate(invalid="ignore", over="ignore"):
        return _first(values, values.astype(space.dtype) != values, space, path)


def _first(values: npt.NDArray[Any], wrong: Any, space: Space, path: Path) -> str:
    """What is wrong first, and whose it is where the values are those of several environments."""
    place = tuple(np.argwhere(wrong)[0]) if values.ndim else ()
    batched = values.ndim > len(space.shape or ())
    whose = f" of environment {place[0]}" if batched else ""
    return f"{whose}{at(path)} holds {values[place]}"


def _short(space: Space) -> str:
    text = str(space)
    return text if len(text) <= 80 else f"{text[:77]}..."
