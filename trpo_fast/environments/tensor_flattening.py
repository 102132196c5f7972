"""Batches of tensors as rows of numbers, and actions as a tensor environment takes them.

The twins of ``flattening.py`` on any device: same columns, same numbers, no value looked at from
the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from trpo_fast.base.spaces import Path, Space, at, leaves
from trpo_fast.environments.flattening import ObservationFlattener
from trpo_fast.environments.observation_check import pick

# Writes one leaf of a batch [B, ...] into its columns [B, width].
_Write = Callable[[Tensor, Tensor], None]


class TensorFlattener:
    """Batches of a space's observations to rows [B, O], as ``ObservationFlattener`` orders them.

    An index outside its space becomes a row of NaN: to look at it here would make the host wait
    for the device at every step.

    Args:
        space: of one observation.
        device: where the observations are.

    Raises:
        UnsupportedSpaceError: the space, or a part of it, has no fixed width.
    """

    def __init__(self, space: Space, device: torch.device) -> None:
        plain = ObservationFlattener(space)
        self.width = plain.width
        self.dtype = torch.float64 if plain.dtype is np.float64 else torch.float32
        self.device = device
        self._leaves: list[tuple[Path, Space, slice, _Write]] = []
        first = 0
        for path, leaf in leaves(space):
            width, write = _writer(leaf, device)
            self._leaves.append((path, leaf, slice(first, first + width), write))
            first += width

    def __call__(self, batch: Any, out: Tensor) -> Tensor:
        """Flatten a batch into ``out`` [B, O] and return it.

        Raises:
            ValueError: a leaf is missing, is no tensor of [B, ...] on the device, of a dtype that
                its space cannot hold, or requires a gradient.
        """
        for path, space, columns, write in self._leaves:
            leaf = pick(batch, path)
            check_tensor(f"the observation{at(path)}", leaf, self.device)
            shape = (len(out), *(space.shape or ()))
            if leaf.shape != shape:
                raise ValueError(
                    f"the observation{at(path)} has shape {tuple(leaf.shape)}, its space says "
                    f"{shape} for {len(out)} environments"
                )
            if leaf.is_floating_point() and not _holds_fractions(space):
                raise ValueError(
                    f"the observation{at(path)} is {leaf.dtype}, its space {space} is of "
                    f"{space.dtype}: return such numbers, or declare a Box of float32"
                )
            write(leaf, out[:, columns])
        return out


def first_leaf(batch: Any) -> Any:
    """Whatever lies first in a nested batch."""
    while isinstance(batch, Mapping | tuple | list) and len(batch):
        batch = next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0]
    return batch


def each_leaf(batch: Any, change: Callable[[Any], Any]) -> Any:
    """A nested batch with every leaf changed."""
    if isinstance(batch, Mapping):
        return {key: each_leaf(part, change) for key, part in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(each_leaf(part, change) for part in batch)
    return change(batch)


def check_tensor(what: str, value: Any, device: torch.device) -> None:
    """ValueError unless ``value`` is a real, dense tensor on the device, without a gradient."""
    if not isinstance(value, Tensor):
        raise ValueError(  # noqa: TRY004 (told as every other mistake of an environment)
            f"{what} is a {type(value).__name__}, not a torch.Tensor: convert it, without a copy "
            "by torch.from_dlpack"
        )
    if value.device != device:
        raise ValueError(f"{what} is on {value.device}, the environment is on {device}")
    if value.is_complex() or value.layout is not torch.strided:
        raise ValueError(f"{what} is {value.layout} {value.dtype}; it must be dense and real")
    if value.requires_grad:
        raise ValueError(
            f"{what} requires a gradient, which would keep every step's graph alive: return "
            "detached tensors"
        )


def _holds_fractions(space: Space) -> bool:
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)


def _writer(space: Space, device: torch.device) -> tuple[int, _Write]:
    if isinstance(space, spaces.Discrete):
        return _one_hot(np.array([space.n]), np.array([space.start]), device)
    if isinstance(space, spaces.MultiDiscrete):
        return _one_hot(space.nvec.ravel(), np.asarray(space.start).ravel(), device)
    return math.prod(space.shape or ()), _numbers


def _numbers(batch: Tensor, rows: Tensor) -> None:
    rows.copy_(batch.reshape(rows.shape))


def _one_hot(nvec: Any, start: Any, device: torch.device) -> tuple[int, _Write]:
    category = np.concatenate([np.arange(n) for n in nvec])  # [width], within its block
    block = np.repeat(np.arange(len(nvec)), nvec)  # [width], which index a column is of
    columns = torch.as_tensor(category + start[block], device=device)
    owner = torch.as_tensor(block, device=device)
    low = torch.as_tensor(start, device=device)
    high = torch.as_tensor(start + nvec, device=device)

    def write(batch: Tensor, rows: Tensor) -> None:
        index = batch.reshape(len(rows), -1).long()  # [B, k]
        rows.copy_(index[:, owner] == columns)
        outside = ((index < low) | (index >= high)).any(1, keepdim=True)
        rows.masked_fill_(outside, torch.nan)

    return len(category), write


def tensor_action_converter(
    policy: nn.Module, space: Space, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """The map from what ``distribution.sample()`` gave, [B, ...], to what ``step`` takes.

    As ``flattening.action_converter``, on a device: the policy's own ``to_env`` where it has one,
    else Box actions clipped to the bounds and discrete ones shifted by the space's ``start``. It
    raises ValueError where actions are not of the space's shape.
    """
    shape = tuple(space.shape or ())
    size = math.prod(shape)
    to_env = getattr(policy, "to_env", None)
    own: Callable[[Tensor], Tensor] = to_env if callable(to_env) else _moved(space, device)
    in_dtype = tensor_dtype_converter(space, device)

    def convert(actions: Tensor) -> Tensor:
        given = own(actions)
        if given.numel() != len(given) * size:
            raise ValueError(
                f"the policy's actions have shape {tuple(given.shape)}; {space} takes "
                f"{(len(given), *shape)}: its forward must give a distribution over such actions"
            )
        cast = in_dtype(given.reshape(len(given), *shape))
        # The environment may write into what it is given; the rollout keeps the rest.
        return cast.clone() if cast.data_ptr() == actions.data_ptr() else cast

    return convert


def tensor_dtype_converter(space: Space, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The cast of actions [B, ...] to the space's dtype, as ``flattening.dtype_converter``."""
    dtype = torch.from_numpy(np.empty(0, space.dtype)).dtype
    exact = _exact_bounds(space, device)

    def convert(actions: Tensor) -> Tensor:
        cast = actions.to(dtype)
        for bound, narrow in exact:
            cast = torch.where(actions == narrow, bound, cast)
        return cast

    return convert


def _moved(space: Space, device: torch.device) -> Callable[[Tensor], Tensor]:
    if isinstance(space, spaces.Box):
        low, high = (torch.as_tensor(b, device=device) for b in (space.low, space.high))

        def clipped(actions: Tensor) -> Tensor:
            rows = actions.reshape(len(actions), *space.shape)
            return torch.clamp(rows, low.to(rows.dtype), high.to(rows.dtype))

        return clipped
    start = torch.as_tensor(np.asarray(getattr(space, "start", 0)), device=device)
    return lambda actions: actions.reshape(len(actions), *(space.shape or ())) + start


def _exact_bounds(space: Space, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Bounds that rounding to float32 moved, as they are and as rounded (``dtype_converter``)."""
    if not isinstance(space, spaces.Box):
        return []
    with np.errstate(over="ignore"):
        pairs = [(bound, bound.astype(np.float32)) for bound in (space.low, space.high)]
    if all(np.array_equal(bound, narrow) for bound, narrow in pairs):
        return []
    return [
        (torch.as_tensor(bound, device=device), torch.as_tensor(narrow, device=device))
        for bound, narrow in pairs
    ]
