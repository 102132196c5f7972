"""A rollout's steps by the native module: one call from raw observations to actions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trpo_fast._native import kernels
from trpo_fast.backends.codes import head_arguments
from trpo_fast.backends.cpu.arguments import held_layers, layer_args, tensor_arg
from trpo_fast.backends.cpu.workspace import Workspace
from trpo_fast.networks.network import Network

if TYPE_CHECKING:
    from trpo_fast._core import TensorArg

Array = npt.NDArray[Any]


class NativeSampling:
    """Policy forward pass, sampling and log-probability for T steps in B environments.

    The parameters are read now and packed once; the buffers at each step, and written at that
    step's place. The pure-torch twin of a step is the head's ``draw``.

    Args:
        network: float32 or float64 on the CPU.
        observations: [T + 1, B, O] float32 or float64, raw.
        constants: the normaliser's mean and scale, [O] each of the observations' dtype, and its
            clip; or None.
        noise: [T, B, A]: standard normal in the network's dtype for the Gaussian heads, else
            float64: uniform in [0, 1), in the columns of a joint head's Gaussian parts normal.
        masks: [T, B, n] bool or None.
        actions: [T, B, A], receives what was drawn: the network's dtype, or int64 for the
            categorical heads.
        env_actions: like ``actions``, receives them within ``bounds``; or None.
        bounds: low and high [A] of the actions' dtype; for categorical heads the first action,
            twice. None without ``env_actions``.
    """

    def __init__(
        self,
        network: Network,
        *,
        observations: Array,
        constants: tuple[Array, Array, float] | None,
        noise: Array,
        masks: Array | None,
        actions: Array,
        env_actions: Array | None,
        bounds: tuple[Array, Array] | None,
    ) -> None:
        layers, head, log_std = held_layers(network.layers), network.head, network.log_std
        dtype = layers[0].weight.dtype
        flat_log_std = None if log_std is None else log_std.detach().reshape(-1)
        native = kernels.SamplingF32 if dtype is torch.float32 else kernels.SamplingF64
        self._native = native(
            layer_args(layers, dtype),
            layers[0].weight.shape[1],
            head_arguments(head),
            None if flat_log_std is None else tensor_arg(flat_log_std, dtype),
            torch.get_num_threads(),
        )
        mean, scale, clip = constants or (None, None, 0.0)
        buffers = {
            "observations": observations,
            "mean": mean,
            "scale": scale,
            "noise": noise,
            "masks": None if masks is None else masks.view(np.uint8),
            "actions": actions,
            "env_actions": env_actions,
            "low": None if bounds is None else bounds[0],
            "high": None if bounds is None else bounds[1],
        }
        shape = (*actions.shape[:2], 1)
        self.log_probs: Tensor = torch.empty(shape, dtype=torch.float64, device="cpu")
        wide = observations.dtype == np.float64
        given: dict[str, Any] = {
            name: _arg(name, array, network, wide=wide) for name, array in buffers.items()
        }
        self._memory = Workspace(self._native.workspace_bytes())
        # The native side holds addresses: these keep what they point at alive.
        self._kept = (layers, flat_log_std, buffers)
        log_probs = tensor_arg(self.log_probs, torch.float64)
        given |= {"wide": wide, "clip": clip, "log_prob": log_probs}
        self._native.bind(self._memory.address, given)
        self.step = self._native.step


def _arg(name: str, array: Array | None, network: Network, *, wide: bool) -> TensorArg | None:
    if array is None:
        return None
    real = network.layers[0].weight.dtype
    action = torch.int64 if network.head.integral else real
    shown = torch.float64 if wide else torch.float32
    dtypes = {
        "observations": shown,
        "mean": shown,
        "scale": shown,
        "noise": real if network.head.gaussian_noise else torch.float64,
        "masks": torch.uint8,
    }
    return tensor_arg(torch.from_numpy(array), dtypes.get(name, action))
