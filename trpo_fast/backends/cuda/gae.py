"""Advantages on a CUDA device."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from trpo_fast import _native
from trpo_fast.backends.cuda.layout import stream_of, tensor_arg


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
        tensor_arg(moved["rewards"]),
        tensor_arg(moved["values"]),
        tensor_arg(ended["terminated"].view(torch.uint8)),
        tensor_arg(ended["truncated"].view(torch.uint8)),
        tensor_arg(moved["last_values"]),
        None if final is None else tensor_arg(final),
        tensor_arg(advantages),
        tensor_arg(returns),
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
