"""The activations that the analytic products know, with their derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

SOFTPLUS_THRESHOLD = 20.0  # torch.nn.Softplus's default, the only one that is recognised


@dataclass(frozen=True)
class Activation:
    """An elementwise function and its derivative, both exactly torch's.

    Attributes:
        module: torch's class of it.
        function: ``(z, parameter) -> phi(z)``.
        derivative: ``(z, parameter) -> phi'(z)``; at a kink, the value torch's autograd takes.
        parameter: torch's default for the one float parameter, 0 where there is none.
        parameter_name: The attribute of the module that is the parameter.
        others: The module's other attributes that decide what it computes, as they must be.
    """

    module: type[nn.Module]
    function: Callable[[Tensor, float], Tensor]
    derivative: Callable[[Tensor, float], Tensor]
    parameter: float = 0.0
    parameter_name: str | None = None
    others: Mapping[str, object] = field(default_factory=dict)

    def make(self) -> nn.Module:
        """The module, with torch's default for the parameter."""
        return self.module(**self.others)

    def parameter_of(self, module: nn.Module) -> float | None:
        """The parameter of a module that computes this; None of one that does not."""
        if type(module) is not self.module:
            return None
        if any(getattr(module, name) != value for name, value in self.others.items()):
            return None
        return float(getattr(module, self.parameter_name)) if self.parameter_name else 0.0


def _tanh_derivative(z: Tensor, _: float) -> Tensor:
    return 1 - torch.tanh(z).square()


def _leaky_derivative(z: Tensor, slope: float) -> Tensor:
    return torch.where(z > 0, torch.ones_like(z), slope)


def _elu_derivative(z: Tensor, alpha: float) -> Tensor:
    return torch.where(z > 0, torch.ones_like(z), alpha * torch.exp(z))


def _silu_derivative(z: Tensor, _: float) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s))


def _gelu_derivative(z: Tensor, _: float) -> Tensor:
    # d/dz [z Phi(z)] = Phi(z) + z exp(-z^2 / 2) / sqrt(2 pi)
    return 0.5 * (1 + torch.erf(z * 0.7071067811865476)) + z * (
        0.3989422804014327 * torch.exp(-0.5 * z * z)
    )


def _gelu_tanh_derivative(z: Tensor, _: float) -> Tensor:
    root, cubic = 0.7978845608028654, 0.044715  # sqrt(2 / pi); Hendrycks & Gimpel 2016
    t = torch.tanh(root * (z + cubic * z**3))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * root * (1 + 3 * cubic * z * z)


def _softplus(z: Tensor, beta: float) -> Tensor:
    return functional.softplus(z, beta, SOFTPLUS_THRESHOLD)


def _softplus_derivative(z: Tensor, beta: float) -> Tensor:
    return torch.where(beta * z > SOFTPLUS_THRESHOLD, torch.ones_like(z), torch.sigmoid(beta * z))


def _sigmoid_derivative(z: Tensor, _: float) -> Tensor:
    s = torch.sigmoid(z)
    return s * (1 - s)


# In the order of csrc/common/activations.h.
ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(nn.Identity, lambda z, _: z, lambda z, _: torch.ones_like(z)),
    "tanh": Activation(nn.Tanh, lambda z, _: torch.tanh(z), _tanh_derivative),
    "relu": Activation(nn.ReLU, lambda z, _: functional.relu(z), lambda z, _: (z > 0).to(z.dtype)),
    "leaky_relu": Activation(
        nn.LeakyReLU, functional.leaky_relu, _leaky_derivative, 0.01, "negative_slope"
    ),
    "elu": Activation(nn.ELU, functional.elu, _elu_derivative, 1.0, "alpha"),
    "silu": Activation(nn.SiLU, lambda z, _: functional.silu(z), _silu_derivative),
    "gelu": Activation(
        nn.GELU,
        lambda z, _: functional.gelu(z),
        _gelu_derivative,
        others={"approximate": "none"},
    ),
    "gelu_tanh": Activation(
        nn.GELU,
        lambda z, _: functional.gelu(z, approximate="tanh"),
        _gelu_tanh_derivative,
        others={"approximate": "tanh"},
    ),
    "softplus": Activation(
        nn.Softplus,
        _softplus,
        _softplus_derivative,
        1.0,
        "beta",
        others={"threshold": SOFTPLUS_THRESHOLD},
    ),
    "sigmoid": Activation(nn.Sigmoid, lambda z, _: torch.sigmoid(z), _sigmoid_derivative),
}
