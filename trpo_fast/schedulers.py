"""Schedules of the trust region's size, beside torch's own schedulers of ``lr``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trpo_fast.optimizer import TRPOOptimizer


class MaxKlScheduler:
    """Sets ``max_kl`` to its first value times ``factor(count)``, as ``LambdaLR`` does for ``lr``.

    Args:
        optimizer: whose ``max_kl`` is scheduled; a value edited by hand is overwritten.
        factor: of the number of ``step()`` calls so far, positive.
        last_count: where to go on; -1 begins.

    Raises:
        ValueError: a factor that is not positive and finite, at the optimizer's next step.
    """

    def __init__(
        self, optimizer: TRPOOptimizer, factor: Callable[[int], float], last_count: int = -1
    ) -> None:
        self.optimizer, self.factor = optimizer, factor
        self.base = float(optimizer.param_groups[0].setdefault("initial_max_kl", self._present()))
        self.count = last_count
        self.step()

    def step(self) -> None:
        """Go on by one; call it after ``optimizer.step``."""
        self.count += 1
        self.optimizer.param_groups[0]["max_kl"] = self.base * float(self.factor(self.count))

    def state_dict(self) -> dict[str, Any]:
        """Count and first value; the function is not part of it."""
        return {"count": self.count, "base": self.base}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken."""
        self.count, self.base = int(state["count"]), float(state["base"])
        self.optimizer.param_groups[0]["max_kl"] = self.base * float(self.factor(self.count))

    def _present(self) -> float:
        return float(self.optimizer.param_groups[0]["max_kl"])
