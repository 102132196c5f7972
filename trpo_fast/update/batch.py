"""What the keyword form of ``step`` was given: checked once, then trusted by every backend."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from trpo_fast.base.trees import first_leaf, tree_rows
from trpo_fast.update.share import Share


class Batch(NamedTuple):
    """One checked batch. Floating tensors have the parameters' dtype; rows of weight 0 are gone.

    Attributes:
        rows: N.
        obs: ``[N, O]`` on the fused path; any nesting of ``[N, ...]`` tensors on the generic one.
        actions: ``[N]`` or ``[N, A]``: int64 for categorical heads; of a joint
            distribution on the generic path nested; None where none are needed.
        advantages: ``[N]`` in units of ``unit``, or None.
        old_log_prob: ``[N]``, or None for the policy's own.
        weights: ``[N]``, positive, or None for equal ones.
        action_mask: ``[N, n]`` bool, or a nesting of such with None where all is allowed, or None.
        unit: A power of two that multiplies the advantages and so the loss.
        share: This rank's part of a data-parallel batch; None where there is one rank.
    """

    rows: int
    obs: Any
    actions: Any = None
    advantages: Tensor | None = None
    old_log_prob: Tensor | None = None
    weights: Tensor | None = None
    action_mask: Any = None
    unit: float = 1.0
    share: Share | None = None

    @property
    def all_rows(self) -> int:
        """Rows of all ranks: what choices by size are made from."""
        return self.rows if self.share is None else self.share.rows


def batch_rows(batch: Batch, rows: slice | Tensor) -> Batch:
    """Some rows of a batch."""
    fields = ("actions", "advantages", "old_log_prob", "weights", "action_mask")
    chosen = {name: tree_rows(getattr(batch, name), rows) for name in fields}
    obs = tree_rows(batch.obs, rows)
    return batch._replace(rows=len(first_leaf(obs)), obs=obs, **chosen)
