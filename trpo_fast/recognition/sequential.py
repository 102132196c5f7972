"""A plain ``nn.Sequential`` as layers, read off its modules."""

from __future__ import annotations

from torch import nn

from trpo_fast.networks.activations import ACTIVATIONS
from trpo_fast.networks.network import Layer


def _activation_of(module: nn.Module) -> tuple[str, float] | None:
    for name, activation in ACTIVATIONS.items():
        parameter = activation.parameter_of(module)
        if parameter is not None:
            return name, parameter
    return None


def sequential_layers(body: nn.Sequential) -> tuple[Layer, ...] | str:
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
