"""An observation of B environments is a row of an array; a format says what stands where in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Bool = npt.NDArray[np.bool_]


class RowFormat(Protocol):
    """How observations of a space become rows ``[B, width]``.

    Attributes:
        width: of a row.
    """

    width: int

    @property
    def dtype(self) -> type[np.generic]:
        """Of a row's numbers."""
        ...

    def __call__(self, batch: Any, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Rows of a batch as gymnasium's vector environments stack it, into ``out`` if given.

        Raises:
            ValueError: the batch does not have the space's shape, or an index is out of range.
        """
        ...

    def one(self, observation: Any) -> npt.NDArray[Any]:
        """The row of a single observation."""
        ...

    def bad_rows(self, rows: npt.NDArray[Any]) -> Bool:
        """Which rows hold NaN, infinity, or a number that float32 does not reach, ``[B]``."""
        ...

    def finite_rows(self, array: npt.NDArray[Any]) -> Callable[[int], bool]:
        """Whether ``array[i]`` holds none, as a function of i, while the array is filled."""
        ...

    def bad_number(self, row: npt.NDArray[Any]) -> str:
        """What and where the first such number of a row is, in words."""
        ...

    def bad_place(self, row: npt.NDArray[Any]) -> str:
        """Where a row holds what `bad_rows` tells of, in words; "" where there is but one place."""
        ...
