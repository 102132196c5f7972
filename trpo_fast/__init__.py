"""Trust Region Policy Optimization as a torch optimizer, an agent and a command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trpo_fast import _program  # noqa: F401 (first: it is for the time of the imports)
from trpo_fast._version import __version__  # noqa: F401 (as every package has it)
from trpo_fast.base.errors import FallbackWarning
from trpo_fast.networks.distributions import MaskedCategorical, MultiCategorical
from trpo_fast.networks.joint import JointDistribution
from trpo_fast.networks.mlp import MlpPolicy, ValueFunction
from trpo_fast.networks.recurrent import RecurrentPolicy, RecurrentValueFunction
from trpo_fast.networks.structured import (
    CnnPolicy,
    CnnValueFunction,
    MultiInputPolicy,
    MultiInputValueFunction,
)
from trpo_fast.optimizer.functional import fisher_vector_product, natural_gradient
from trpo_fast.optimizer.optimizer import TRPOOptimizer
from trpo_fast.rollouts.gae import compute_gae
from trpo_fast.update.result import Status, TrustRegionResult

if TYPE_CHECKING:
    from trpo_fast.agent.agent import TRPO

__all__ = [
    "TRPO",
    "CnnPolicy",
    "CnnValueFunction",
    "FallbackWarning",
    "JointDistribution",
    "MaskedCategorical",
    "MlpPolicy",
    "MultiCategorical",
    "MultiInputPolicy",
    "MultiInputValueFunction",
    "RecurrentPolicy",
    "RecurrentValueFunction",
    "Status",
    "TRPOOptimizer",
    "TrustRegionResult",
    "ValueFunction",
    "compute_gae",
    "fisher_vector_product",
    "natural_gradient",
]


def __getattr__(name: str) -> Any:
    """The agent, when it is asked for: who only wants the optimizer need not wait for it."""
    if name == "TRPO":
        from trpo_fast.agent.agent import TRPO

        globals()[name] = TRPO
        return TRPO
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
