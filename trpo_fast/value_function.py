"""The critic's network: a perceptron with one output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gymnasium import spaces
from torch import Tensor, nn

from trpo_fast.backends import mlp_forward
from trpo_fast.network import layers_of
from trpo_fast.policies import flat_observations, hidden_widths, observation_width, perceptron
from trpo_fast.threads import one_thread_if_small


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
            [self.obs_width, *hidden_widths(hidden_sizes), 1],
            activation,
            last_gain=1.0,
            ortho_init=ortho_init,
            generator=generator,
        )

    def forward(self, obs: Tensor) -> Tensor:
        """Values ``[N]`` of observations ``[N, O]``, cast to the parameters' dtype."""
        values: Tensor = self.body(flat_observations(obs, self.body, self.obs_width))
        return values.squeeze(-1)


def state_values(value_function: nn.Module, observations: Tensor) -> Tensor:
    """Values of ``observations`` ``[N, O]``, outside autograd, as the module's forward gives them.

    A ``ValueFunction`` is evaluated by ``backends.mlp_forward``: torch's own threads, once woken by
    a large product, spin for milliseconds on the cores that the native update wants next.
    """
    layers = layers_of(value_function)
    with torch.no_grad():
        if not isinstance(layers, str):
            return mlp_forward(layers, observations.to(layers[0].weight.dtype)).squeeze(-1)
        with one_thread_if_small(value_function, len(observations)):
            values: Tensor = value_function(observations)
            return values
