"""A network's forward pass on a CUDA device, for a rollout that stays there."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trpo_fast import _native
from trpo_fast.backends.codes import ACTIVATION_CODES
from trpo_fast.backends.cuda.layout import (
    ALIGNMENT,
    MAX_LAYERS,
    PANEL_WIDTH,
    TensorPlace,
    packed_map,
)
from trpo_fast.networks.network import Layer

if TYPE_CHECKING:
    from trpo_fast._core_cuda import TensorArg


def stream_of(device: torch.device) -> int:
    """Torch's current stream as the native module takes it."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _arg(tensor: Tensor) -> TensorArg:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def serves_forward(layers: Sequence[Layer]) -> bool:
    """Whether ``DeviceForward`` can serve these layers here."""
    weight = layers[0].weight
    fits = len(layers) <= MAX_LAYERS and weight.numel() > 0
    kinds = (torch.float32, torch.float64)
    if not (fits and weight.is_cuda and weight.dtype in kinds):
        return False
    return _native.cuda_on(weight.device.index or 0)[0] is not None


class DeviceForward:
    """A network's forward pass on a CUDA device: one kernel a call, at the parameters of now.

    Later changes of the parameters are not seen.

    Args:
        layers: float32 or float64 tensors on the device, any strides; the last activation is the
            identity.
    """

    def __init__(self, layers: Sequence[Layer], core: ModuleType | None = None) -> None:
        first = layers[0].weight
        self._dtype, self._device = first.dtype, first.device
        found = core or _native.cuda()[0]
        assert found is not None  # noqa: S101
        self._core = found
        start = 0
        pieces: list[Tensor] = []
        places: list[tuple[TensorPlace, TensorPlace | None]] = []
        for layer in layers:
            weight = (start, tuple(layer.weight.shape))
            start += layer.weight.numel()
            pieces.append(layer.weight.detach().reshape(-1))
            bias = None
            if layer.bias is not None:
                bias = (start, tuple(layer.bias.shape))
                start += layer.bias.numel()
                pieces.append(layer.bias.detach().reshape(-1))
            places.append((weight, bias))
        self._theta = torch.cat(pieces)
        self._map = packed_map(tuple(places), None, (), self._device)
        self._layers = [
            (
                layer.weight.shape[1],
                layer.weight.shape[0],
                ACTIVATION_CODES[layer.activation],
                layer.parameter,
            )
            for layer in layers
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """The outputs ``[N, out]`` for ``x`` ``[N, in]``, no autograd.

        Raises:
            TypeError: x has another dtype or device than the weights.
            ValueError: x has a wrong shape.
        """
        if x.dtype is not self._dtype or x.device != self._device:
            raise TypeError(
                f"x is {x.dtype} on {x.device}, the weights are {self._dtype} on {self._device}"
            )
        outputs = self._layers[-1][1]
        out = torch.empty(len(x), outputs, dtype=self._dtype, device=self._device)
        if len(x) == 0:
            return out
        x = x.detach().resolve_neg().contiguous()
        core, single = self._core, self._dtype is torch.float32
        native = (core.ForwardF32 if single else core.ForwardF64)(
            obs=_arg(x),
            layers=self._layers,
            map=_arg(self._map),
            theta=_arg(self._theta),
            tiled=max(width for _, width, *_ in self._layers) > PANEL_WIDTH,
            device=self._device.index or 0,
        )
        memory = torch.empty(
            native.workspace_bytes() + ALIGNMENT, dtype=torch.uint8, device=self._device
        )
        native.bind(-(-memory.data_ptr() // ALIGNMENT) * ALIGNMENT)
        native.forward(_arg(out), stream_of(self._device))
        return out
