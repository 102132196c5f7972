"""Trust Region Policy Optimization as a torch optimizer, an agent and a command."""

from __future__ import annotations

from trpo_fast import _program  # noqa: F401 (first: it is for the time of the imports)
from trpo_fast.agent import TRPO
from trpo_fast.distributions import MaskedCategorical, MultiCategorical
from trpo_fast.errors import FallbackWarning
from trpo_fast.functional import fisher_vector_product, natural_gradient
from trpo_fast.gae import compute_gae
from trpo_fast.optimizer import TRPOOptimizer
from trpo_fast.policies import MlpPolicy
from trpo_fast.trust_region import Status, TrustRegionResult
from trpo_fast.value_function import ValueFunction

__version__ = "0.1.0"

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
