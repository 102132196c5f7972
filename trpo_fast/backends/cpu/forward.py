"""The native forward pass on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trpo_fast._native import kernels
from trpo_fast.backends.cpu.arguments import held_layers, layer_args, tensor_arg
from trpo_fast.backends.cpu.workspace import Workspace
from trpo_fast.networks.network import Layer

# Multiplications of one native call, between which Python looks for Ctrl-C; in rows that no panel
# of the native side is cut by.
CALL_PRODUCTS, ROWS_MULTIPLE = 1 << 32, 768


class PackedForward:
    """A network's forward pass, its weights packed once for any number of calls.

    Later changes of the parameters are not seen.

    Args:
        layers: float32 or float64 tensors on the CPU, any strides.

    Raises:
        TypeError: the weights are not of one dtype, float32 or float64, on the CPU.
        ValueError: the widths do not fit together.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._dtype = layers[0].weight.dtype
        if self._dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"weights are {self._dtype}; the native CPU backend serves float32 and float64"
            )
        native = kernels.MlpForwardF32 if self._dtype is torch.float32 else kernels.MlpForwardF64
        held = held_layers(layers)
        args = layer_args(held, self._dtype)
        self._native = native(args, layers[0].weight.shape[1], torch.get_num_threads())
        self._memory = Workspace(self._native.workspace_bytes())
        self._native.bind(self._memory.address)
        self._outputs = layers[-1].weight.shape[0]
        weights = sum(layer.weight.numel() for layer in layers)
        self._call_rows = ROWS_MULTIPLE * max(1, CALL_PRODUCTS // max(1, weights * ROWS_MULTIPLE))

    def __call__(self, x: Tensor) -> Tensor:
        """The outputs ``[N, out]`` for ``x`` ``[N, in]``, no autograd.

        Raises:
            TypeError: x has another dtype than the weights.
            ValueError: x has a wrong shape.
        """
        x = x.detach().resolve_neg()
        x_arg = tensor_arg(x, self._dtype)
        if x.ndim != 2:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected [N, in]")
        out = x.new_empty(x.shape[0], self._outputs)
        if len(x) <= self._call_rows:
            self._native(x_arg, tensor_arg(out, self._dtype))
            return out
        for some, to in zip(x.split(self._call_rows), out.split(self._call_rows), strict=True):
            self._native(tensor_arg(some, self._dtype), tensor_arg(to, self._dtype))
        return out


def mlp_forward(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """The layers' output ``[N, out]`` for ``x`` ``[N, in]``; see ``PackedForward``."""
    return PackedForward(layers)(x)
