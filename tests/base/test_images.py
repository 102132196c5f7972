"""Which spaces are of images, and the order of their axes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from trpo_fast.base.images import image_of


@pytest.mark.parametrize(
    ("shape", "dtype", "sizes"),
    [
        ((84, 84, 4), np.uint8, (4, 84, 84)),
        ((4, 84, 84), np.uint8, (4, 84, 84)),
        ((210, 160, 3), np.uint8, (3, 210, 160)),
        ((10, 10, 10), bool, (10, 10, 10)),
        ((4, 84, 84, 3), np.uint8, (12, 84, 84)),
        ((4, 3, 84, 60), np.uint8, (12, 84, 60)),
        ((9, 12), np.uint8, (1, 9, 12)),
        ((5, 5, 2), np.float32, (2, 5, 5)),
    ],
)
def test_images_are_found_and_put_channels_first(shape, dtype, sizes):
    image = image_of(spaces.Box(0, 1 if dtype is bool else 255, shape, dtype))
    assert image is not None
    assert (image.channels, image.height, image.width) == sizes
    batch = torch.arange(2 * int(np.prod(shape))).reshape(2, *shape)
    # the axis of the colours, and where it then is among the channels
    wanted = batch.numpy()
    if shape == (4, 84, 84, 3):
        wanted = wanted.transpose(0, 1, 4, 2, 3)
    elif shape not in ((4, 84, 84), (9, 12), (4, 3, 84, 60)):
        wanted = wanted.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(image.channels_first(batch), wanted.reshape(2, *sizes))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (8, 8, 3)),
        spaces.Box(0, 255, (4, 128), np.uint8),  # stacked vectors
        spaces.Box(0, 1, (16, 16), np.float32),  # a matrix
        spaces.Box(0, 255, (2, 2, 3), np.uint8),
        spaces.Box(-(2**31), 2**31 - 1, (9, 9, 3), np.int32),
        spaces.Box(0, 255, (3,), np.uint8),
        spaces.Box(0, 255, (0, 9, 9), np.uint8),
        spaces.Discrete(3),
    ],
)
def test_other_numbers_are_no_images(space):
    assert image_of(space) is None
