"""Schedules of the trust region's size, beside torch's own schedulers of ``lr``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trpo_fast.optimizer.optimizer import TRPOOptimizer
from trpo_fast.update.options import TABLE


class MaxKlScheduler:
    """Sets ``max_kl`` to its first value times ``factor(count)``, as ``LambdaLR`` does for ``lr``.

    Args:
        optimizer: whose ``max_kl`` is scheduled; a value edited by hand is overwritten.
        factor: of the number of ``step()`` calls so far, positive.
        last_count: where to go on; -1 begins.

    Raises:
        ValueError: a first value that is not positive and finite; such a factor, at the
            optimizer's next step; a count below -1.
        TypeError: an optimizer without ``max_kl``, or a factor that is no function.
    """

    def __init__(
        self, optimizer: TRPOOptimizer, factor: Callable[[int], float], last_count: int = -1
    ) -> None:
        group = optimizer.param_groups[0]
        if "max_kl" not in group:
            raise TypeError(
                f"{type(optimizer).__name__} has no max_kl to schedule; give a TRPOOptimizer"
            )
        if not callable(factor):
            raise TypeError(f"factor must be a function of the count, got {factor!r}")
        self.count, self.base = _checked(last_count, group.get("initial_max_kl", group["max_kl"]))
        self.optimizer, self.factor = optimizer, factor
        group["initial_max_kl"] = self.base
        self.step()

    def step(self) -> None:
        """Go on by one; call it after ``optimizer.step``."""
        self.count += 1
        self.optimizer.param_groups[0]["max_kl"] = self.base * float(self.factor(self.count))

    def state_dict(self) -> dict[str, Any]:
        """Count and first value; the function is not part of it."""
        return {"count": self.count, "base": self.base}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken.

        Raises:
            ValueError: it is none of this class; nothing is changed.
        """
        missing = {"count", "base"} - set(state)
        if missing:
            raise ValueError(f"the scheduler's state lacks {', '.join(sorted(missing))}")
        self.count, self.base = _checked(state["count"], state["base"])
        self.optimizer.param_groups[0]["max_kl"] = self.base * float(self.factor(self.count))


def _checked(count: object, base: Any) -> tuple[int, float]:
    if not isinstance(count, int) or isinstance(count, bool) or count < -1:
        raise ValueError(f"the scheduler's count must be a whole number >= -1, got {count!r}")
    return count, TABLE["max_kl"].checked(base)
