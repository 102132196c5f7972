"""The forward pass of a recognised network, by the fastest code that serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trpo_fast import _native
from trpo_fast.networks.network import Layer, forward


def forward_function(layers: Sequence[Layer]) -> Callable[[Tensor], Tensor]:
    """``x`` ``[N, in]`` -> outputs ``[N, out]``, outside autograd, at the parameters of now.

    For many calls at fixed parameters, a rollout's: native where the module is there and the
    weights are float32 or float64 on the CPU, the same in pure torch otherwise.
    """
    weight = layers[0].weight
    native = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
    if _native.core is not None and native:
        from trpo_fast.backends.cpu.forward import PackedForward

        return PackedForward(layers)
    if weight.is_cuda and layers[-1].activation == "identity":
        from trpo_fast.backends.cuda.forward import DeviceForward, serves_forward

        if serves_forward(layers):
            return DeviceForward(layers)
    return torch.no_grad()(lambda x: forward(layers, x))


def mlp_forward(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """The layers' output ``[N, out]`` for ``x`` ``[N, in]``, once; see ``forward_function``."""
    return forward_function(layers)(x)
