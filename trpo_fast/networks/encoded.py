"""What policies have in common that read an encoder's features and not observations."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Distribution

from trpo_fast.networks.mlp import MlpPolicy


class EncodedPolicy(nn.Module):
    """A policy that ends in an actor, a perceptron on the features of what comes before it.

    Attributes:
        actor: From features to the distribution of the actions.
    """

    observation: ClassVar[str] = "structured"
    actor: MlpPolicy

    @property
    def log_std(self) -> Tensor | None:
        """A Gaussian's log standard deviation ``[A]``, where it is a parameter."""
        return self.actor.log_std

    def to_env(self, actions: Any) -> Any:
        """What ``env.step`` takes from what ``sample`` gave."""
        return self.actor.to_env(actions)

    def mode(self, distribution: Distribution) -> Any:
        """The deterministic action of a distribution that ``forward`` gave."""
        return self.actor.mode(distribution)


def features(width: int) -> spaces.Box:
    """The space of an encoder's features."""
    return spaces.Box(-np.inf, np.inf, (width,))
