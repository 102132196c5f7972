"""Plain description of a multilayer perceptron with a distribution head.

This is what every backend computes on: tensors, names and sizes, no modules. ``network_of`` and
``layers_of`` are the only doors from ``torch.nn`` modules to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal
from torch.nn import functional

from trpo_fast.distributions import MaskedCategorical, MultiCategorical, shifted_logits
from trpo_fast.flat import PLAIN_TENSORS

SOFTPLUS_THRESHOLD = 20.0  # torch.nn.Softplus's default, the only one that is recognised
UNDECIDED = "decided at each step, by what forward does with its observations"
HEAD_KINDS = ("gaussian", "gaussian_state_std", "categorical", "multi_categorical", "bernoulli")


@dataclass(frozen=True)
class Activation:
    """An elementwise function and its derivative, both exactly torch's.

    Attributes:
        function: ``(z, parameter) -> phi(z)``.
        derivative: ``(z, parameter) -> phi'(z)``; at a kink, the value torch's autograd takes.
        parameter: torch's default for the one float parameter, 0 where there is none.
    """

    function: Callable[[Tensor, float], Tensor]
    derivative: Callable[[Tensor, float], Tensor]
    parameter: float = 0.0


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


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(lambda z, _: z, lambda z, _: torch.ones_like(z)),
    "tanh": Activation(lambda z, _: torch.tanh(z), _tanh_derivative),
    "relu": Activation(lambda z, _: functional.relu(z), lambda z, _: (z > 0).to(z.dtype)),
    "leaky_relu": Activation(functional.leaky_relu, _leaky_derivative, 0.01),
    "elu": Activation(functional.elu, _elu_derivative, 1.0),
    "silu": Activation(lambda z, _: functional.silu(z), _silu_derivative),
    "gelu": Activation(lambda z, _: functional.gelu(z), _gelu_derivative),
    "gelu_tanh": Activation(
        lambda z, _: functional.gelu(z, approximate="tanh"), _gelu_tanh_derivative
    ),
    "softplus": Activation(_softplus, _softplus_derivative, 1.0),
    "sigmoid": Activation(lambda z, _: torch.sigmoid(z), _sigmoid_derivative),
}


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
class Head:
    """How the last layer's outputs parametrise the distribution.

    Attributes:
        kind: One of ``HEAD_KINDS``. ``gaussian_state_std`` outputs (mean [A], log_std [A]).
        action_dim: Width A of one action; 0 for a scalar categorical action.
        nvec: Sizes of the categorical blocks; empty for the other kinds.
    """

    kind: str
    action_dim: int
    nvec: tuple[int, ...] = ()


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


def distribution(
    network: Network, outputs: Tensor, action_mask: Tensor | None = None
) -> Distribution:
    """The policy's distribution, batch_shape ``[N]``, from its outputs ``[N, outputs]``.

    Args:
        network: The recognised policy.
        outputs: What ``forward(network.layers, obs)`` gave.
        action_mask: ``[N, n]`` bool, True where an action is allowed; categorical heads only.
    """
    return head_distribution(network.head, outputs, network.log_std_row, action_mask)


def head_distribution(
    head: Head, outputs: Tensor, log_std: Tensor | None, action_mask: Tensor | None
) -> Distribution:
    """As ``distribution``, from the parts."""
    if head.kind == "gaussian":
        assert log_std is not None  # noqa: S101
        scale = log_std.exp().expand_as(outputs)
        return Independent(Normal(outputs, scale, validate_args=False), 1, validate_args=False)
    if head.kind == "gaussian_state_std":
        mean, log_std = outputs.chunk(2, dim=-1)
        normal = Normal(mean, log_std.exp(), validate_args=False)
        return Independent(normal, 1, validate_args=False)
    if head.kind == "categorical":
        if action_mask is None:
            return Categorical(logits=shifted_logits(outputs), validate_args=False)
        return MaskedCategorical(outputs, action_mask, validate_args=False)
    if head.kind == "multi_categorical":
        return MultiCategorical(outputs, head.nvec, action_mask, validate_args=False)
    bernoulli = Bernoulli(logits=outputs, validate_args=False)
    return Independent(bernoulli, 1, validate_args=False)


_SIMPLE_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.Identity: "identity",
    nn.Tanh: "tanh",
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
}


def _activation_of(module: nn.Module) -> tuple[str, float] | None:
    kind = type(module)
    if kind in _SIMPLE_ACTIVATIONS:
        return _SIMPLE_ACTIVATIONS[kind], 0.0
    if isinstance(module, nn.LeakyReLU):
        return ("leaky_relu", float(module.negative_slope)) if kind is nn.LeakyReLU else None
    if isinstance(module, nn.ELU):
        return ("elu", float(module.alpha)) if kind is nn.ELU else None
    if isinstance(module, nn.GELU) and kind is nn.GELU:
        return ("gelu_tanh" if module.approximate == "tanh" else "gelu", 0.0)
    if isinstance(module, nn.Softplus):
        usual = kind is nn.Softplus and module.threshold == SOFTPLUS_THRESHOLD
        return ("softplus", float(module.beta)) if usual else None
    return None


def _sequential_layers(body: nn.Sequential) -> tuple[Layer, ...] | str:
    """Layers of Linear, activation, Linear, ..., Linear; or why it is not of that form."""
    layers: list[Layer] = []
    previous: nn.Module | None = None
    for module in body:
        last, previous = previous, module
        if type(module) is nn.Linear:
            # nn.Module.__getattr__ costs ten times as much
            own = module._parameters
            weight, bias = own["weight"], own["bias"]
            assert weight is not None  # noqa: S101
            if layers and layers[-1].weight.shape[0] != weight.shape[1]:
                return "the widths of consecutive layers do not match"
            layers.append(Layer(weight, bias, "identity"))
            continue
        activation = _activation_of(module)
        if activation is None or not layers:
            return f"the layer {type(module).__name__} is not one that the fused path knows"
        if type(last) is not nn.Linear:
            return f"{type(module).__name__} follows {type(last).__name__} directly"
        layers[-1] = Layer(layers[-1].weight, layers[-1].bias, *activation)
    return tuple(layers)


def unservable(tensors: Sequence[Tensor]) -> str | None:
    """Why these parameter tensors of a network cannot be served, or None."""
    first = tensors[0]
    if first.dtype not in (torch.float32, torch.float64):
        return f"parameters are {first.dtype}; the fused path serves float32 and float64"
    dtype, device, spans = first.dtype, first.device, []
    for t in tensors:
        if t.dtype is not dtype or t.device != device:
            return "parameters differ in dtype or device"
        if t.layout is not torch.strided:
            return "a parameter is not a dense (strided) tensor"
        if type(t) not in PLAIN_TENSORS or not t.numel():
            return "a parameter is of a tensor subclass, or empty"
        if t._backward_hooks:
            return "a gradient hook is registered on a parameter"
        start = t.data_ptr()
        spans.append((start, start + (t.nbytes if t.is_contiguous() else 1)))
    spans.sort()
    shared = any(end > start for (_, end), (start, _) in pairwise(spans))
    return "two layers share a parameter, or memory of theirs" if shared else None


def layers_of(module: nn.Module, obs: Tensor | None = None) -> tuple[Layer, ...] | str:
    """The layers of a value function, or the reason, in words, why it is not recognised.

    Args:
        module: Its forward maps ``[N, O]`` to ``[N]`` or ``[N, 1]``.
        obs: ``[N, O]``; what another module than ``ValueFunction`` computes is found, and each
            time compared, on these. Without them such a module is ``UNDECIDED``.
    """
    from trpo_fast.value_function import ValueFunction

    if type(module) is ValueFunction:
        layers = _checked_layers(module, module.body)
        if isinstance(layers, str):
            return layers
        tensors = [t for layer in layers for t in (layer.weight, layer.bias) if t is not None]
        return unservable(tensors) or layers
    from trpo_fast.recognizer import recognise_values

    found = recognise_values(module, obs)
    return found if isinstance(found, str) else found[0].layers(found[1])


def _checked_layers(module: nn.Module, body: nn.Module) -> tuple[Layer, ...] | str:
    from trpo_fast.recognizer import unusual_part

    reason = unusual_part(module)
    if reason is not None:
        return reason
    if type(body) is not nn.Sequential:
        return f"its body is a {type(body).__name__}, not a plain Sequential"
    return _sequential_layers(body)


def network_of(
    module: nn.Module, obs: Any = None, action_mask: Tensor | None = None
) -> Network | str:
    """The network of a policy, or the reason, in words, why it is not recognised.

    Recognised: ``MlpPolicy``, and any module whose forward is at heart a chain of Linear layers and
    activations that ends in a known distribution (``recognizer``); without hooks,
    parametrizations or a replaced forward; with float32 or float64 parameters. The network's
    tensors are the module's own parameters.

    Args:
        module: Its forward maps ``[N, O]`` to a distribution.
        obs: The batch at hand. What another module than ``MlpPolicy`` computes is found, and each
            time compared, on its rows; without them such a module is ``UNDECIDED``.
        action_mask: The batch's mask, or None.
    """
    from trpo_fast.policies import MlpPolicy

    if type(module) is not MlpPolicy:
        return _foreign_network(module, obs, action_mask)
    layers = _checked_layers(module, module.body)
    if isinstance(layers, str):
        return layers
    if layers[-1].activation != "identity":
        return "the last layer has an activation"
    network = Network(layers, module.head, module.log_std)
    return unservable(list(network.tensors())) or network


def _foreign_network(module: nn.Module, obs: Any, action_mask: Tensor | None) -> Network | str:
    from trpo_fast.recognizer import recognise_policy

    if action_mask is None:
        found = recognise_policy(module, obs)
    else:
        found = "an action_mask is given, which the fused path serves for MlpPolicy alone"
    if isinstance(found, str):
        return found if found == UNDECIDED else f"{type(module).__name__}: {found}"
    return found[0].network(found[1])
