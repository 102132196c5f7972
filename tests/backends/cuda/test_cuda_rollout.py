"""Advantages and the forward pass for rollouts on a device; emulated without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_device import needs_device
from emulated_cuda import emulated, needs_emulation
from update_cases import BY_NAME, make_policy

from trpo_fast import compute_gae
from trpo_fast.backends.cuda import forward as cuda_rollout
from trpo_fast.backends.cuda.gae import gae, gae_in_torch
from trpo_fast.backends.forward import forward_function
from trpo_fast.networks.network import Network
from trpo_fast.networks.network import forward as forward_layers
from trpo_fast.recognition.recognizer import network_of


def rollout(steps: int, envs: int, dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(steps + envs)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    terminated = torch.rand(steps, envs, generator=generator) < 0.1
    truncated = torch.rand(steps, envs, generator=generator) < 0.1
    final = torch.where(truncated & ~terminated, noise(steps, envs), torch.nan)
    return {
        "rewards": noise(steps, envs),
        "values": noise(steps, envs),
        "terminated": terminated,
        "truncated": truncated,
        "last_values": noise(envs),
        "final_values": final,
    }


def assert_same(found: Any, expected: Any) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=2e-6, atol=2e-6)


@needs_emulation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize(("steps", "envs"), [(1, 1), (7, 3), (8, 64), (33, 65), (100, 130)])
def test_the_kernel_and_its_twin_equal_the_cpu(steps: int, envs: int, dtype: torch.dtype) -> None:
    data = rollout(steps, envs, dtype)
    expected = compute_gae(**data, gamma=0.97, lam=0.9)
    assert_same(gae(**data, gamma=0.97, lam=0.9, core=emulated), expected)
    ended = {name: data[name] for name in ("terminated", "truncated")}
    twin = gae_in_torch(
        data["rewards"], data["values"], ended, data["last_values"], data["final_values"], 0.97, 0.9
    )
    assert_same(twin, expected)


@needs_emulation
def test_a_rollout_of_a_wrong_kind_is_refused_in_words() -> None:
    def run(**changes: Any) -> None:
        data = rollout(4, 3, torch.float32) | changes
        gae(**data, gamma=0.9, lam=0.9, core=emulated)

    run(terminated=torch.zeros(4, 3))
    with pytest.raises(ValueError, match="truncated but final_values is None"):
        run(truncated=torch.ones(4, 3), final_values=None)
    with pytest.raises(ValueError, match="values must have shape"):
        run(values=torch.zeros(3, 4))
    with pytest.raises(ValueError, match="terminated must hold booleans"):
        run(terminated=torch.full((4, 3), 0.5))
    with pytest.raises(TypeError, match="rewards must be float32 or float64"):
        run(rewards=torch.zeros(4, 3, dtype=torch.float16))
    with pytest.raises(TypeError, match="move them to one device"):
        run(values=torch.zeros(4, 3, device="meta"))


@needs_emulation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("rows", [0, 1, 40, 300])
@pytest.mark.parametrize("hidden", [(), (64, 64), (150, 9)])
def test_the_forward_pass_equals_torchs(
    hidden: tuple[int, ...], rows: int, dtype: torch.dtype
) -> None:
    found = network_of(make_policy(BY_NAME["gaussian"], hidden, dtype=dtype, obs_width=19))
    assert isinstance(found, Network)
    x = torch.randn(19, rows, generator=torch.Generator().manual_seed(1), dtype=dtype).T
    ours = cuda_rollout.DeviceForward(found.layers, core=emulated)(x)
    with torch.no_grad():
        expected = forward_layers(found.layers, x)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@needs_emulation
def test_a_forward_pass_of_a_wrong_input_is_refused() -> None:
    found = network_of(make_policy(BY_NAME["gaussian"], dtype=torch.float32))
    assert isinstance(found, Network)
    forward = cuda_rollout.DeviceForward(found.layers, core=emulated)
    with pytest.raises(TypeError, match="the weights are"):
        forward(torch.zeros(3, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="obs has size 4"):
        forward(torch.zeros(3, 4))
    assert not cuda_rollout.serves_forward(found.layers)


@needs_device
def test_a_rollouts_parts_stay_on_the_device() -> None:
    data = rollout(50, 70, torch.float32)
    found = compute_gae(**{name: tensor.cuda() for name, tensor in data.items()})
    assert all(tensor.is_cuda for tensor in found)
    assert_same(found, compute_gae(**data))
    policy = make_policy(BY_NAME["gaussian"], (64, 64), dtype=torch.float32).cuda()
    x = torch.randn(300, 5, device="cuda")
    served = network_of(policy)
    assert isinstance(served, Network)
    forward = forward_function(served.layers)
    assert isinstance(forward, cuda_rollout.DeviceForward)
    with torch.no_grad():
        torch.testing.assert_close(
            forward(x), forward_layers(served.layers, x), rtol=1e-4, atol=1e-4
        )
