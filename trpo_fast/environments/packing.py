"""Observations as they are, in rows of bytes: every leaf in its own dtype.

A rollout of images is as large as the images, and whatever moves rows (shared memory, checkpoints,
replays) need not know what stands in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from trpo_fast.base.errors import UnsupportedSpaceError
from trpo_fast.base.spaces import Path, Space, at, leaves, unsupported
from trpo_fast.base.tensors import bad_rows
from trpo_fast.environments.observation_check import as_kept, pick, require_inside

Bool = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

ALIGNED = 8  # bytes: of the widest number
# Dtypes that torch has no arithmetic for, and those that hold all they can.
_KEPT_AS = {"float16": np.float32, "uint16": np.int32, "uint32": np.int64}


class Leaf(NamedTuple):
    """One leaf of a space, and its bytes in a row."""

    path: Path
    space: Space
    shape: tuple[int, ...]
    dtype: np.dtype[Any]  # as it is kept
    columns: slice
    start: npt.NDArray[np.int64] | None  # of an index, which is kept as counted from 0

    def of(self, rows: Bytes) -> npt.NDArray[Any]:
        """The leaf in rows ``[..., width]``, a view ``[..., *shape]``."""
        found: npt.NDArray[Any] = rows[..., self.columns].view(self.dtype)
        return found.reshape(*rows.shape[:-1], *self.shape)


class ObservationPacker:
    """Batches of a space's observations to rows of bytes ``[B, width]``.

    Boxes and MultiBinary keep their dtype (float16 and unsigned integers that torch does not
    compute with the next wider one), Discrete and MultiDiscrete become indices from 0 in int64.

    Args:
        space: of one observation.

    Raises:
        UnsupportedSpaceError: the space, or a part of it, has no fixed size.
    """

    dtype: type[np.generic] = np.uint8

    def __init__(self, space: Space) -> None:
        self.space = space
        self.leaves: list[Leaf] = []
        self._gaps: list[slice] = []  # between leaves; zeros, so that rows can be compared
        self.width = 0
        for path, leaf in leaves(space):
            self.leaves.append(self._place(path, leaf))
        if not any(math.prod(leaf.shape) for leaf in self.leaves):
            raise UnsupportedSpaceError(f"the observation space {space} holds nothing.")
        self._floating = [leaf for leaf in self.leaves if leaf.dtype.kind == "f"]

    def _place(self, path: Path, space: Space) -> Leaf:
        start = None
        if isinstance(space, spaces.Box | spaces.MultiBinary):
            dtype = np.dtype(space.dtype)
            kept = np.dtype(_KEPT_AS.get(dtype.name, dtype))
            if kept.kind == "f" and kept.itemsize > ALIGNED:
                kept = np.dtype(np.float64)
            if kept.name == "uint64" or kept.kind not in "biuf":
                raise UnsupportedSpaceError(
                    f"observations of {dtype}{at(path)} are not supported: torch has no such "
                    "numbers. Wrap the environment, for example in "
                    "gymnasium.wrappers.DtypeObservation, to get int64 or float32."
                )
        elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            start, kept = np.asarray(space.start, np.int64), np.dtype(np.int64)
        else:
            raise unsupported(space, path)
        shape = tuple(space.shape or ())
        end = self.width + math.prod(shape) * kept.itemsize
        leaf = Leaf(path, space, shape, kept, slice(self.width, end), start)
        self.width = -(-end // ALIGNED) * ALIGNED
        if end < self.width:
            self._gaps.append(slice(end, self.width))
        return leaf

    def __call__(self, batch: Any, out: Bytes | None = None) -> Bytes:
        """Pack a batch as gymnasium's vector environments stack it, into ``out`` if given.

        Raises:
            ValueError: the batch does not have the space's shape, or an index is out of range.
        """
        first = pick(batch, self.leaves[0].path)
        rows = np.zeros((len(first), self.width), np.uint8) if out is None else out
        for leaf in self.leaves:
            self._write(leaf, np.asarray(pick(batch, leaf.path)), rows)
        for gap in self._gaps if out is not None else ():
            rows[:, gap] = 0
        return rows

    def one(self, observation: Any) -> Bytes:
        """Pack a single observation to ``[width]``."""
        row = np.zeros((1, self.width), np.uint8)
        for leaf in self.leaves:
            self._write(leaf, np.asarray(pick(observation, leaf.path))[None], row)
        packed: Bytes = row[0]
        return packed

    @staticmethod
    def _write(leaf: Leaf, values: npt.NDArray[Any], rows: Bytes) -> None:
        kept = as_kept(values, leaf.space, leaf.path)
        require_inside(kept, leaf.space, leaf.path)
        shape = (len(rows), *leaf.shape)
        if not leaf.path and kept.size == math.prod(shape):
            kept = kept.reshape(shape)  # as flattened, a plain Box may come in another shape
        if kept.shape != shape:
            raise ValueError(
                f"the observations{at(leaf.path)} have shape {kept.shape}, their space says {shape}"
            )
        with np.errstate(over="ignore"):
            leaf.of(rows)[...] = kept if leaf.start is None else kept.astype(np.int64) - leaf.start

    def bad_rows(self, rows: Bytes) -> Bool:
        """Which rows hold NaN, infinity, or a number that float32 does not reach, ``[B]``."""
        found = np.zeros(len(rows), bool)
        for leaf in self._floating:
            found |= bad_rows(leaf.of(rows).reshape(len(rows), math.prod(leaf.shape)))
        return found

    def finite_rows(self, array: Bytes) -> Callable[[int], bool]:
        """Whether ``array[i]`` holds none, as a function of i, while the array is filled."""
        if not self._floating:
            return lambda _: True
        return lambda index: not self.bad_rows(array[index].reshape(-1, self.width)).any()

    def bad_number(self, row: Bytes) -> str:
        """What and where the first such number of a row is, in words."""
        leaf = self._bad_leaf(row)
        with np.errstate(over="ignore"):  # what is beyond float32 is infinite to networks
            values = leaf.of(row).astype(np.float32, copy=False)
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        index = f" at index {', '.join(map(str, place))}" if place else ""
        return f"{values[place]}{index}{at(leaf.path)}"

    def bad_place(self, row: Bytes) -> str:
        """Where a row holds what `bad_rows` tells of, in words; "" where there is but one place."""
        return at(self._bad_leaf(row).path)

    def _bad_leaf(self, row: Bytes) -> Leaf:
        bad = (leaf for leaf in self._floating if bad_rows(leaf.of(row).reshape(1, -1)).any())
        return next(bad)
