"""A smaller trust region for a rollout whose advantages are mostly what the critic is wrong by.

A step to the region's boundary has one length, whatever the advantages behind it are worth. Where a
task is solved the returns hardly vary, the advantages are the critic's errors, and full steps on
those unlearn it. Advantages are returns less values: where they vary more than the returns
themselves, at least the excess is the critic's. KL being quadratic in a step's length, the region
falls with the square of the ratio, so that the step's length is proportional to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trpo_fast.optimizer.optimizer import TRPOOptimizer

# Of the region: what is left to a rollout whose returns do not vary at all. Steps of less are lost
# among float32's roundings of the KL.
LEAST = 1e-3


def region_share(optimizer: TRPOOptimizer, explained_variance: float | None) -> float:
    """The share of ``max_kl`` for a rollout: ``min(1, Var(returns) / Var(advantages)) ** 2``.

    Args:
        optimizer: where another constraint than "hard" has no region, the share is 1.
        explained_variance: 1 - Var(advantages) / Var(returns) of the critic before its fit; None
            where the returns do not vary.
    """
    if optimizer.param_groups[0]["constraint"] != "hard":
        return 1.0
    if explained_variance is None:
        return LEAST
    ratio = max(1.0, 1.0 - explained_variance)
    return max(LEAST, 1.0 / min(ratio, 1.0 / LEAST) ** 2)  # a square may overflow


@contextmanager
def scaled_region(optimizer: TRPOOptimizer, share: float) -> Iterator[None]:
    """Within, the optimizer's ``max_kl`` is that share of what it was before and is afterwards."""
    group = optimizer.param_groups[0]
    whole = group["max_kl"]
    group["max_kl"] = whole * share
    try:
        yield
    finally:
        group["max_kl"] = whole
