"""Which spaces are of images, and how those lie in memory."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from gymnasium import spaces
from torch import Tensor

from trpo_fast.base.spaces import Space

# Sides below which a Box of three axes is a table of numbers and no picture.
LEAST_SIDE = 3
# Likewise of two axes, which stacked vectors have too.
LEAST_PLAIN_SIDE = 8
# Of whole numbers that are shades or codes: above, they are measurements.
MOST_SHADES = 2**16


class Image(NamedTuple):
    """A space's images: sizes, and how to bring ``[N, ...]`` to ``[N, channels, height, width]``.

    Attributes:
        axes: The order of the space's axes in which channels (and stacked frames) come first.
        low, high: Bounds of the numbers.
    """

    channels: int
    height: int
    width: int
    axes: tuple[int, ...]
    low: float
    high: float

    def channels_first(self, images: Tensor) -> Tensor:
        """``[N, channels, height, width]``, a view where the frames are not stacked."""
        ordered = images.permute(0, *(axis + 1 for axis in self.axes))
        return ordered.reshape(images.shape[0], self.channels, self.height, self.width)


def image_of(space: Space) -> Image | None:
    """The images of a space, or None where it holds other numbers.

    Images are a Box of bounded numbers with three axes, the channels first where that axis is the
    shorter one of both ends, else last; with four, of which the first counts stacked frames; or
    with two, of uint8.
    """
    if not isinstance(space, spaces.Box) or 0 in space.shape:
        return None
    shape = space.shape
    low, high = float(space.low.min()), float(space.high.max())
    bounded = math.isfinite(high - low) and high > low
    if not bounded or (space.dtype.kind in "iu" and high - low > MOST_SHADES):
        return None
    if len(shape) == 2:
        plain = space.dtype == np.uint8 and min(shape) >= LEAST_PLAIN_SIDE
        return Image(1, shape[0], shape[1], (0, 1), low, high) if plain else None
    if len(shape) not in (3, 4):
        return None
    stacked = tuple(range(len(shape) - 3))
    first, middle, last = (len(stacked) + i for i in range(3))
    if shape[first] < shape[last]:
        axes = (*stacked, first, middle, last)
    else:
        axes = (*stacked, last, first, middle)
    *depths, height, width = (shape[axis] for axis in axes)
    if min(height, width) < LEAST_SIDE:
        return None
    return Image(math.prod(depths), height, width, axes, low, high)
