"""Damping in units of the Fisher matrix's curvature along the gradient, made absolute."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from trpo_fast.base.tensors import dot, norm
from trpo_fast.update.options import Options

# The curvature of discrete actions falls with their entropy, down to where float32 has no solution
# left; 1e-4 is where such policies still spend their region, and far below what others have.
LEAST = 1e-4


def absolute(options: Options, curvature: float) -> Options:
    """The options with ``damping`` times that curvature, or ``LEAST``; 0 is 0.

    As it is where it makes no number.
    """
    damping = options.damping
    found = damping * curvature
    if math.isfinite(found) and found >= 0 and damping > 0:
        damping = max(found, LEAST)
    return replace(options, damping=damping, relative_damping=False)


def curvature_along(
    g: Tensor, product: Callable[[Tensor], Tensor], agreed: Callable[[float], float] = float
) -> float:
    """``g'Fg / g'g``; NaN where ``g`` has no direction.

    Where the gradient is mostly noise, whose covariance has F's shape, this is near
    ``tr(F^2) / tr(F)``: the mean eigenvalue, each weighted by itself. Unlike ``tr(F) / P`` it does
    not shrink with parameters of which the rows say nothing.

    Args:
        g: ``[P]``, of any scale.
        product: ``v -> F v`` ``[P]``.
        agreed: A number that decides -> what whoever else makes the same update takes for it.
    """
    size = agreed(norm(g))
    if not (math.isfinite(size) and size > 0):
        return math.nan
    unit = (g.double() / size).to(g.dtype)
    return agreed(dot(unit, product(unit)))
