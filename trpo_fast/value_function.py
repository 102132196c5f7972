"""The critic's network: a perceptron with one output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gymnasium import spaces
from torch import Tensor, nn

from trpo_fast.policies import flat_observations, observation_width, perceptron


class ValueFunction(nn.Module):
    """State values ``[N]`` from flattened observations ``[N, O]``.

    Args:
        observation_space: gymnasium space; its flattened width is the input width O.
        hidden_sizes: Widths of the hidden layers.
        activation: A key of ``trpo_fast.network.ACTIVATIONS``.
        ortho_init: Orthogonal initialisation (last layer gain 1); False keeps torch's own.
        generator: Source of the initial weights; None is torch's global generator.

    Raises:
        ValueError: unsupported space or unknown activation.
    """

    def __init__(
        self,
        observation_space: spaces.Space,  # type: ignore[type-arg]
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
        *,
        ortho_init: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.obs_width = observation_width(observation_space)
        self.body = perceptron(
            [self.obs_width, *hidden_sizes, 1],
            activation,
            last_gain=1.0,
            ortho_init=ortho_init,
            generator=generator,
        )

    def forward(self, obs: Tensor) -> Tensor:
        """Values ``[N]`` of observations ``[N, O]``, cast to the parameters' dtype."""
        values: Tensor = self.body(flat_observations(obs, self.body, self.obs_width))
        return values.squeeze(-1)
