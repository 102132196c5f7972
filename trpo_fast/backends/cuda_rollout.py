"""What a rollout that stays on a CUDA device needs: advantages, and the network's forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trpo_fast import _native
from trpo_fast.backends.cuda import (
    ALIGNMENT,
    MAX_LAYERS,
    PANEL_WIDTH,
    Place,
    packed_map,
)
from trpo_fast.backends.native_arguments import ACTIVATION_CODES, HEAD_CODES
from trpo_fast.network import Layer

if TYPE_CHECKING:
    from trpo_fast._core_cuda import TensorArg


# Arguments of a policy problem that a forward pass has none of.
_UNUSED = (
    "weights",
    "weight_sum",
    "action_mask",
    "fisher_obs",
    "fisher_weights",
    "fisher_weight_sum",
    "fisher_action_mask",
    "actions",
    "advantages",
    "old_log_prob",
)


def stream_of(device: torch.device) -> int:
    """Torch's current stream as the native module takes it."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _arg(tensor: Tensor) -> TensorArg:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def gae(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    last_values: Tensor,
    final_values: Tensor | None,
    gamma: float,
    lam: float,
    core: ModuleType | None = None,
) -> tuple[Tensor, Tensor]:
    """``compute_gae`` for tensors on one CUDA device, which the caller has checked for kind.

    One kernel on the current stream, without waiting for it. In plain torch where the kernels are
    not built, or not for this device.

    Raises:
        TypeError: devices or dtypes that are not served.
        ValueError: shapes disagree, a flag is neither 0 nor 1, or a truncated-only row comes
            without ``final_values``.
    """
    floats = {"rewards": rewards, "values": values, "last_values": last_values}
    if final_values is not None:
        floats["final_values"] = final_values
    flags = {"terminated": terminated, "truncated": truncated}
    _check_rollout(floats, flags)
    dtype = torch.float32
    if any(tensor.dtype is torch.float64 for tensor in floats.values()):
        dtype = torch.float64
    moved = {name: t.detach().resolve_neg().to(dtype).contiguous() for name, t in floats.items()}
    ended = {name: t.to(torch.bool).contiguous() for name, t in flags.items()}
    if final_values is None and bool((ended["truncated"] & ~ended["terminated"]).any()):
        raise ValueError(
            "a step was truncated but final_values is None. Pass final_values [T, B] with V of the "
            "episode's last observation in that place"
        )
    core = core or _native.cuda_on(rewards.device.index or 0)[0]
    final = moved.get("final_values")
    if core is None:
        return gae_in_torch(
            moved["rewards"], moved["values"], ended, moved["last_values"], final, gamma, lam
        )
    advantages, returns = torch.empty_like(moved["rewards"]), torch.empty_like(moved["rewards"])
    native = core.gae_f32 if dtype is torch.float32 else core.gae_f64
    native(
        _arg(moved["rewards"]),
        _arg(moved["values"]),
        _arg(ended["terminated"].view(torch.uint8)),
        _arg(ended["truncated"].view(torch.uint8)),
        _arg(moved["last_values"]),
        None if final is None else _arg(final),
        _arg(advantages),
        _arg(returns),
        float(gamma),
        float(lam),
        rewards.device.index or 0,
        stream_of(rewards.device),
    )
    return advantages, returns


def gae_in_torch(
    rewards: Tensor,
    values: Tensor,
    ended: dict[str, Tensor],
    last_values: Tensor,
    final_values: Tensor | None,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """The kernel's twin: ``[T, B]`` tensors, a step at a time, in float64."""
    running, after = torch.zeros_like(last_values, dtype=torch.float64), last_values.double()
    advantages = torch.empty_like(rewards)
    for t in reversed(range(len(rewards))):
        over, cut = ended["terminated"][t], ended["truncated"][t]
        beyond = after if final_values is None else torch.where(cut, final_values[t], after)
        following = torch.where(over, 0.0, beyond)
        tail = torch.where(over | cut, 0.0, gamma * lam * running)
        running = rewards[t] + gamma * following - values[t].double() + tail
        after = values[t].double()
        advantages[t] = running
    return advantages, advantages + values


def _check_rollout(floats: dict[str, Tensor], flags: dict[str, Tensor]) -> None:
    rewards = floats["rewards"]
    if rewards.ndim != 2 or rewards.numel() == 0:
        raise ValueError(f"rewards must be [T, B], not empty, got shape {tuple(rewards.shape)}")
    for name, tensor in (floats | flags).items():
        expected = rewards.shape[1:] if name == "last_values" else rewards.shape
        if tensor.shape != expected:
            raise ValueError(f"{name} must have shape {expected}, got {tuple(tensor.shape)}")
        if tensor.device != rewards.device or tensor.layout is not torch.strided:
            raise TypeError(
                f"{name} is on {tensor.device}, rewards on {rewards.device}; "
                "move them to one device, dense"
            )
        kinds = (torch.float32, torch.float64)
        if name in floats and tensor.dtype not in kinds:
            raise TypeError(f"{name} must be float32 or float64, got {tensor.dtype}")
        binary = tensor.dtype is torch.bool or name in floats
        if not binary and not bool(((tensor == 0) | (tensor == 1)).all()):
            raise ValueError(f"{name} must hold booleans (or 0 and 1)")


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
        places: list[tuple[Place, Place | None]] = []
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
        native = (
            self._core.PolicyProblemF32
            if self._dtype is torch.float32
            else self._core.PolicyProblemF64
        )
        nothing = dict.fromkeys(_UNUSED)
        problem = native(
            **nothing,
            obs=_arg(x),
            layers=self._layers,
            log_std=0,
            unused=0,
            map=_arg(self._map),
            theta=_arg(self._theta),
            parameters=len(self._theta),
            head=HEAD_CODES["bernoulli"],  # any that has as many parameters as outputs
            action_dim=outputs,
            nvec=[],
            kl_new_old=False,
            forward_only=True,
            tiled=max(width for _, width, *_ in self._layers) > PANEL_WIDTH,
            products=0,
            device=self._device.index or 0,
        )
        memory = torch.empty(
            problem.workspace_bytes() + ALIGNMENT, dtype=torch.uint8, device=self._device
        )
        problem.bind(-(-memory.data_ptr() // ALIGNMENT) * ALIGNMENT)
        problem.forward(_arg(out), stream_of(self._device))
        return out
