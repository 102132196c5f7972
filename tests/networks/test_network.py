"""Activations, the plain forward pass, and the recogniser's one door."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.nn.modules import module as module_globals
from update_cases import BY_NAME, CASES, Case, make_data, make_policy

from trpo_fast import MlpPolicy, ValueFunction
from trpo_fast.backends.forward import mlp_forward
from trpo_fast.networks.activations import ACTIVATIONS
from trpo_fast.networks.heads import HEADS
from trpo_fast.networks.network import Layer, Network, forward
from trpo_fast.recognition.recognizer import layers_of, network_of

EXTREMES = [0.0, -0.0, 1e-30, -1e-30, 1e-8, -1e-8, 20.0, 20.1, -20.1, 100.0, -100.0]


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
class TestActivations:
    def points(self, dtype: torch.dtype) -> torch.Tensor:
        grid = torch.linspace(-8, 8, 1001, dtype=dtype)
        return torch.cat([grid, torch.tensor(EXTREMES, dtype=dtype)])

    def test_value_is_torchs(self, name: str, dtype: torch.dtype) -> None:
        z, activation = self.points(dtype), ACTIVATIONS[name]
        assert torch.equal(activation.function(z, activation.parameter), activation.make()(z))

    def test_derivative_is_torchs(self, name: str, dtype: torch.dtype) -> None:
        z, activation = self.points(dtype).requires_grad_(), ACTIVATIONS[name]
        (expected,) = torch.autograd.grad(activation.make()(z).sum(), z)
        found = activation.derivative(z.detach(), activation.parameter)
        assert found.dtype is dtype
        eps = torch.finfo(dtype).eps
        # 1 - tanh^2 and a cubic magnify rounding in gelu_tanh's tail, here and in torch alike.
        atol = (64 if name == "gelu_tanh" else 8) * eps
        assert torch.allclose(found, expected, rtol=16 * eps, atol=atol)
        # At kinks exactly the value that autograd takes.
        zero = z.detach() == 0
        assert torch.equal(found[zero], expected[zero])


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.LeakyReLU(0.3), ("leaky_relu", 0.3)),
        (nn.ELU(0.7), ("elu", 0.7)),
        (nn.Softplus(2.5), ("softplus", 2.5)),
    ],
)
def test_activation_parameters_are_read(module: nn.Module, expected: tuple[str, float]) -> None:
    policy = make_policy(BY_NAME["gaussian"])
    policy.body[1] = module
    network = network_of(policy)
    assert isinstance(network, Network)
    layer = network.layers[0]
    assert (layer.activation, layer.parameter) == expected
    x = torch.randn(9, policy.obs_width, dtype=torch.float64)
    assert torch.equal(forward(network.layers, x), policy.body(x))
    z = torch.linspace(-3, 3, 50, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(module(z).sum(), z)
    found = ACTIVATIONS[layer.activation].derivative(z.detach(), layer.parameter)
    assert torch.allclose(found, slope, rtol=1e-13)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_equals_the_module(activation: str, dtype: torch.dtype) -> None:
    policy = make_policy(BY_NAME["gaussian"], (9, 4, 7), activation, dtype)
    network = network_of(policy)
    assert isinstance(network, Network)
    x = torch.randn(33, policy.obs_width, dtype=dtype)
    expected = policy.body(x).detach()
    assert torch.equal(forward(network.layers, x).detach(), expected)
    found = mlp_forward(network.layers, x)
    assert not found.requires_grad
    rtol = 1e-5 if dtype is torch.float32 else 1e-12
    assert torch.allclose(found, expected, rtol=rtol, atol=rtol)


def test_mlp_forward_without_the_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    from trpo_fast import _native

    monkeypatch.setattr(_native, "core", None)
    value = ValueFunction(spaces.Box(-1, 1, (4,)))
    layers = layers_of(value)
    assert not isinstance(layers, str)
    x = torch.randn(5, 4)
    found = mlp_forward(layers, x)
    assert not found.requires_grad
    assert torch.equal(found.squeeze(1), value(x).detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_mlp_forward_leaves_other_dtypes_to_torch(dtype: torch.dtype) -> None:
    weight = torch.ones(2, 3, dtype=dtype)
    found = mlp_forward((Layer(weight, None, "identity"),), torch.ones(4, 3, dtype=dtype))
    assert found.tolist() == [[3, 3]] * 4


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_distribution_of_the_network_is_that_of_the_policy(case: Case) -> None:
    policy = make_policy(case)
    data = make_data(policy, case)
    network, mask = network_of(policy), data.get("action_mask")
    assert isinstance(network, Network)
    assert type(network.head) in HEADS
    found = network.head.distribution(network.at(forward(network.layers, data["obs"]), mask))
    expected = policy(data["obs"], action_mask=mask)
    assert type(found) is type(expected)
    assert torch.equal(found.log_prob(data["actions"]), expected.log_prob(data["actions"]))
    # The tensors are the very parameters, each once.
    assert {id(t) for t in network.tensors()} == {id(p) for p in policy.parameters()}


class TestRecogniser:
    def policy(self) -> MlpPolicy:
        return make_policy(BY_NAME["gaussian"])

    def reason(self, policy: nn.Module) -> str:
        found = network_of(policy)
        assert isinstance(found, str)
        return found

    def test_train_mode_does_not_matter(self) -> None:
        assert isinstance(network_of(self.policy().train()), Network)
        assert isinstance(network_of(self.policy().eval()), Network)

    @pytest.mark.parametrize(
        "register",
        [
            lambda m: m.register_forward_hook(lambda *a: None),
            lambda m: m.register_forward_pre_hook(lambda *a: None),
            lambda m: m.register_full_backward_hook(lambda *a: None),
            lambda m: m.register_full_backward_pre_hook(lambda *a: None),
        ],
        ids=["forward", "pre", "backward", "backward_pre"],
    )
    @pytest.mark.parametrize("where", ["policy", "body", "layer"])
    def test_hooks(self, register: object, where: str) -> None:
        policy = self.policy()
        module = {"policy": policy, "body": policy.body, "layer": policy.body[2]}[where]
        handle = register(module)  # type: ignore[operator]
        assert "hook" in self.reason(policy)
        handle.remove()
        assert isinstance(network_of(policy), Network)

    def test_global_hooks(self) -> None:
        handle = module_globals.register_module_forward_hook(lambda *a: None)
        try:
            assert "global module hook" in self.reason(self.policy())
        finally:
            handle.remove()
        assert isinstance(network_of(self.policy()), Network)

    def test_parametrizations(self) -> None:
        policy = self.policy()
        torch.nn.utils.parametrizations.weight_norm(policy.body[2])
        assert "parametriz" in self.reason(policy)

    def test_a_replaced_forward(self) -> None:
        policy = self.policy()
        policy.body.forward = lambda x: x  # type: ignore[method-assign]
        assert "'body' has its forward method replaced" in self.reason(policy)

    def test_a_replaced_layer(self) -> None:
        policy = self.policy()
        policy.body[1] = nn.Hardtanh()
        assert "Hardtanh" in self.reason(policy)

    @pytest.mark.parametrize("index", [1, 2])
    @pytest.mark.parametrize(
        "activation", [nn.GELU(), nn.ELU(), nn.LeakyReLU(), nn.Softplus(), nn.Tanh()]
    )
    def test_subclasses_of_layers_may_compute_anything(
        self, index: int, activation: nn.Module
    ) -> None:
        policy = self.policy()
        policy.body[1] = copy.copy(activation)
        assert isinstance(network_of(policy), Network)
        kind = type(policy.body[index])
        policy.body[index].__class__ = type("Louder", (kind,), {})
        assert "Louder" in self.reason(policy)

    def test_a_softplus_with_another_threshold(self) -> None:
        policy = self.policy()
        policy.body[1] = nn.Softplus(1.0, threshold=3.0)
        assert "Softplus" in self.reason(policy)

    def test_layers_that_do_not_fit(self) -> None:
        policy = self.policy()
        policy.body[2] = nn.Linear(3, 6).double()
        assert "widths" in self.reason(policy)

    def test_two_activations_in_a_row(self) -> None:
        policy = self.policy()
        modules = list(policy.body)
        policy.body = nn.Sequential(*modules[:2], nn.ReLU(), *modules[2:])
        found = self.reason(policy)
        assert found == "ReLU follows Tanh directly"

    def test_an_activation_after_the_last_layer(self) -> None:
        policy = self.policy()
        policy.body.append(nn.Tanh())
        assert isinstance(network_of(policy), str)

    def test_a_layer_without_bias(self) -> None:
        policy = self.policy()
        policy.body[2] = nn.Linear(7, 6, bias=False).double()
        network = network_of(policy)
        assert isinstance(network, Network)
        x = torch.randn(4, policy.obs_width, dtype=torch.float64)
        assert torch.equal(forward(network.layers, x), policy.body(x))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype: torch.dtype) -> None:
        assert str(dtype) in self.reason(self.policy().to(dtype))

    def test_mixed_dtypes(self) -> None:
        policy = self.policy()
        policy.body[2].float()
        assert "differ" in self.reason(policy)

    def test_shared_parameters(self) -> None:
        policy = make_policy(BY_NAME["gaussian"], (5, 5))
        policy.body[2].bias = policy.body[0].bias
        assert "share" in self.reason(policy)

    @pytest.mark.parametrize("first", [0, 3])
    def test_parameters_that_overlap_in_memory(self, first: int) -> None:
        policy = make_policy(BY_NAME["gaussian"], (5, 5))
        weight = torch.randn(11, 5, dtype=policy.body[2].weight.dtype)
        policy.body[2].weight.data = weight[first : first + 5]
        policy.body[4].weight.data = weight[first + 4 : first + 4 + policy.body[4].weight.shape[0]]
        assert "share" in self.reason(policy)

    def test_neighbours_in_memory_do_not_overlap(self) -> None:
        policy = make_policy(BY_NAME["gaussian"], (5, 5))
        flat = torch.nn.utils.parameters_to_vector(policy.parameters()).detach()
        torch.nn.utils.vector_to_parameters(flat, policy.parameters())
        assert isinstance(network_of(policy), Network)

    def test_value_functions(self) -> None:
        value = ValueFunction(spaces.Box(-1, 1, (4,)), (8,), "relu")
        layers = layers_of(value)
        assert not isinstance(layers, str)
        assert [layer.activation for layer in layers] == ["relu", "identity"]
        value.body[1].register_forward_hook(lambda *a: None)
        assert "hook" in str(layers_of(value))


def test_gelu_derivatives_far_out_are_finite() -> None:
    z = torch.tensor([-1e4, 1e4], dtype=torch.float64)
    for name in ("gelu", "silu", "sigmoid", "softplus", "elu"):
        found = ACTIVATIONS[name].derivative(z, ACTIVATIONS[name].parameter)
        assert all(math.isfinite(v) for v in found.tolist())
