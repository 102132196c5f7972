"""Reads and checks what the keyword form of ``step`` was given."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trpo_fast.base.tensors import all_finite
from trpo_fast.networks.head import Head
from trpo_fast.update.batch import Batch

NESTED = (Tensor, np.ndarray, dict, tuple)


# Advantages outside are scaled by a power of two, which is exact, so that nothing overflows.
UNIT_RANGE = (2.0**-30, 2.0**30)


class BatchReader:
    """Reads the arguments of one step into a ``Batch``.

    Args:
        obs: Observations, any nesting of dicts and tuples of ``[N, ...]`` tensors or arrays; a list
            of them becomes a tuple.
        weights: ``[N]`` or None.
        dtype: The parameters' dtype; floating inputs are cast to it.
        device: The parameters' device; every input must be there.

    Raises:
        ValueError: empty batch; a wrong shape or device; a NaN or an infinity, with its index.
    """

    def __init__(self, obs: Any, weights: Any, *, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.rows = -1
        self.kept: Tensor | None = None
        self.weight_scale = 1.0  # what the weights were divided by
        obs = self._tree("obs", obs)
        if self.rows <= 0:
            raise ValueError("empty batch: obs has no rows; collect at least one sample")
        # A list of rows is not a batch, but reads like a tuple of observations.
        self._counted = ""
        if isinstance(obs, tuple):
            self._counted = f" (obs is {len(obs)} arrays; if each is a row, stack them)"
        self.weights = self._weights(weights)
        self.obs = self._select_tree("obs", obs)

    def batch(self, actions: Any, advantages: Any, old_log_prob: Any, action_mask: Any) -> Batch:
        """The batch of a policy update; actions and mask are checked for their rows only."""
        rows = self.rows if self.kept is None else len(self.kept)
        advantages = self.vector("advantages", advantages)
        unit, advantages = _scaled(advantages)
        if old_log_prob is not None:
            old_log_prob = self.vector("old_log_prob", old_log_prob).to(self.dtype)
        return Batch(
            rows,
            self.obs,
            self._per_row_tree("actions", actions),
            advantages.to(self.dtype),
            old_log_prob,
            self.weights,
            self._per_row_tree("action_mask", action_mask, optional=True),
            unit,
        )

    def inputs(self) -> Batch:
        """The batch of a Fisher product alone: no actions, no advantages."""
        rows = self.rows if self.kept is None else len(self.kept)
        return Batch(rows, self.obs, weights=self.weights)

    def vector(self, name: str, value: Any) -> Tensor:
        """A finite floating vector ``[N]``, its rows of weight 0 dropped."""
        value = self._tensor(name, value)
        if value.shape != (self.rows,):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, expected ({self.rows},){self._counted}"
            )
        if not value.is_floating_point():
            value = value.to(self.dtype)
        return self._finite(name, self._select(value))

    def per_row(self, name: str, value: Any) -> Tensor:
        """A finite tensor ``[N, ...]``, its rows of weight 0 dropped."""
        value = self._tensor(name, value)
        if value.ndim == 0 or len(value) != self.rows:
            shape = tuple(value.shape)
            raise ValueError(f"{name} has shape {shape}, expected {self.rows} rows, as obs has")
        return self._finite(name, self._select(value))

    def _per_row_tree(self, name: str, value: Any, *, optional: bool = False) -> Any:
        """A nesting of ``per_row``; where parts are optional, None is one."""
        if isinstance(value, dict):
            items = {key: (f"{name}[{key!r}]", item) for key, item in value.items()}
            return {k: self._per_row_tree(*pair, optional=optional) for k, pair in items.items()}
        if isinstance(value, tuple) and any(isinstance(item, NESTED) for item in value):
            named = [(f"{name}[{index}]", item) for index, item in enumerate(value)]
            return tuple(self._per_row_tree(*pair, optional=optional) for pair in named)
        return None if optional and value is None else self._cast(self.per_row(name, value))

    def _tensor(self, name: str, value: Any) -> Tensor:
        if value is None:
            raise ValueError(f"{name} is missing: step(obs=, actions=, advantages=) needs it")
        try:
            # Whatever torch's default device, which as_tensor would move even a tensor to.
            device = value.device if isinstance(value, Tensor) else "cpu"
            tensor = torch.as_tensor(value, device=device).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{name} is a {type(value).__name__} that does not become a tensor ({error}); "
                "give a tensor, an array, or for obs a dict or tuple of them"
            ) from error
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            tensor = tensor.clone()
        if tensor.device != self.device:
            raise ValueError(
                f"{name} is on {tensor.device}, the parameters are on {self.device}; "
                f"move one of them, as in {name}.to({str(self.device)!r})"
            )
        if tensor.layout is not torch.strided or tensor.is_complex():
            raise ValueError(f"{name} must be dense and real, got {tensor.layout} {tensor.dtype}")
        return tensor

    def _tree(self, name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._tree(f"{name}[{key!r}]", item) for key, item in value.items()}
        if isinstance(value, tuple | list) and value and isinstance(value[0], NESTED):
            return tuple(self._tree(f"{name}[{i}]", item) for i, item in enumerate(value))
        tensor = self._tensor(name, value)
        if tensor.ndim == 0:
            raise ValueError(f"{name} is a scalar, expected one row a sample: [N, ...]")
        if self.rows < 0:
            self.rows = len(tensor)
        if len(tensor) != self.rows:
            raise ValueError(f"{name} has {len(tensor)} rows, expected {self.rows}")
        return self._cast(tensor)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def _select_tree(self, name: str, tree: Any) -> Any:
        if isinstance(tree, dict):
            return {k: self._select_tree(f"{name}[{k!r}]", item) for k, item in tree.items()}
        if isinstance(tree, tuple):
            return tuple(self._select_tree(f"{name}[{i}]", item) for i, item in enumerate(tree))
        return self._finite(name, self._select(tree))

    def _select(self, tensor: Tensor) -> Tensor:
        return tensor if self.kept is None else tensor[self.kept]

    def _finite(self, name: str, tensor: Tensor) -> Tensor:
        if not all_finite(tensor):
            where = (~torch.isfinite(tensor)).nonzero()[0].tolist()
            value = float(tensor[tuple(where)])
            if self.kept is not None:
                where[0] = int(self.kept[where[0]])
            index = ", ".join(str(i) for i in where)
            raise ValueError(
                f"{name}[{index}] is {value}; find where it comes from, or give the row weight 0"
            )
        return tensor

    def _weights(self, value: Any) -> Tensor | None:
        if value is None:
            return None
        weights = self.vector("weights", value)
        low, high = (float(bound) for bound in weights.aminmax())
        if low < 0:
            row = int(weights.argmin())
            raise ValueError(f"weights[{row}] is {low}; weights must be >= 0")
        if high == 0:
            raise ValueError("weights are all 0: at least one row must count")
        if low == 0:
            self.kept = weights.nonzero().squeeze(-1)
            weights = weights[self.kept]
        # The greatest becomes 1, so that no scale of the weights can overflow a sum.
        self.weight_scale = high
        scaled = (weights.double() / high).to(self.dtype)
        return scaled.clamp_min(torch.finfo(self.dtype).tiny)


def unit_of(greatest: float) -> float:
    """The unit of advantages of which the greatest is so large: a power of two, mostly 1."""
    if greatest == 0 or UNIT_RANGE[0] <= greatest <= UNIT_RANGE[1]:
        return 1.0
    return float(2.0 ** max(math.frexp(greatest)[1], -1000))


def _scaled(advantages: Tensor) -> tuple[float, Tensor]:
    unit = unit_of(float(advantages.abs().max()))
    return (1.0, advantages) if unit == 1 else (unit, advantages.double() / unit)


def fused_batch(batch: Batch, head: Head, width: int, dtype: torch.dtype) -> Batch:
    """The batch as the analytic backends take it.

    Raises:
        ValueError: a wrong width, action shape or mask; an action that the mask forbids.
        IndexError: a discrete action out of range.
        TypeError: obs is not one tensor.
    """
    obs = batch.obs
    if not isinstance(obs, Tensor):
        raise TypeError(f"obs is a {type(obs).__name__}, expected one tensor [N, {width}]")
    flat = obs.flatten(1) if obs.ndim > 2 else obs
    if flat.ndim != 2 or flat.shape[1] != width:
        raise ValueError(f"obs has shape {tuple(obs.shape)}, expected ({batch.rows}, {width})")
    mask = batch.action_mask
    if mask is not None:
        mask = head.checked_mask(mask, flat.new_empty(batch.rows, sum(head.nvec)))
    actions = batch.actions
    if actions is not None:
        actions = head.columns(actions)
        shape = (batch.rows, *head.action_shape)
        if tuple(actions.shape) != shape:
            raise ValueError(f"actions have shape {tuple(actions.shape)}, expected {shape}")
        actions = head.checked_actions(actions, mask, dtype)
    return batch._replace(obs=flat.to(dtype), actions=actions, action_mask=mask)
