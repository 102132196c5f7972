"""Trust Region Policy Optimization as a torch optimizer, an agent and a command."""

from __future__ import annotations

from trpo_fast import _program  # noqa: F401 (first: it is for the time of the imports)
from trpo_fast._version import __version__  # noqa: F401 (as every package has it)
from trpo_fast.agent.agent import TRPO
from trpo_fast.base.errors import FallbackWarning
from trpo_fast.networks.distributions import MaskedCategorical, MultiCategorical
from trpo_fast.networks.mlp import MlpPolicy, ValueFunction
from trpo_fast.optimizer.functional import fisher_vector_product, natural_gradient
from trpo_fast.optimizer.optimizer import TRPOOptimizer
from trpo_fast.rollouts.gae import compute_gae
from trpo_fast.update.result import Status, TrustRegionResult

__all__ = [
    "TRPO",
    "FallbackWarning",
    "MaskedCategorical",
    "MlpPolicy",
    "MultiCategorical",
    "Status",
    "TRPOOptimizer",
    "TrustRegionResult",
    "ValueFunction",
    "compute_gae",
    "fisher_vector_product",
    "natural_gradient",
]
