"""The native CPU backend: checks in Python, once, then one native call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trpo_fast import _core

if TYPE_CHECKING:
    from trpo_fast._core import LayerArg, TensorArg
    from trpo_fast.network import Layer

# The order of csrc/common/activations.h.
ACTIVATION_CODES = {
    name: code
    for code, name in enumerate(
        (
            "identity",
            "tanh",
            "relu",
            "leaky_relu",
            "elu",
            "silu",
            "gelu",
            "gelu_tanh",
            "softplus",
            "sigmoid",
        )
    )
}
ALIGNMENT = 64  # kAlignment of csrc/cpu/slabs.h


def tensor_arg(tensor: Tensor, dtype: torch.dtype) -> TensorArg:
    """How a CPU tensor crosses to the native module; any strides, no copy, no cast.

    Raises:
        TypeError: the tensor has another dtype or is not a dense CPU tensor.
    """
    if tensor.dtype is not dtype or tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise TypeError(
            f"the native CPU backend reads dense {dtype} tensors on the CPU, got {tensor.layout} "
            f"{tensor.dtype} on {tensor.device}; convert it first, or use backend='reference'"
        )
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def layer_args(layers: Sequence[Layer], dtype: torch.dtype) -> list[LayerArg]:
    """The layers as the native module takes them. Valid while their tensors live and stay put."""
    return [
        (
            tensor_arg(layer.weight, dtype),
            None if layer.bias is None else tensor_arg(layer.bias, dtype),
            ACTIVATION_CODES[layer.activation],
            layer.parameter,
        )
        for layer in layers
    ]


def workspace(nbytes: int) -> tuple[Tensor, int]:
    """Uninitialised memory from torch's allocator and an aligned address in it."""
    memory = torch.empty(nbytes + ALIGNMENT, dtype=torch.uint8)
    address = memory.data_ptr()
    return memory, address + -address % ALIGNMENT


def mlp_forward(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """The layers' output ``[N, out]`` for ``x`` ``[N, in]``, float32 or float64, no autograd.

    Raises:
        TypeError: x and the weights are not of one dtype, float32 or float64, on the CPU.
        ValueError: the widths do not fit together.
    """
    dtype = x.dtype
    if dtype is torch.float32:
        size_of, forward = _core.mlp_forward_workspace_f32, _core.mlp_forward_f32
    elif dtype is torch.float64:
        size_of, forward = _core.mlp_forward_workspace_f64, _core.mlp_forward_f64
    else:
        raise TypeError(f"x is {dtype}; the native CPU backend serves float32 and float64")
    args = layer_args(layers, dtype)
    x_arg = tensor_arg(x, dtype)
    if x.ndim != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected [N, in]")
    memory, address = workspace(size_of(args, x.shape[1]))
    out = torch.empty(x.shape[0], layers[-1].weight.shape[0], dtype=dtype)
    forward(args, x_arg, tensor_arg(out, dtype), address)
    del memory
    return out
