"""Which parameters are stepped: those that the distribution depends on."""

from __future__ import annotations

import pytest
import torch
from optimizer_cases import GAUSSIAN, Trunk, closure_of, flat, result_of, trunk_data
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    Independent,
    Normal,
)
from update_cases import (
    HOST_BACKENDS,
    Wrapped,
    bits,
    make_data,
    make_policy,
    same_bits,
)

from trpo_fast import TRPOOptimizer

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")


class TestDependence:
    def test_pitfall_11_the_value_head_is_left_alone_by_dependence_not_by_name(self) -> None:
        module = Trunk()
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        opt = TRPOOptimizer(module)
        opt.step(**trunk_data(module))
        assert result_of(opt).accepted
        changed = {name for name, p in module.named_parameters() if not p.equal(before[name])}
        assert changed == {name for name in before if not name.startswith("critic")}

    def test_pitfall_12_value_gradients_of_a_shared_trunk_stay_in_the_region(self) -> None:
        module = Trunk()
        data, returns = trunk_data(module), torch.linspace(-50, 50, 50)
        policy_closure = closure_of(module, data)

        def closure() -> tuple[Tensor, Distribution]:
            loss, distribution = policy_closure()
            return loss + (module.value(data["obs"]) - returns).square().mean(), distribution

        with torch.no_grad():
            old = module(data["obs"])
            loss_before = closure()[0]
        trunk, critic = module.trunk.weight.detach().clone(), module.critic.weight.detach().clone()
        opt = TRPOOptimizer(module.parameters())
        opt.step(closure)
        assert result_of(opt).accepted
        with torch.no_grad():
            kl = torch.distributions.kl_divergence(old, module(data["obs"])).mean()
            assert float(kl) <= 0.01 * (1 + 1e-4)
            # The whole loss fell, value term included, and its gradient moved trunk and critic.
            assert float(closure()[0]) < float(loss_before)
        assert not torch.equal(module.trunk.weight, trunk)
        assert not torch.equal(module.critic.weight, critic)
        # With the module, only what the distribution depends on is stepped.
        critic = module.critic.weight.detach().clone()
        opt = TRPOOptimizer(module)
        opt.step(closure)
        assert result_of(opt).accepted
        assert torch.equal(module.critic.weight, critic)

    def test_pitfall_13_log_std_is_optimised_and_not_clamped(self) -> None:
        for wrap in (False, True):
            policy = make_policy(GAUSSIAN)
            with torch.no_grad():
                policy.log_std.copy_(torch.tensor([-5.0, 0.0, 5.0]))
            data = make_data(policy, GAUSSIAN)
            before = policy.log_std.detach().clone()
            opt = TRPOOptimizer(Wrapped(policy) if wrap else policy, cg_iters=100)
            opt.step(**data)
            assert result_of(opt).accepted
            assert not (policy.log_std == before).any()
            assert torch.allclose(policy.log_std, before, atol=1.0)

    def test_pitfall_18_unused_parameters_keep_their_place(self) -> None:
        class Gaps(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.unused_first = nn.Parameter(torch.full((3,), -0.0, dtype=torch.float64))
                self.inner = make_policy(GAUSSIAN)
                self.unused_last = nn.Linear(2, 2).double()

            def forward(self, obs: Tensor) -> Distribution:
                return self.inner(obs)

        module, plain = Gaps(), make_policy(GAUSSIAN)
        data = make_data(plain, GAUSSIAN)
        unused = bits(module.unused_last)
        opt = TRPOOptimizer(module)
        opt.step(**data)
        TRPOOptimizer(plain).step(**data)
        assert result_of(opt).accepted
        assert torch.allclose(flat(module.inner), flat(plain), rtol=1e-9, atol=1e-12)
        assert same_bits(module.unused_last, unused)
        assert torch.signbit(module.unused_first).all()

    def test_an_extra_parameter_on_the_recognised_policy(self) -> None:
        policy, plain = make_policy(GAUSSIAN), make_policy(GAUSSIAN)
        policy.extra = nn.Parameter(torch.tensor([-0.0, 7.0], dtype=torch.float64))
        data = make_data(policy, GAUSSIAN)
        opt = TRPOOptimizer(policy)
        assert opt.path == "fused"
        opt.step(**data)
        TRPOOptimizer(plain).step(**data)
        assert torch.allclose(flat(policy.body), flat(plain.body), rtol=1e-9, atol=1e-12)
        assert torch.signbit(policy.extra[0])
        assert float(policy.extra.detach()[1]) == 7.0

    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize("wrap", [False, True], ids=["fused", "generic"])
    def test_a_frozen_layer(self, when: str, wrap: bool) -> None:
        policy = make_policy(GAUSSIAN)
        data = make_data(policy, GAUSSIAN)
        if when == "before":
            policy.body[2].requires_grad_(False)
        opt = TRPOOptimizer(Wrapped(policy) if wrap else policy)
        if when == "after":
            policy.body[2].requires_grad_(False)
        frozen, rest = bits(policy.body[2]), policy.body[0].weight.detach().clone()
        opt.step(**data)
        assert result_of(opt).accepted
        assert same_bits(policy.body[2], frozen)
        assert not torch.equal(policy.body[0].weight, rest)

    def test_frozen_layers_step_alike_on_every_path(self) -> None:
        found = []
        for form in ("generic", *HOST_BACKENDS):
            policy = make_policy(GAUSSIAN)
            data = make_data(policy, GAUSSIAN)
            policy.body[2].weight.requires_grad_(False)
            policy.log_std.requires_grad_(False)
            if form == "generic":
                opt = TRPOOptimizer(Wrapped(policy))
            else:
                opt = TRPOOptimizer(policy, backend=form)
            opt.step(**data)
            found.append(flat(policy))
        for theta in found:
            assert torch.allclose(theta, found[0], rtol=1e-8, atol=1e-10)

    def test_everything_frozen(self) -> None:
        policy = make_policy(GAUSSIAN).requires_grad_(False)
        with pytest.raises(ValueError, match="no parameter requires a gradient"):
            TRPOOptimizer(policy)

    def test_tied_weights_are_counted_once(self) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
                self.second.weight = self.first.weight
                self.log_std = nn.Parameter(torch.zeros(5))

            def forward(self, obs: Tensor) -> Distribution:
                mean = self.second(torch.tanh(self.first(obs)))
                return Independent(Normal(mean, self.log_std.exp()), 1)

        torch.manual_seed(0)
        module = Tied().double()
        obs = torch.randn(30, 5, dtype=torch.float64)
        with torch.no_grad():
            old = module(obs)
            actions = old.sample()
        opt = TRPOOptimizer(module)
        opt.step(obs=obs, actions=actions, advantages=torch.randn(30))
        assert result_of(opt).accepted
        assert module.first.weight is module.second.weight
        kl = torch.distributions.kl_divergence(old, module(obs)).mean()
        assert result_of(opt).kl == pytest.approx(float(kl.detach()), rel=1e-9)
        # Half the quadratic model's KL: 0.01 would be far off were the tie counted twice.
        assert 0.003 < float(kl.detach()) <= 0.01

    def test_a_tied_mlp_policy_takes_the_generic_path(self) -> None:
        policy = make_policy(GAUSSIAN, hidden=(5, 5))
        policy.body[2].weight = policy.body[0].weight
        opt = TRPOOptimizer(policy)
        assert opt.path == "generic"
        assert "share" in opt.path_reason
        opt.step(**make_data(policy, GAUSSIAN))
        assert result_of(opt).accepted
