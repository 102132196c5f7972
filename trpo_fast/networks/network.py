"""Plain description of a multilayer perceptron with a distribution head.

This is what every backend computes on: tensors, names and sizes, no modules. ``recognition``'s
``network_of`` and ``layers_of`` are the only doors from ``torch.nn`` modules to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from trpo_fast.networks.activations import ACTIVATIONS
from trpo_fast.networks.head import Head, Outputs


class Layer(NamedTuple):
    """``phi(x W' + b)``.

    Attributes:
        weight: ``[out, in]``.
        bias: ``[out]`` or None.
        activation: A key of ``ACTIVATIONS``.
        parameter: The activation's float parameter (negative_slope, alpha, beta).
    """

    weight: Tensor
    bias: Tensor | None
    activation: str
    parameter: float = 0.0


@dataclass(frozen=True)
class Network:
    """A recognised policy: layers, head and, for ``gaussian``, the log standard deviation.

    ``log_std`` is [A], or [1, A] or [A, 1] where a module keeps it so.
    """

    layers: tuple[Layer, ...]
    head: Head
    log_std: Tensor | None = None

    @property
    def log_std_row(self) -> Tensor | None:
        """``log_std`` as ``[A]``."""
        return None if self.log_std is None else self.log_std.reshape(-1)

    def at(self, outputs: Tensor, action_mask: Tensor | None = None) -> Outputs:
        """What the head makes a distribution of.

        Args:
            outputs: ``[n, outputs]``, what ``forward(layers, obs)`` gave.
            action_mask: ``[n, sum(nvec)]`` bool, True where allowed; categorical heads only.
        """
        return Outputs(outputs, self.log_std_row, action_mask)

    def tensors(self) -> Iterator[Tensor]:
        """Every parameter tensor: log_std first, then weight and bias layer by layer."""
        if self.log_std is not None:
            yield self.log_std
        for layer in self.layers:
            yield layer.weight
            if layer.bias is not None:
                yield layer.bias


def forward(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """The layers' output ``[N, out]`` for inputs ``x`` ``[N, in]``."""
    for layer in layers:
        z = functional.linear(x, layer.weight, layer.bias)
        x = ACTIVATIONS[layer.activation].function(z, layer.parameter)
    return x


class Linearisation(NamedTuple):
    """A chunk of rows at theta_old: what every Jacobian product of the solve reads."""

    inputs: list[Tensor]  # each layer's input a, [n, in]
    slopes: list[Tensor]  # each layer's phi'(z), [n, out]
    outputs: Tensor  # [n, outputs]


def linearise(layers: Sequence[Layer], x: Tensor) -> Linearisation:
    """One forward pass of the rows ``x`` ``[n, in]``."""
    inputs, slopes = [], []
    for layer in layers:
        activation = ACTIVATIONS[layer.activation]
        z = functional.linear(x, layer.weight, layer.bias)
        inputs.append(x)
        slopes.append(activation.derivative(z, layer.parameter))
        x = activation.function(z, layer.parameter)
    return Linearisation(inputs, slopes, x)
