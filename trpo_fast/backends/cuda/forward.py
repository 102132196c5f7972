"""A network's forward pass on a CUDA device, for a rollout that stays there."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from trpo_fast import _native
from trpo_fast.backends.cuda.layout import (
    MAX_LAYERS,
    PANEL_WIDTH,
    appended,
    bound_workspace,
    layer_args,
    layer_places,
    packed_map,
    stream_of,
    tensor_arg,
)
from trpo_fast.networks.network import Layer


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
        tensors = [t for layer in layers for t in (layer.weight, layer.bias) if t is not None]
        places, pieces = appended(tensors, 0)
        self._theta = torch.cat(pieces)
        self._map = packed_map(layer_places(layers, places), None, (), self._device)
        self._layers = layer_args(layers)

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
            obs=tensor_arg(x),
            layers=self._layers,
            map=tensor_arg(self._map),
            theta=tensor_arg(self._theta),
            tiled=max(width for _, width, *_ in self._layers) > PANEL_WIDTH,
            device=self._device.index or 0,
        )
        memory = bound_workspace(native, self._device)
        native.forward(tensor_arg(out), stream_of(self._device))
        del memory  # not before the launch: whom torch gives it to then comes later on the stream
        return out
