"""Closures that a step cannot be measured by: stale tensors, ``backward`` inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizer_cases import result_of
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal
from update_cases import bits, same_bits

from trpo_fast import TRPOOptimizer

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")
OBS = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
ACTIONS = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
ADVANTAGES = torch.randn(64, generator=torch.Generator().manual_seed(2))
ROW = ADVANTAGES.sign().long().clamp(min=0)


class Gaussian(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, obs: Tensor) -> Distribution:
        return Independent(Normal(self.body(obs), self.log_std.exp()), 1)


def surrogate(distribution: Distribution, old: Tensor) -> Tensor:
    return -((distribution.log_prob(ACTIONS) - old).exp() * ADVANTAGES).mean()


Closure = Callable[[], Any]


def stale_distribution(policy: Gaussian, old: Tensor) -> Closure:
    made = policy(OBS)
    return lambda: (surrogate(policy(OBS), old), made)


def stale_distribution_through_a_function(policy: Gaussian, old: Tensor) -> Closure:
    mean, std = policy.body(OBS), policy.log_std.exp()
    return lambda: (surrogate(policy(OBS), old), Independent(Normal(mean * 1.0, std * 1.0), 1))


def stale_mean(policy: Gaussian, old: Tensor) -> Closure:
    mean = policy.body(OBS)
    return lambda: (surrogate(policy(OBS), old), Independent(Normal(mean, policy.log_std.exp()), 1))


def stale_loss(policy: Gaussian, old: Tensor) -> Closure:
    loss = surrogate(policy(OBS), old)
    return lambda: (loss, policy(OBS))


def stale_loss_through_a_function(policy: Gaussian, old: Tensor) -> Closure:
    made = policy(OBS)
    return lambda: (surrogate(made, old), policy(OBS))


def all_stale(policy: Gaussian, old: Tensor) -> Closure:
    made = policy(OBS)
    loss = surrogate(made, old)
    return lambda: (loss, made)


STALE = [
    stale_distribution,
    stale_distribution_through_a_function,
    stale_mean,
    stale_loss,
    stale_loss_through_a_function,
    all_stale,
]


@pytest.mark.reliability("stale_closure")
@pytest.mark.parametrize("make", STALE, ids=lambda make: make.__name__)
@pytest.mark.parametrize("by_module", [False, True])
@pytest.mark.parametrize("constraint", ["hard", "penalty"])
@pytest.mark.parametrize("maximize", [False, True])
def test_what_was_made_before_the_step_is_refused(
    make: Any, by_module: bool, constraint: str, maximize: bool
) -> None:
    policy = Gaussian()
    old = policy(OBS).log_prob(ACTIONS).detach()
    optimizer = TRPOOptimizer(
        policy if by_module else policy.parameters(),
        max_kl=0.05,
        constraint=constraint,
        maximize=maximize,
    )
    before, closure = bits(policy), make(policy, old)
    with pytest.raises(ValueError, match=r"(before the parameters moved|does not follow).*anew"):
        optimizer.step(lambda: ((-1 if maximize else 1) * closure()[0], closure()[1]))
    assert same_bits(policy, before)
    optimizer.step(lambda: ((-1 if maximize else 1) * surrogate(policy(OBS), old), policy(OBS)))
    assert result_of(optimizer).accepted
    assert result_of(optimizer).kl > 0


@pytest.mark.reliability("stale_closure")
def test_a_forward_that_answers_from_memory_is_refused() -> None:
    class Remembering(Gaussian):
        made: Any = None

        def forward(self, obs: Tensor) -> Distribution:
            if self.made is None:
                self.made = super().forward(obs)
            return self.made

    policy = Remembering()
    policy(OBS)
    before = bits(policy)
    optimizer = TRPOOptimizer(policy)
    with pytest.raises(ValueError, match="made before the parameters moved"):
        optimizer.step(obs=OBS, actions=ACTIONS, advantages=ADVANTAGES)
    assert optimizer.path == "generic"
    assert same_bits(policy, before)


@pytest.mark.reliability("stale_closure")
def test_a_distribution_of_a_parameter_itself_is_no_stale_one() -> None:
    mean, scale = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
    optimizer = TRPOOptimizer([mean, scale])

    def closure() -> Any:
        distribution = Independent(Normal(mean, scale).expand((64, 2)), 1)
        return surrogate(distribution, -2.0 * torch.ones(64)), distribution

    optimizer.step(closure)
    assert result_of(optimizer).accepted
    assert result_of(optimizer).kl > 0


@pytest.mark.reliability("stale_closure")
def test_a_policy_that_has_nothing_to_gain_beside_a_value_function() -> None:
    policy, value = Gaussian(), nn.Linear(3, 1)
    optimizer = TRPOOptimizer([*policy.parameters(), *value.parameters()], damping=1e-3)

    def closure() -> Any:
        return (value(OBS).flatten() - ADVANTAGES).square().mean(), policy(OBS)

    optimizer.step(closure)
    assert result_of(optimizer).accepted
    assert result_of(optimizer).kl == 0.0


@pytest.mark.reliability("stale_closure")
@pytest.mark.parametrize("step", [1e-30, 1e-12, 1e-9, 1e-6])
def test_steps_so_small_that_nothing_is_measured_end_in_a_status(step: float) -> None:
    policy = Gaussian()
    old = policy(OBS).log_prob(ACTIONS).detach()
    for options in ({"max_kl": step}, {"lr": step}):
        optimizer = TRPOOptimizer(policy.parameters(), **options)
        optimizer.step(lambda: (surrogate(policy(OBS), old), policy(OBS)))
        assert 0 <= result_of(optimizer).kl <= optimizer.param_groups[0]["max_kl"]


@pytest.mark.reliability("backward_in_closure")
@pytest.mark.parametrize("retain", [False, True])
def test_backward_in_a_closure_is_named(retain: bool) -> None:
    policy = nn.Linear(3, 2)
    optimizer = TRPOOptimizer(policy.parameters())
    before = policy.weight.clone()

    def closure() -> Any:
        distribution = Categorical(logits=policy(OBS))
        loss = -(distribution.log_prob(ROW) * OBS[:, 0]).mean()
        loss.backward(retain_graph=retain)  # type: ignore[no-untyped-call]
        return loss, distribution

    with pytest.raises(RuntimeError, match=r"backward\(\).*to be taken out|take loss.backward"):
        optimizer.step(closure)
    assert torch.equal(policy.weight, before)
