"""Gauss-Newton steps of the critic: the dense solution, the region, and bits left alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.func import functional_call, jacrev

from trpo_fast import TRPO
from trpo_fast.agent.critic import Critic
from trpo_fast.agent.gauss_newton import gauss_newton_step
from trpo_fast.networks.mlp import ValueFunction
from trpo_fast.recognition.recognizer import layers_of
from trpo_fast.update.options import Options

ROWS, WIDTH = 60, 3


def network(sizes=(7,), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    space = spaces.Box(-1.0, 1.0, (WIDTH,))
    return ValueFunction(space, sizes, "tanh", generator=generator).to(dtype)


def data(dtype=torch.float64, rows=ROWS):
    generator = torch.Generator().manual_seed(1)
    observations = torch.randn(rows, WIDTH, generator=generator, dtype=dtype)
    return observations, 1 + observations.sum(1).sin()


def flat(net):
    return torch.cat([p.detach().reshape(-1).clone() for p in net.parameters()])


def options(**changes):
    settings = {"damping": 1e-3, "cg_iters": 200, "cg_tol": 1e-12, "preconditioner": "none"}
    return Options(**settings | changes)


def dense_step(net, observations, returns, damping):
    """(J'J / (N s^2) + damping I)^-1 J'(R - V) / (N s^2) from the whole Jacobian."""
    parameters = {k: v.detach() for k, v in net.named_parameters()}
    jacobians = jacrev(lambda p: functional_call(net, p, (observations,)))(parameters)
    J = torch.cat([jacobians[k].reshape(len(returns), -1) for k in parameters], 1)
    error = (returns - net(observations)).detach()
    scale = len(returns) * error.square().mean()
    F = J.T @ J / scale + damping * torch.eye(J.shape[1], dtype=J.dtype)
    return torch.linalg.solve(F, J.T @ error / scale)


@pytest.mark.parametrize("sizes", [(), (7,), (5, 4)])
def test_a_step_is_the_dense_gauss_newton_step(sizes):
    net, (observations, returns) = network(sizes), data()
    before, expected = flat(net), dense_step(net, observations, returns, 1e-3)
    step = gauss_newton_step(layers_of(net), observations, returns, options=options(max_kl=1e6))
    assert step.accepted
    moved = flat(net) - before
    # A backtrack shortens the step and keeps its direction.
    share = float(moved @ expected / (expected @ expected))
    assert share == pytest.approx(0.8 ** round(math.log(share, 0.8)), rel=1e-6)
    torch.testing.assert_close(moved, share * expected, rtol=1e-6, atol=1e-8)


def test_a_linear_critic_is_solved_in_one_step():
    net = network(())
    observations, _ = data()
    returns = observations @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + 3
    settings = options(max_kl=1e6, damping=1e-12)
    step = gauss_newton_step(layers_of(net), observations, returns, options=settings)
    assert step.accepted
    assert step.loss_after < 1e-15 * step.loss_before


@pytest.mark.parametrize("max_kl", [1e-4, 1e-2])
def test_the_step_stays_in_its_region_and_the_error_falls(max_kl):
    net, (observations, returns) = network(), data()
    with torch.no_grad():
        old = net(observations)
        step = gauss_newton_step(
            layers_of(net), observations, returns, options=options(max_kl=max_kl)
        )
        new = net(observations)
    assert step.accepted
    assert step.loss_before == pytest.approx(float((old - returns).square().mean()))
    assert step.loss_after == pytest.approx(float((new - returns).square().mean()))
    assert step.loss_after < step.loss_before
    kl = float((new - old).square().mean()) / (2 * step.loss_before)
    assert step.kl == pytest.approx(kl, rel=1e-6)
    assert 0.3 * max_kl < kl <= max_kl


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
def test_what_is_not_finite_changes_no_bit(bad):
    net, (observations, returns) = network(dtype=torch.float32), data(torch.float32)
    returns = returns.double()
    returns[3] = bad
    before = flat(net)
    step = gauss_newton_step(layers_of(net), observations, returns)
    assert not step.accepted
    assert torch.equal(flat(net), before)


def test_perfect_values_are_left_alone():
    net, (observations, _) = network(), data()
    before = flat(net)
    step = gauss_newton_step(layers_of(net), observations, net(observations))
    assert not step.accepted
    assert torch.equal(flat(net), before)


def test_the_critic_offers_it():
    net, (observations, returns) = network(dtype=torch.float32), data(torch.float32, 500)
    critic = Critic(net, learning_rate=0.0, epochs=5, batch_size=1, method="gauss_newton")
    with torch.no_grad():
        before = float((net(observations) - returns).square().mean())
    returns[7] = float("nan")
    result = critic.fit(observations, returns, np.random.default_rng(0))
    assert result.loss is not None
    assert result.loss < 0.2 * before
    assert result.skipped_rows == 1
    assert critic.state_dict() == {}


def test_it_refuses_networks_that_it_does_not_know():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(WIDTH, 1)

        def forward(self, obs):
            return self.a(obs).squeeze(-1) * obs[:, 0]

    critic = Critic(Odd(), learning_rate=0.1, epochs=1, batch_size=8, method="gauss_newton")
    with pytest.raises(ValueError, match="chain of Linear"):
        critic.fit(*data(torch.float32), np.random.default_rng(0))
    net = network(dtype=torch.float32)
    critic = Critic(
        net,
        learning_rate=0.1,
        epochs=1,
        batch_size=8,
        method="gauss_newton",
        leave=[net.body[0].bias],
    )
    with pytest.raises(ValueError, match="frozen or the policy's"):
        critic.fit(*data(torch.float32), np.random.default_rng(0))


def test_an_agent_with_it_resumes_bit_for_bit(tmp_path):
    settings = {"num_envs": 2, "rollout_steps": 64, "hidden_sizes": (8,), "seed": 0}
    settings |= {"critic_method": "gauss_newton", "critic_epochs": 2}
    with TRPO("CartPole-v1", **settings) as whole, TRPO("CartPole-v1", **settings) as first:
        whole.learn(512, progress_bar=False)
        first.learn(256, progress_bar=False)
        path = first.save(tmp_path / "half")
    with TRPO.load(path) as second:
        second.learn(256, progress_bar=False)
        for one, other in zip(
            whole.value_function.parameters(), second.value_function.parameters(), strict=True
        ):
            assert torch.equal(one, other)
