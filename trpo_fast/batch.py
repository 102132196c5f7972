"""What the keyword form of ``step`` was given: checked once, then trusted by every backend."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trpo_fast.distributions import check_action_mask
from trpo_fast.flat import all_finite
from trpo_fast.network import Head

NESTED = (Tensor, np.ndarray, dict, tuple)
# Advantages outside are scaled by a power of two, which is exact, so that nothing overflows.
UNIT_RANGE = (2.0**-30, 2.0**30)


class Batch(NamedTuple):
    """One checked batch. Floating tensors have the parameters' dtype; rows of weight 0 are gone.

    Attributes:
        rows: N.
        obs: ``[N, O]`` on the fused path; any nesting of ``[N, ...]`` tensors on the generic one.
        actions: ``[N]`` or ``[N, A]``: int64 for categorical heads; None where none are needed.
        advantages: ``[N]`` in units of ``unit``, or None.
        old_log_prob: ``[N]``, or None for the policy's own.
        weights: ``[N]``, positive, or None for equal ones.
        action_mask: ``[N, n]`` bool, or None.
        unit: A power of two that multiplies the advantages and so the loss.
    """

    rows: int
    obs: Any
    actions: Tensor | None = None
    advantages: Tensor | None = None
    old_log_prob: Tensor | None = None
    weights: Tensor | None = None
    action_mask: Tensor | None = None
    unit: float = 1.0


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
            self._cast(self.per_row("actions", actions)),
            advantages.to(self.dtype),
            old_log_prob,
            self.weights,
            None if action_mask is None else self.per_row("action_mask", action_mask),
            unit,
        )

    def inputs(self, action_mask: Any = None) -> Batch:
        """The batch of a Fisher product alone: no actions, no advantages."""
        rows = self.rows if self.kept is None else len(self.kept)
        mask = None if action_mask is None else self.per_row("action_mask", action_mask)
        return Batch(rows, self.obs, weights=self.weights, action_mask=mask)

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
        scaled = (weights.double() / high).to(self.dtype)
        return scaled.clamp_min(torch.finfo(self.dtype).tiny)


def _scaled(advantages: Tensor) -> tuple[float, Tensor]:
    greatest = float(advantages.abs().max())
    if greatest == 0 or UNIT_RANGE[0] <= greatest <= UNIT_RANGE[1]:
        return 1.0, advantages
    unit = 2.0 ** max(math.frexp(greatest)[1], -1000)
    return unit, advantages.double() / unit


def batch_rows(batch: Batch, rows: slice | Tensor) -> Batch:
    """Some rows of a batch."""
    fields = ("actions", "advantages", "old_log_prob", "weights", "action_mask")
    parts = {name: getattr(batch, name) for name in fields}
    chosen: dict[str, Any] = {k: None if t is None else t[rows] for k, t in parts.items()}
    obs = _tree_rows(batch.obs, rows)
    return batch._replace(rows=len(first_leaf(obs)), obs=obs, **chosen)


def _tree_rows(tree: Any, rows: slice | Tensor) -> Any:
    if isinstance(tree, dict):
        return {key: _tree_rows(item, rows) for key, item in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_tree_rows(item, rows) for item in tree)
    return tree[rows]


def first_leaf(tree: Any) -> Tensor:
    """The first tensor of a nesting."""
    while not isinstance(tree, Tensor):
        tree = next(iter(tree.values())) if isinstance(tree, dict) else tree[0]
    return tree


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
        if not head.nvec:
            raise ValueError("action_mask needs a Discrete or MultiDiscrete action space")
        mask = check_action_mask(mask, flat.new_empty(batch.rows, sum(head.nvec)), head.nvec)
    actions = batch.actions
    if actions is not None:
        shape = (batch.rows,) if head.kind == "categorical" else (batch.rows, head.action_dim)
        if tuple(actions.shape) != shape:
            raise ValueError(f"actions have shape {tuple(actions.shape)}, expected {shape}")
        if head.nvec:
            actions = whole_actions(actions, head.nvec)
            if mask is not None:
                check_allowed(actions, mask, head.nvec)
        elif head.kind == "bernoulli" and not bool(((actions == 0) | (actions == 1)).all()):
            raise ValueError("actions of a MultiBinary space must be 0 or 1")
        else:
            actions = actions.to(dtype)
    return Batch(
        batch.rows,
        flat.to(dtype),
        actions,
        batch.advantages,
        batch.old_log_prob,
        batch.weights,
        mask,
        batch.unit,
    )


def whole_actions(actions: Tensor, nvec: tuple[int, ...]) -> Tensor:
    """Discrete actions ``[N]`` or ``[N, K]`` as int64.

    Raises:
        ValueError: an action is not a whole number.
        IndexError: an action is out of its range.
    """
    whole = actions.to(torch.int64)
    if actions.is_floating_point() and not bool((whole == actions).all()):
        raise ValueError("actions of a discrete space must be whole numbers")
    columns = whole.unsqueeze(-1) if whole.ndim == 1 else whole
    for k, size in enumerate(nvec):
        low, high = columns[:, k].aminmax()
        if int(low) < 0 or int(high) >= size:
            row = int(((columns[:, k] < 0) | (columns[:, k] >= size)).nonzero()[0])
            where = f"actions[{row}]" if whole.ndim == 1 else f"actions[{row}, {k}]"
            raise IndexError(f"{where} is {int(columns[row, k])}, expected 0 to {size - 1}")
    return whole


def check_allowed(actions: Tensor, mask: Tensor, nvec: tuple[int, ...]) -> None:
    """Raise ValueError where a taken action is one that the mask forbids."""
    columns = actions.unsqueeze(-1) if actions.ndim == 1 else actions
    for k, block in enumerate(mask.split(list(nvec), dim=-1)):
        allowed = block.gather(1, columns[:, k : k + 1]).squeeze(1)
        if not bool(allowed.all()):
            row = int((~allowed).nonzero()[0])
            raise ValueError(f"the action at row {row} is one that its action_mask forbids")
