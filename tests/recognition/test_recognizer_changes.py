"""Modules that change between steps: nothing stale is ever used."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from recognizer_cases import (
    ACTIONS,
    RECOGNISED,
    WIDTH,
    Body,
    Policy,
    Wrapped2,
    data_of,
    flat,
    made,
    observations,
    reason,
)
from recognizer_refusals import ClampedMean, NoGrad
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from update_cases import bits, same_bits

from trpo_fast import TRPOOptimizer
from trpo_fast.networks.network import Network, forward
from trpo_fast.recognition import recognizer
from trpo_fast.recognition.recognizer import network_of

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Every module that was traced."""
    seen: list[nn.Module] = []

    class Counting(recognizer.Tracer):
        def __init__(self, module: nn.Module, *rest: Any) -> None:
            seen.append(module)
            super().__init__(module, *rest)

    monkeypatch.setattr(recognizer, "Tracer", Counting)
    return seen


class TestChangesBetweenSteps:
    def paths(self, policy: nn.Module, change: Callable[[], Any]) -> Iterator[str]:
        """The path before and after a change; after it the step must be the generic one."""
        data = data_of(policy, observations())
        opt = TRPOOptimizer(policy)
        opt.step(**data)
        yield opt.path
        change()
        opt.step(**data)
        yield opt.path
        yield opt.path_reason

    def test_a_module_is_traced_once_and_once_for_each_number_of_rows(
        self, traces: list[nn.Module]
    ) -> None:
        policy = made(Policy)
        opt, seen = TRPOOptimizer(policy), []
        for rows in (48, 48, 31, 31, 1000, 48, 1000):
            opt.step(**data_of(policy, observations(rows)))
            assert opt.path == "fused"
            seen.append(len(traces))
        assert seen == [2, 2, 3, 3, 4, 4, 4]

    def test_a_refused_module_is_traced_once(self, traces: list[nn.Module]) -> None:
        policy = made(ClampedMean)
        opt, reasons = TRPOOptimizer(policy), []
        for _ in range(3):
            opt.step(**data_of(policy, observations()))
            assert opt.path == "generic"
            reasons.append(opt.path_reason)
        assert traces == [policy], reasons

    def test_a_hook_added_later(self) -> None:
        policy = made(Policy)
        hook = lambda m, i, o: 0.5 * o  # noqa: E731
        first, second, why = self.paths(policy, lambda: policy.last.register_forward_hook(hook))
        assert (first, second) == ("fused", "generic")
        assert "hook is registered on module 'last'" in why

    def test_a_forward_replaced_on_the_object(self) -> None:
        policy = made(Policy)
        other = lambda obs: Independent(Normal(0.5 * policy.mean(obs), 1.0), 1)  # noqa: E731
        first, second, why = self.paths(policy, lambda: setattr(policy, "forward", other))
        assert (first, second) == ("fused", "generic")
        assert "forward method replaced" in why

    def test_a_forward_replaced_on_the_class(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Mine(Policy):
            pass

        def other(self: Policy, obs: Tensor) -> Distribution:
            return Independent(Normal(self.mean(obs).sin(), self.log_std.exp()), 1)

        policy = made(Mine)
        first, second, why = self.paths(policy, lambda: setattr(Mine, "forward", other))
        assert (first, second) == ("fused", "generic")
        assert "applies sin" in why

    def test_a_helper_replaced_on_the_object(self) -> None:
        policy = made(Policy)
        std = lambda mean: policy.log_std.clamp(-9, 9).exp() + 0.01  # noqa: E731
        first, second, why = self.paths(policy, lambda: setattr(policy, "std", std))
        assert (first, second) == ("fused", "generic")
        assert "clamp" in why

    def test_noise_switched_on_draws_as_if_nobody_had_looked(self) -> None:
        class Switched(Policy):
            noise = False

            def mean(self, obs: Tensor) -> Tensor:
                mean = super().mean(obs)
                return mean + torch.randn_like(mean) if self.noise else mean

        policy = made(Switched)
        assert isinstance(network_of(policy, observations()), Network)
        policy.noise = True
        state = torch.get_rng_state()
        assert "draws random numbers" in reason(policy)
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_forward_that_also_samples_draws_as_if_nobody_had_looked(self) -> None:
        class Sampling(Policy):
            def forward(self, obs: Tensor) -> Distribution:
                distribution = super().forward(obs)
                self.action = distribution.rsample()
                return distribution

        policy = made(Sampling)
        state = torch.get_rng_state()
        for _ in range(2):
            assert isinstance(network_of(policy, observations()), Network)
            assert torch.equal(torch.get_rng_state(), state)

    def test_another_activation_is_found(self, traces: list[nn.Module]) -> None:
        policy = made(RECOGNISED["sequential"])
        plain = copy.deepcopy(policy)
        data = data_of(policy, observations())
        opt, generic = TRPOOptimizer(policy), TRPOOptimizer(Wrapped2(plain))
        for module in (policy, plain):
            opt.step(**data) if module is policy else generic.step(**data)
            module.body[2] = nn.SiLU()
        opt.step(**data)
        generic.step(**data)
        assert opt.path == "fused"
        assert traces.count(policy) == 4  # a few rows and all, twice
        assert torch.allclose(flat(policy), flat(plain), rtol=1e-7, atol=1e-9)

    def test_a_slope_changed_later(self) -> None:
        policy = made(lambda: Body(nn.Linear(WIDTH, 6), nn.LeakyReLU(0.1), nn.Linear(6, ACTIONS)))
        assert isinstance(network_of(policy, observations()), Network)
        policy.body[1].negative_slope = 0.3
        found = network_of(policy, observations())
        assert isinstance(found, Network)
        assert found.layers[0].parameter == 0.3

    def test_parameters_replaced_between_steps(self) -> None:
        policy = made(Policy)
        assert isinstance(network_of(policy, observations()), Network)
        for swap in ("parameter", "data", "layer"):
            if swap == "parameter":
                policy.first.weight = nn.Parameter(torch.randn(7, WIDTH, dtype=torch.float64))
            elif swap == "data":
                policy.first.weight.data = torch.randn(7, WIDTH, dtype=torch.float64)
            else:
                policy.first = nn.Linear(WIDTH, 7).double()
            found = network_of(policy, observations())
            assert isinstance(found, Network)
            assert found.layers[0].weight is policy.first.weight
            assert torch.equal(forward(found.layers, observations()), policy.mean(observations()))

    def test_parameters_that_the_optimizer_does_not_know(self) -> None:
        policy = made(Policy)
        data = data_of(policy, observations())
        opt = TRPOOptimizer(policy)
        policy.last.weight = nn.Parameter(policy.last.weight.detach().clone())
        before = bits(policy)
        with pytest.raises(ValueError, match=r"last\.weight was replaced"):
            opt.step(**data)
        assert same_bits(policy, before)

    def test_wider_layers_in_place_of_old_ones(self) -> None:
        policy = made(Policy)
        assert isinstance(network_of(policy, observations()), Network)
        policy.first.weight.data = torch.randn(9, WIDTH, dtype=torch.float64)
        policy.first.bias.data = torch.randn(9, dtype=torch.float64)
        assert "forward raised" in reason(policy)
        policy.last.weight.data = torch.randn(ACTIONS, 9, dtype=torch.float64)
        found = network_of(policy, observations())
        assert isinstance(found, Network)
        assert found.layers[0].weight.shape == (9, WIDTH)

    def test_frozen_and_thawed(self) -> None:
        policy = made(NoGrad)
        policy.first.requires_grad_(False)
        assert "no_grad" in reason(policy)
        policy = made(Policy)
        policy.first.requires_grad_(False)
        plain = copy.deepcopy(policy)
        data = data_of(policy, observations())
        for module in (policy, plain):
            opt = TRPOOptimizer(module if module is policy else Wrapped2(module))
            opt.step(**data)
            module.first.requires_grad_(True)
            TRPOOptimizer(module if module is policy else Wrapped2(module)).step(**data)
        assert opt.path == "generic"
        assert torch.allclose(flat(policy), flat(plain), rtol=1e-7, atol=1e-9)

    def test_an_error_in_forward_is_the_generic_paths_to_raise(self) -> None:
        class Broken(Policy):
            def mean(self, obs: Tensor) -> Tensor:
                if getattr(self, "broken", False):
                    raise ZeroDivisionError("by the module")
                return super().mean(obs)

        policy = made(Broken)
        data = data_of(policy, observations())
        opt = TRPOOptimizer(policy)
        opt.step(**data)
        policy.broken = True
        with pytest.raises(ZeroDivisionError, match="by the module"):
            opt.step(**data)
        policy.broken = False
        opt.step(**data)
        assert opt.path == "fused"

    def test_modules_are_not_kept_alive(self) -> None:
        policy = made(Policy)
        assert isinstance(network_of(policy, observations()), Network)
        watch = weakref.ref(policy)
        parameter = weakref.ref(policy.first.weight)
        del policy
        gc.collect()
        assert watch() is None
        assert parameter() is None
