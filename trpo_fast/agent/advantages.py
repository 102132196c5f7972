"""Advantages of mean 0 and deviation 1, over the rows of all ranks where there are several."""

from __future__ import annotations

import math

from torch import Tensor

from trpo_fast.agent.shared_training import SharedTraining
from trpo_fast.rollouts.normalization import RunningMeanStd

# Below this share of what they were computed from in float32, advantages' deviation is rounding.
CONSTANT_SHARE = 1e-6
# Likewise of what was float64.
WIDE_CONSTANT_SHARE = 1e-12


def normalize_advantages(
    advantages: Tensor, values: Tensor | None = None, shared: SharedTraining | None = None
) -> tuple[Tensor, bool]:
    """Advantages [N] less their mean, over their deviation, and whether they could be scaled.

    A single advantage, or equal ones, have no deviation to divide by: those come back unscaled.
    With ``values``, those alone of what the advantages were computed from were float32; with
    ``shared``, mean and deviation are those of all ranks' advantages.
    """
    wide = advantages.double()
    if shared is not None:
        return _normalized_by_all(advantages, wide if values is None else values, shared)
    centred = wide - wide.mean()
    deviation = float(centred.square().mean().sqrt()) if len(wide) else 0.0
    rounding = CONSTANT_SHARE * _largest(wide if values is None else values)
    if not deviation > max(rounding, WIDE_CONSTANT_SHARE * _largest(wide)):
        return advantages, False
    return (centred / deviation).to(advantages.dtype), True


def _normalized_by_all(
    advantages: Tensor, values: Tensor, shared: SharedTraining
) -> tuple[Tensor, bool]:
    """``normalize_advantages`` over all ranks' rows."""
    wide, moments = advantages.double(), RunningMeanStd()
    moments.update(wide)
    shared.merge(moments)
    largest = shared.ranks.gather([_largest(values), _largest(wide)])
    rounding = CONSTANT_SHARE * max(row[0] for row in largest)
    deviation = math.sqrt(float(moments.var)) if moments.count else 0.0
    if not deviation > max(rounding, WIDE_CONSTANT_SHARE * max(row[1] for row in largest)):
        return advantages, False
    return ((wide - float(moments.mean)) / deviation).to(advantages.dtype), True


def _largest(numbers: Tensor) -> float:
    return float(numbers.abs().max()) if numbers.numel() else 0.0
