"""Which code serves: the registry of backends, and the forward pass they share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trpo_fast import _native, network


def mlp_forward(layers: Sequence[network.Layer], x: Tensor) -> Tensor:
    """The layers' output ``[N, out]`` for ``x`` ``[N, in]``, outside autograd.

    Native where the module is there and the tensors are float32 or float64 on the CPU; the same
    in pure torch otherwise.
    """
    if _native.core is not None and _native_serves(layers, x):
        from trpo_fast.backends import cpu

        return cpu.mlp_forward(layers, x)
    with torch.no_grad():
        return network.forward(layers, x)


def _native_serves(layers: Sequence[network.Layer], x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.ndim == 2
        and x.dtype in (torch.float32, torch.float64)
        and x.dtype == layers[0].weight.dtype
    )
