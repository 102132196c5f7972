"""What networks are shown of observations: rows, or the environment's own nesting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from trpo_fast.base.images import image_of
from trpo_fast.base.spaces import Path, Space
from trpo_fast.environments.packing import Leaf, ObservationPacker
from trpo_fast.rollouts.normalization import ObservationNormalizer, RunningMeanStd

Bool = npt.NDArray[np.bool_]
Constants = tuple[npt.NDArray[Any], npt.NDArray[Any], float]  # mean, scale, clip


class StructuredObservations:
    """Rows of bytes as the environment's nesting of tensors, its vectors normalised.

    Images keep their numbers (uint8 stays uint8), as do MultiBinary parts; Discrete and
    MultiDiscrete parts are indices from 0; every other Box is a vector, normalised by running
    statistics in its own width and then float32.

    Args:
        rows: the format of the rows.
        clip: bound on a normalised number.
        normalize: False for vectors as they are.
    """

    def __init__(self, rows: ObservationPacker, clip: float, *, normalize: bool = True) -> None:
        self.rows = rows
        self._vectors = [
            leaf
            for leaf in rows.leaves
            if isinstance(leaf.space, spaces.Box) and image_of(leaf.space) is None
        ]
        sizes: list[int] = [math.prod(leaf.shape) for leaf in self._vectors]
        self._ends = np.cumsum([0, *sizes])
        wide = any(not np.can_cast(leaf.dtype, np.float32) for leaf in self._vectors)
        self._dtype = torch.float64 if wide else torch.float32
        self._normalizer = None
        if normalize and self._ends[-1]:
            self._normalizer = ObservationNormalizer((int(self._ends[-1]),), clip)
        self._numbers = {leaf.path: index for index, leaf in enumerate(self._vectors)}

    @property
    def statistics(self) -> RunningMeanStd | None:
        """Of all vectors' numbers, one after another; None where none are normalised."""
        return None if self._normalizer is None else self._normalizer.statistics

    @property
    def pending(self) -> RunningMeanStd | None:
        """Likewise, of what was observed since the last `commit`."""
        return None if self._normalizer is None else self._normalizer.pending

    def __call__(self, rows: Tensor) -> Any:
        """The nesting of tensors ``[..., *shape]`` of rows ``[..., width]``, on their device."""
        vectors = self._joined(rows) if self._vectors else None
        if vectors is not None and self._normalizer is not None:
            vectors = self._normalizer(vectors)
        given = iter(self.rows.leaves)

        def shown(space: Space) -> Any:
            if isinstance(space, spaces.Dict):
                return {key: shown(part) for key, part in space.spaces.items()}
            if isinstance(space, spaces.Tuple):
                return tuple(shown(part) for part in space.spaces)
            leaf = next(given)
            number = self._numbers.get(leaf.path)
            if number is None or vectors is None:
                return _of(leaf, rows)
            own = vectors[..., self._ends[number] : self._ends[number + 1]]
            return own.float().reshape(*rows.shape[:-1], *leaf.shape)

        return shown(self.rows.space)

    def _joined(self, rows: Tensor) -> Tensor:
        """All vectors' numbers, ``[..., V]``."""
        lead = rows.shape[:-1]
        parts = [_of(leaf, rows).reshape(*lead, math.prod(leaf.shape)) for leaf in self._vectors]
        return torch.cat([part.to(self._dtype) for part in parts], -1)

    def vector_constants(self) -> dict[Path, Constants | None]:
        """Mean, scale and clip of each vector's numbers, by its path; None of one as it is."""
        if self._normalizer is None:
            return dict.fromkeys(self._numbers)
        dtype = np.float64 if self._dtype is torch.float64 else np.float32
        mean, scale, clip = self._normalizer.constants(dtype)
        own = {path: slice(*self._ends[i : i + 2]) for path, i in self._numbers.items()}
        return {path: (mean[at], scale[at], clip) for path, at in own.items()}

    def observe(
        self, rows: npt.NDArray[np.uint8] | Tensor, valid: Bool | Tensor | None = None
    ) -> None:
        """Note the rows of a rollout, ``[..., width]``; they count from `commit` on."""
        if self._normalizer is not None:
            given = rows if isinstance(rows, Tensor) else torch.from_numpy(rows)
            self._normalizer.observe(self._joined(given), valid)

    def commit(self) -> None:
        """Apply what was observed. Call between an update and the next rollout."""
        if self._normalizer is not None:
            self._normalizer.commit()

    def state_dict(self) -> dict[str, Any]:
        """The committed statistics as plain arrays; {} where none are kept."""
        return {} if self._normalizer is None else self._normalizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave. Raises ValueError."""
        if self._normalizer is not None:
            self._normalizer.load_state_dict(state)

    def blank(self, device: torch.device) -> Any:
        """A batch of one observation of zeros, as networks are shown it."""
        return self(torch.zeros(1, self.rows.width, dtype=torch.uint8, device=device))


Shown = ObservationNormalizer | StructuredObservations


def _of(leaf: Leaf, rows: Tensor) -> Tensor:
    dtype, shape = _TORCH[leaf.dtype.name], (*rows.shape[:-1], *leaf.shape)
    if not rows.numel():  # of no strides that a view could have
        return torch.empty(shape, dtype=dtype, device=rows.device)
    return rows[..., leaf.columns].view(dtype).reshape(shape)


_TORCH = {
    name: getattr(torch, name)
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float32", "float64")
}


def as_networks_see(raw: Any, normalizer: Shown | None) -> Any:
    """Observations ``[..., O]`` as networks see them.

    Flattened ones are normalised in their own width, then float32; see `StructuredObservations`
    for the others, which are given as tensors.

    Args:
        raw: rows as the environments give them; a tensor on any device, or an array.
        normalizer: None for flattened ones as they are.
    """
    shown: Any = raw if normalizer is None else normalizer(raw)
    if isinstance(normalizer, StructuredObservations):
        return shown
    if isinstance(shown, torch.Tensor):
        return shown.float()
    return shown.astype(np.float32, copy=False)
