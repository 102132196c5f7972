"""Functions that depend on how many rows they are given, or on how these lie in memory."""

from __future__ import annotations

import pytest
import torch
from recognizer_cases import (
    ACTIONS,
    LIMIT,
    WIDTH,
    Policy,
    Wrapped2,
    data_of,
    flat,
    made,
    measured_kl,
    observations,
    reason,
)
from torch import Tensor, nn
from torch.distributions import Distribution

from trpo_fast import TRPOOptimizer, fisher_vector_product
from trpo_fast.networks.network import Network
from trpo_fast.recognition.recognizer import layers_of, network_of

pytestmark = [
    pytest.mark.reliability("rows"),
    pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning"),
]


class Large(Policy):
    def mean(self, obs: Tensor) -> Tensor:
        mean = super().mean(obs)
        return 3.0 * mean.sin() if obs.size(0) > LIMIT else mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_larger_batch_is_another_function(dtype: torch.dtype) -> None:
    policy = made(Large, dtype)
    opt = TRPOOptimizer(policy)
    opt.step(**data_of(policy, observations(LIMIT, dtype)))
    assert opt.path == "fused"
    obs = observations(200, dtype)
    data = data_of(policy, obs)
    kl = measured_kl(policy, lambda: opt.step(**data), obs)
    assert (opt.path, opt.path_reason) == (
        "generic",
        "Large: forward applies sin to the output of a layer",
    )
    assert opt.last_result is not None
    assert opt.last_result.kl == pytest.approx(kl, rel=1e-3)


def test_a_branch_that_only_the_batch_takes() -> None:
    # Nothing of it is seen in the few rows that are traced first.
    assert "applies sin" in reason(made(Large))


def test_a_gradient_that_stops_at_many_rows() -> None:
    class Stopping(Policy):
        def mean(self, obs: Tensor) -> Tensor:
            hidden = torch.tanh(self.first(obs))
            return self.last(hidden.detach() if len(obs) > LIMIT else hidden)

    policy = made(Stopping)
    assert isinstance(network_of(policy, observations(LIMIT)), Network)
    assert "detach" in reason(policy, observations(LIMIT + 1))


def test_another_layout_of_the_same_rows() -> None:
    class Strided(Policy):
        def mean(self, obs: Tensor) -> Tensor:
            mean = super().mean(obs)
            return mean if obs.is_contiguous() or len(obs) < LIMIT else mean.sin()

    policy, obs = made(Strided), observations(40)
    assert isinstance(network_of(policy, obs), Network)
    assert "applies sin" in reason(policy, obs.T.contiguous().T)


def test_a_value_function() -> None:
    class Value(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(WIDTH, 1)

        def forward(self, obs: Tensor) -> Tensor:
            values = self.net(obs)
            return values.cos() if obs.numel() > LIMIT * WIDTH else values

    value = Value().double()
    assert not isinstance(layers_of(value, observations(LIMIT)), str)
    assert "applies cos" in str(layers_of(value, observations(LIMIT + 1)))


def test_fisher_products() -> None:
    policy = made(Large)
    v = torch.randn(len(flat(policy)), dtype=torch.float64)
    for rows in (LIMIT, LIMIT + 1):
        obs = observations(rows)
        generic = fisher_vector_product(Wrapped2(policy), obs, v)
        assert torch.allclose(fisher_vector_product(policy, obs, v), generic, rtol=1e-9)


def test_more_rows_than_one_call_of_the_generic_path_sees() -> None:
    class PerCall(Policy):
        def mean(self, obs: Tensor) -> Tensor:
            mean = super().mean(obs)
            return mean.sin() if len(obs) > 1 << 17 else mean

    obs = observations((1 << 17) + 3)
    assert isinstance(network_of(made(PerCall), obs), Network)


def test_a_forward_of_another_distribution_for_many_rows() -> None:
    class Wider(Policy):
        def std(self, mean: Tensor) -> Tensor:
            std = self.log_std.exp()
            return std if len(mean) < LIMIT else std * 2.0

    found = network_of(made(Wider), observations(LIMIT - 1))
    assert isinstance(found, Network)
    assert found.head.components == ACTIONS
    policy = made(Wider)
    assert isinstance(policy(observations()), Distribution)
    assert "mul" in reason(policy)
