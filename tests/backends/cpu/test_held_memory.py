"""What native code reads stays, though another thread gives a parameter other memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from update_cases import BY_NAME, flat_of, make_data, make_policy, recognised

from trpo_fast import MlpPolicy, _native
from trpo_fast.backends.forward import forward_function
from trpo_fast.base import tensors
from trpo_fast.networks.mlp import ValueFunction
from trpo_fast.recognition.recognizer import layers_of, network_of
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters

pytestmark = [
    pytest.mark.reliability("swapped_storage"),
    pytest.mark.skipif(_native.core is None, reason="the native module is not built"),
]


def watched(module: nn.Module) -> list[weakref.ref[Any]]:
    """Give every parameter memory whose end can be seen."""
    seen = []
    for parameter in module.parameters():
        array = parameter.detach().numpy().copy()
        parameter.data = torch.from_numpy(array)
        seen.append(weakref.ref(array))
    return seen


def swap(module: nn.Module) -> None:
    """What another thread may do at any time."""
    for parameter in module.parameters():
        parameter.data = torch.full_like(parameter, torch.nan)
    gc.collect()


def alive(seen: list[weakref.ref[Any]]) -> list[bool]:
    gc.collect()
    return [watch() is not None for watch in seen]


def policy_and_data() -> tuple[MlpPolicy, dict[str, Any]]:
    policy = make_policy(BY_NAME["gaussian"], dtype=torch.float32)
    return policy, make_data(policy, BY_NAME["gaussian"])


def test_an_update() -> None:
    from trpo_fast.backends.cpu.problem import CpuProblem

    policy, data = policy_and_data()
    seen = watched(policy)
    network, batch = recognised(policy, data)
    options = Options(preconditioner="none")
    expected = CpuProblem(network, flat_of(policy), batch, options).surrogate_gradient()
    problem = CpuProblem(network, flat_of(policy), batch, options)
    swap(policy)
    assert all(alive(seen))
    loss, g = problem.surrogate_gradient()
    assert loss == expected[0]
    assert torch.equal(g, expected[1])
    del problem
    assert not any(alive(seen))


@pytest.mark.parametrize("what", ["sampling", "fit"])
def test_sampling_and_the_critics_fit(what: str) -> None:
    from trpo_fast.backends.cpu.sampling import NativeSampling
    from trpo_fast.backends.cpu.value_fit import AdamFit

    module: nn.Module
    if what == "sampling":
        module = policy_and_data()[0]
        seen, network = watched(module), network_of(module)
        assert not isinstance(network, str)
        zeros = np.zeros((1, 2, network.head.components), np.float32)
        made: Any = NativeSampling(
            network,
            observations=np.zeros((2, 2, network.layers[0].weight.shape[1]), np.float32),
            constants=None,
            noise=zeros,
            masks=None,
            actions=zeros.copy(),
            env_actions=None,
            bounds=(zeros[0, 0], zeros[0, 0]),
        )
    else:
        module = ValueFunction(spaces.Box(-1, 1, (3,)), (4,))
        seen, layers = watched(module), layers_of(module)
        assert not isinstance(layers, str)
        made = AdamFit(layers, torch.optim.Adam(module.parameters()), 8)
    swap(module)
    assert all(alive(seen))
    if what == "fit":
        assert made.epoch(torch.ones(8, 3), torch.ones(8), torch.arange(8))[1] == 0
        made.write_back()
    del made
    assert not any(alive(seen))


def during(call: Callable[..., Any], act: Callable[[], None]) -> Callable[..., Any]:
    """A native function, with something done by another thread before it reads."""

    def wrapped(*arguments: Any) -> Any:
        act()
        return call(*arguments)

    return wrapped


def test_reading_writing_and_checking(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = nn.Linear(3, 2)
    flat = FlatParameters(list(linear.parameters()), ["weight", "bias"])
    seen, at_work = watched(linear), []

    def act() -> None:
        swap(linear)
        at_work.append(alive(seen))

    class Core:
        copy_blocks = staticmethod(during(_native.core.copy_blocks, act))

    monkeypatch.setattr(_native, "core", Core)
    assert torch.equal(flat.read(), flat.start)
    seen[:] = watched(linear)
    flat.write(flat.start)
    checks = {torch.float32: during(tensors._CHECKS[torch.float32], act)}
    monkeypatch.setattr(tensors, "_CHECKS", checks)
    seen[:] = watched(linear)[:1]
    tensors.all_finite(linear.weight)
    assert at_work == [[True, True], [True, True], [True]]


def test_a_shape_changed_within_a_step_is_named() -> None:
    linear = nn.Linear(3, 2)
    flat = FlatParameters(list(linear.parameters()), ["weight", "bias"])
    linear.weight.data = torch.zeros(1, 1)
    for use in (flat.read, lambda: flat.write(flat.start)):
        with pytest.raises(ValueError, match=r"weight was given another shape, \(1, 1\)"):
            use()


def test_a_packed_forward_needs_no_parameters_any_more() -> None:
    value = ValueFunction(spaces.Box(-1, 1, (3,)), (4,))
    seen, layers = watched(value), layers_of(value)
    assert not isinstance(layers, str)
    x: Tensor = torch.ones(2, 3)
    expected = value(x).detach()
    forward = forward_function(layers)
    swap(value)
    assert not any(alive(seen))
    assert torch.allclose(forward(x).flatten(), expected, atol=1e-6)
