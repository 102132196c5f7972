"""Trust Region Policy Optimization as a torch optimizer, an agent and a command."""

from __future__ import annotations

from trpo_fast.distributions import MaskedCategorical, MultiCategorical
from trpo_fast.policies import MlpPolicy
from trpo_fast.value_function import ValueFunction

__version__ = "0.1.0"

__all__ = ["MaskedCategorical", "MlpPolicy", "MultiCategorical", "ValueFunction"]
