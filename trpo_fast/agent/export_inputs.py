"""What networks see of an environment's observations, by torch operations that can be exported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional

from trpo_fast.base.spaces import Space, leaves
from trpo_fast.environments.flattening import ObservationFlattener
from trpo_fast.rollouts.normalization import ObservationNormalizer
from trpo_fast.rollouts.observations import Constants, Shown, StructuredObservations


def inputs_of(space: Space, normalizer: Shown | None) -> nn.Module:
    """The module from a space's parts, tensors ``[N, *shape]`` in order, to what networks see."""
    if isinstance(normalizer, StructuredObservations):
        return NestedInputs(normalizer)
    return FlatInputs(space, normalizer)


class _Scaled(nn.Module):
    """``clip((x - mean) * scale)``, in the width of the constants.

    Args:
        constants: ``mean`` and ``scale`` ``[W]``, and the clip.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, constants: Constants) -> None:
        super().__init__()
        mean, scale, self.clip = constants
        self.register_buffer("mean", torch.from_numpy(mean.copy()))
        self.register_buffer("scale", torch.from_numpy(scale.copy()))

    def forward(self, rows: Tensor) -> Tensor:
        x = (rows.to(self.mean.dtype) - self.mean) * self.scale
        return x.clamp(-self.clip, self.clip)


class FlatInputs(nn.Module):
    """One row of numbers ``[N, O]`` for each observation, as ObservationFlattener writes them.

    Args:
        space: Of one observation.
        normalizer: None where rows are used as they are.
    """

    def __init__(self, space: Space, normalizer: ObservationNormalizer | None) -> None:
        super().__init__()
        self.parts = [part for _, part in leaves(space)]
        row = ObservationFlattener(space).dtype
        self.dtype = _torch_dtype(row)
        self.scaled = nn.Identity() if normalizer is None else _Scaled(normalizer.constants(row))

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        """The rows, float32."""
        columns = [self._of(part, space) for part, space in zip(parts, self.parts, strict=True)]
        found: Tensor = self.scaled(torch.cat(columns, dim=1))
        return found.float()

    def _of(self, part: Tensor, space: Space) -> Tensor:
        """One part as columns."""
        if isinstance(space, spaces.Discrete):
            return functional.one_hot(part.long() - int(space.start), int(space.n)).to(self.dtype)
        if isinstance(space, spaces.MultiDiscrete):
            index = part.flatten(1).long() - torch.as_tensor(np.ravel(space.start))
            blocks = [
                functional.one_hot(index[:, i], int(n)) for i, n in enumerate(space.nvec.ravel())
            ]
            return torch.cat(blocks, 1).to(self.dtype)
        return part.to(self.dtype).flatten(1)


class NestedInputs(nn.Module):
    """The environment's own nesting, as StructuredObservations shows it.

    Args:
        shown: What the agent's networks are shown.
    """

    def __init__(self, shown: StructuredObservations) -> None:
        super().__init__()
        self.space, self.leaves = shown.rows.space, shown.rows.leaves
        constants = shown.vector_constants()
        self.vectors = [leaf.path in constants for leaf in self.leaves]
        found = (constants.get(leaf.path) for leaf in self.leaves)
        self.scaled = nn.ModuleList(nn.Identity() if c is None else _Scaled(c) for c in found)

    def forward(self, parts: Sequence[Tensor]) -> Any:
        """Dicts and tuples of ``[N, *shape]`` as the space nests them."""
        return _refilled(self.space, iter([self._of(i, part) for i, part in enumerate(parts)]))

    def _of(self, index: int, part: Tensor) -> Tensor:
        leaf = self.leaves[index]
        if leaf.start is not None:
            return part.long() - torch.as_tensor(leaf.start)
        if not self.vectors[index]:
            return part.to(_torch_dtype(leaf.dtype))
        flat: Tensor = self.scaled[index](part.flatten(1))
        return flat.float().reshape(-1, *leaf.shape)


def _refilled(space: Space, values: Iterator[Tensor]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _refilled(part, values) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_refilled(part, values) for part in space.spaces)
    return next(values)


def _torch_dtype(dtype: npt.DTypeLike) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
