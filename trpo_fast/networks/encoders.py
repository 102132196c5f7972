"""From the environment's nesting of tensors to one row of features for each sample.

Images go through convolutions, everything else is laid side by side: vectors as they are, indices
one-hot.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional

from trpo_fast.base.images import Image, image_of
from trpo_fast.base.spaces import Path, Space, at, leaves, unsupported
from trpo_fast.networks.mlp import initialise

# Sides from which on an image has the network of Mnih et al., whose strides leave nothing of less.
LARGE = 36
# Widths of the layer after the convolutions: of Mnih et al., and of Young & Tian.
LARGE_FEATURES, SMALL_FEATURES = 512, 128


class ImageEncoder(nn.Module):
    """Convolutions and one layer over them, chosen by the size of the images.

    Of 36 pixels a side and more: Mnih et al. 2015 ("Human-level control through deep reinforcement
    learning", methods): 32 filters of 8x8 by 4, 64 of 4x4 by 2, 64 of 3x3, and a layer of 512.
    Smaller: Young & Tian 2019 ("MinAtar", section 3): 16 filters of 3x3 and a layer of 128. Numbers
    are brought from the space's bounds to [0, 1] (uint8: divided by 255).

    Args:
        image: What ``image_of`` found the space to be.
        features: Width of the last layer; None for 512 or 128.
        generator: Source of the initial weights; None is torch's global one.
    """

    def __init__(
        self,
        image: Image,
        features: int | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.image = image
        large = min(image.height, image.width) >= LARGE
        # (filters, side, stride) of each convolution
        shapes = [(32, 8, 4), (64, 4, 2), (64, 3, 1)] if large else [(16, 3, 1)]
        self.width = features or (LARGE_FEATURES if large else SMALL_FEATURES)
        channels, height, width = image.channels, image.height, image.width
        modules: list[nn.Module] = []
        for filters, side, stride in shapes:
            with torch.random.fork_rng([]):  # what torch draws first is not kept
                convolution = nn.Conv2d(channels, filters, side, stride)
            initialise(convolution, math.sqrt(2), generator)
            modules += [convolution, nn.ReLU()]
            channels = filters
            height, width = ((extent - side) // stride + 1 for extent in (height, width))
        self.convolutions = nn.Sequential(*modules)
        with torch.random.fork_rng([]):
            self.last = nn.Linear(channels * height * width, self.width)
        initialise(self.last, math.sqrt(2), generator)

    def forward(self, images: Tensor) -> Tensor:
        """Features ``[N, width]`` of images ``[N, *shape]`` as the space has them."""
        image, weight = self.image, self.last.weight
        x = image.channels_first(images).to(weight.dtype)
        if (image.low, image.high) != (0.0, 1.0):
            x = (x - image.low) * (1 / (image.high - image.low))
        return functional.relu(self.last(self.convolutions(x).flatten(1)))


class _Numbers(nn.Module):
    """A leaf that is no image, as ``width`` numbers."""

    def __init__(self, space: Space, path: Path) -> None:
        super().__init__()
        if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            nvec = [space.n] if isinstance(space, spaces.Discrete) else space.nvec.ravel()
            self.choices = [int(n) for n in nvec]
            self.width = sum(self.choices)
        elif isinstance(space, spaces.Box | spaces.MultiBinary):
            self.choices, self.width = [], math.prod(space.shape)
        else:
            raise unsupported(space, path)

    def forward(self, leaf: Tensor, dtype: torch.dtype) -> Tensor:
        flat = leaf.reshape(leaf.shape[0], -1)
        if not self.choices:
            return flat.to(dtype)
        blocks = [functional.one_hot(flat[:, i], n) for i, n in enumerate(self.choices)]
        return torch.cat(blocks, 1).to(dtype)


class Encoder(nn.Module):
    """Features ``[N, width]`` of a batch in the environment's nesting.

    Args:
        space: Of one observation: Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple.
        image_features: Width of what each image becomes; None as ``ImageEncoder`` chooses.
        generator: Source of the initial weights; None is torch's global one.

    Raises:
        UnsupportedSpaceError: a part of the space, named by its path, is of another kind.
    """

    _dtype: Tensor

    def __init__(
        self,
        space: Space,
        image_features: int | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.space = space
        self._leaves = list(leaves(space))
        found: list[nn.Module] = []
        widths: list[int] = []
        for path, leaf in self._leaves:
            image = image_of(leaf)
            part = (
                _Numbers(leaf, path)
                if image is None
                else ImageEncoder(image, image_features, generator=generator)
            )
            found.append(part)
            widths.append(part.width)
        self.parts = nn.ModuleList(found)
        self.width = sum(widths)
        if not self.width:
            raise ValueError(f"observation space {space} is empty")
        self.register_buffer("_dtype", torch.empty(0), persistent=False)

    def forward(self, obs: Any) -> Tensor:
        """Features of ``obs``, dicts and tuples of ``[N, *shape]`` as the space nests them.

        Raises:
            ValueError: a leaf is missing, or of another shape or kind of numbers; it is named by
                the keys that lead to it.
        """
        dtype = self._dtype.dtype
        features = []
        for (path, space), part in zip(self._leaves, self.parts, strict=True):
            leaf = _leaf(obs, path, space)
            image = isinstance(part, ImageEncoder)
            features.append(part(leaf) if image else part(leaf, dtype))
        return features[0] if len(features) == 1 else torch.cat(features, 1)


def _leaf(obs: Any, path: Path, space: Space) -> Tensor:
    """One leaf ``[N, *shape]`` of a batch, checked."""
    found = obs
    for depth, key in enumerate(path):
        try:
            found = found[key] if isinstance(found, dict | tuple | list) else None
        except (KeyError, IndexError):
            found = None
        if found is None:
            raise ValueError(
                f"obs{at(path[:depth])} has no entry {key!r}, which its space {space} stands for"
            )
    shape = tuple(space.shape or ())
    if not isinstance(found, Tensor):
        raise ValueError(  # noqa: TRY004 (wrong nesting, as a wrong shape is)
            f"obs{at(path)} is a {type(found).__name__}, expected a tensor of shape [N, "
            f"{', '.join(map(str, shape))}] for {space}"
        )
    if tuple(found.shape[1:]) != shape or not found.ndim:
        raise ValueError(
            f"obs{at(path)} has shape {tuple(found.shape)}, expected "
            f"[{', '.join(['N', *map(str, shape)])}]"
        )
    whole = not isinstance(space, spaces.Box) or (
        image_of(space) is not None and not np.issubdtype(space.dtype, np.floating)
    )
    if whole and found.is_floating_point():
        raise ValueError(
            f"obs{at(path)} holds {found.dtype}, its space is of {space.dtype}: give such numbers, "
            "which are scaled or made one-hot here"
        )
    return found
