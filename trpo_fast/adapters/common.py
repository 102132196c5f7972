"""What the adapters to other libraries' TRPO have in common."""

from __future__ import annotations

from typing import Any

from torch.distributions import Distribution, Independent

from trpo_fast.optimizer.optimizer import TRPOOptimizer
from trpo_fast.update.result import TrustRegionResult


def joint(distribution: Distribution) -> Distribution:
    """The distribution with batch_shape ``[N]``: entries of one action are one event."""
    extra = len(distribution.batch_shape) - 1
    return Independent(distribution, extra) if extra > 0 else distribution


def stepped(
    optimizer: TRPOOptimizer, options: dict[str, Any], *closure: Any, **batch: Any
) -> TrustRegionResult:
    """The result of one step with the library's options of now, in either form of ``step``."""
    optimizer.param_groups[0].update(options)
    optimizer.step(*closure, **batch)
    assert optimizer.last_result is not None  # noqa: S101
    return optimizer.last_result
