"""Every native entry point that takes a head refuses one that its kernels could not read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from emulated_cuda import emulated, needs_emulation
from torch import Tensor

from trpo_fast import _native
from trpo_fast.backends.codes import ACTIVATION_CODES, HEAD_CODES

if _native.core is None:
    pytest.skip(f"no native module: {_native.load_error}", allow_module_level=True)

INPUTS, OUTPUTS = 2, 4


def arg(tensor: Tensor) -> tuple[int, Any, Any]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


Parts = tuple[tuple[str, int], ...]


def head_args(name: str, action_dim: int, nvec: list[int], parts: Parts) -> dict[str, Any]:
    codes = [(HEAD_CODES.get(kind, -1), size) for kind, size in parts]
    return {"head": HEAD_CODES[name], "action_dim": action_dim, "nvec": nvec, "parts": codes}


def sampling(
    dtype: torch.dtype, name: str, action_dim: int, nvec: list[int], parts: Parts = ()
) -> Any:
    weight = torch.zeros(OUTPUTS, INPUTS, dtype=dtype)
    make = getattr(_native.core, "SamplingF32" if dtype is torch.float32 else "SamplingF64")
    layers = [(arg(weight), None, ACTIVATION_CODES["identity"], 0.0)]
    return make(layers, INPUTS, head_args(name, action_dim, nvec, parts), None, 1)


def problem(
    dtype: torch.dtype, name: str, action_dim: int, nvec: list[int], parts: Parts = ()
) -> Any:
    weight, obs = torch.zeros(OUTPUTS, INPUTS, dtype=dtype), torch.zeros(3, INPUTS, dtype=dtype)
    absent = ["log_std", "actions", "advantages", "old_log_prob", "weights", "action_mask"]
    make = getattr(_native.core, _class_of(dtype))
    return make(
        obs=arg(obs),
        layers=[(arg(weight), None, ACTIVATION_CODES["identity"], 0.0)],
        offsets=[(0, -1)],
        parameters=weight.numel(),
        **head_args(name, action_dim, nvec, parts),
        log_std_offset=-1,
        kl_new_old=False,
        fisher_obs=None,
        cache_bytes=0,
        threads=1,
        bf16_parts=0,
        **dict.fromkeys(absent),
    )


def emulated_problem(
    dtype: torch.dtype, name: str, action_dim: int, nvec: list[int], parts: Parts = ()
) -> Any:
    theta, obs = torch.zeros(OUTPUTS * INPUTS, dtype=dtype), torch.zeros(3, INPUTS, dtype=dtype)
    absent = ["actions", "advantages", "old_log_prob", "weights", "weight_sum", "action_mask"]
    packed = torch.zeros(4 * 4, dtype=torch.int32)  # [INPUTS + 1, OUTPUTS], padded
    return getattr(emulated, _class_of(dtype))(
        obs=arg(obs),
        layers=[(INPUTS, OUTPUTS, ACTIVATION_CODES["identity"], 0.0)],
        log_std=0,
        unused=0,
        map=arg(packed),
        theta=arg(theta),
        parameters=len(theta),
        **head_args(name, action_dim, nvec, parts),
        kl_new_old=False,
        fisher_obs=None,
        tiled=False,
        products=0,
        device=0,
        **dict.fromkeys(absent),
    )


def _class_of(dtype: torch.dtype) -> str:
    return "PolicyProblemF32" if dtype is torch.float32 else "PolicyProblemF64"


ENTRIES = [sampling, problem, pytest.param(emulated_problem, marks=needs_emulation)]
every_entry = pytest.mark.parametrize("make", ENTRIES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@every_dtype
@every_entry
@pytest.mark.parametrize(
    ("name", "action_dim", "nvec"),
    [
        ("gaussian_state_std", 2, []),
        ("categorical", 1, [4]),
        ("multi_categorical", 2, [1, 3]),
        ("bernoulli", 4, []),
        ("beta", 2, []),
    ],
)
def test_a_head_that_fits_is_taken(
    make: Any, dtype: torch.dtype, name: str, action_dim: int, nvec: list[int]
) -> None:
    assert make(dtype, name, action_dim, nvec).workspace_bytes() > 0


@every_dtype
@every_entry
@pytest.mark.parametrize(
    ("name", "action_dim", "nvec", "why"),
    [
        ("categorical", 1, [], "nvec belongs to the heads whose actions are categories"),
        ("multi_categorical", 1 << 40, [], "nvec belongs to the heads whose actions"),
        ("bernoulli", 4, [4], "nvec belongs to the heads whose actions are categories"),
        ("multi_categorical", 2, [5, -1], "nvec has 5, outside 1 .. 4"),
        ("multi_categorical", 3, [4, 0], "nvec has 0, outside 1 .. 4"),
        ("multi_categorical", 3, [3, -1, 2], "nvec has -1, outside 1 .. 4"),
        ("multi_categorical", 4, [1 << 62] * 3 + [(1 << 62) + 4], "nvec has 4611686018427387904"),
        ("multi_categorical", 2, [2, 1], "the head needs 3 outputs, the last layer has 4"),
        ("multi_categorical", 2, [3, 2], "the head needs 5 outputs, the last layer has 4"),
        ("gaussian_state_std", 4, [], "the head needs 8 outputs, the last layer has 4"),
        ("gaussian_state_std", 0, [], "number of actions is 0, outside 1 .. 4"),
        ("bernoulli", -4, [], "number of actions is -4, outside 1 .. 4"),
        ("bernoulli", 3, [], "the head needs 3 outputs, the last layer has 4"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    make: Any, dtype: torch.dtype, name: str, action_dim: int, nvec: list[int], why: str
) -> None:
    if make is emulated_problem:
        action_dim = min(action_dim, 1 << 30)  # an int there
    with pytest.raises(ValueError, match=why):
        make(dtype, name, action_dim, nvec)


@every_dtype
@every_entry
def test_a_gaussian_without_its_log_std_is_refused(make: Any, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="log_std belongs to the heads whose log std is"):
        make(dtype, "gaussian", 4, [])


@every_dtype
@every_entry
@pytest.mark.parametrize(
    ("action_dim", "nvec", "parts", "why"),
    [
        (3, [2], (("bernoulli", 2), ("categorical", 1)), None),
        (2, [], (("beta", 1), ("gaussian_state_std", 1)), None),
        (3, [2], (), "a joint head has parts"),
        (3, [2], (("bernoulli", 2), ("joint", 1)), "unknown part"),
        (3, [2], (("bernoulli", 2), ("none", 1)), "unknown part"),
        (3, [], (("bernoulli", 2), ("categorical", 1)), "nvec ends before"),
        (3, [2, 1], (("bernoulli", 2), ("categorical", 1)), "nvec goes on"),
        (4, [2], (("bernoulli", 2), ("categorical", 1)), "have 3 actions, action_dim is 4"),
        (4, [3], (("bernoulli", 2), ("categorical", 1)), "need more outputs"),
        (2, [2], (("bernoulli", 1), ("categorical", 1)), "needs 3 outputs, the last layer has 4"),
        (3, [2], (("bernoulli", 1 << 40), ("categorical", 1)), "outside 1 .. 4"),
        (3, [2], (("bernoulli", -1), ("categorical", 1)), "outside 1 .. 4"),
    ],
)
def test_parts_of_a_joint_head(
    make: Any, dtype: torch.dtype, action_dim: int, nvec: list[int], parts: Parts, why: str | None
) -> None:
    if why is None:
        assert make(dtype, "joint", action_dim, nvec, parts).workspace_bytes() > 0
        return
    with pytest.raises(ValueError, match=why):
        make(dtype, "joint", action_dim, nvec, parts)
