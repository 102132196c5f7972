"""The Beta head against torch's distribution, textbook moments and exact integrals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from trpo_fast import MlpPolicy
from trpo_fast.networks.beta import BetaHead, beta_draw
from trpo_fast.networks.distributions import mode
from trpo_fast.networks.head import Outputs

HEAD = BetaHead(2)


def some_outputs(rows: int = 7, scale: float = 2.0) -> Outputs:
    generator = torch.Generator().manual_seed(0)
    return Outputs(scale * torch.randn(rows, 4, generator=generator, dtype=torch.float64))


def test_the_score_is_autograds() -> None:
    values = some_outputs().values.requires_grad_()
    actions = torch.linspace(0.01, 0.99, 14, dtype=torch.float64).view(7, 2)
    log_prob = HEAD.distribution(Outputs(values)).log_prob(actions)
    (slopes,) = torch.autograd.grad(log_prob.sum(), values)
    found, of_log_std = HEAD.score(Outputs(values.detach()), actions)
    assert of_log_std is None
    torch.testing.assert_close(found, slopes, rtol=1e-11, atol=1e-11)


def test_the_metric_is_the_mean_square_of_the_score() -> None:
    # Gauss-Legendre nodes on (0, 1); the density is smooth for concentrations above 1.
    at = Outputs(torch.tensor([[0.5, 2.0, 1.5, 3.0]], dtype=torch.float64))
    nodes, weights = np.polynomial.legendre.leggauss(400)
    x, w = torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
    actions = torch.stack([x, x], dim=1)
    many = Outputs(at.values.expand(400, 4))
    score, _ = HEAD.score(many, actions)
    density = HEAD.distribution(many).base_dist.log_prob(actions).exp()  # [400, 2]
    alpha, beta = score[:, :2], score[:, 2:]
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for a in range(2):
        mean = lambda t, a=a: (w * density[:, a] * t).sum()  # noqa: E731
        expected[a, a] = mean(alpha[:, a].square())
        expected[2 + a, 2 + a] = mean(beta[:, a].square())
        expected[a, 2 + a] = expected[2 + a, a] = mean(alpha[:, a] * beta[:, a])
    unit = torch.eye(4, dtype=torch.float64)
    product = HEAD.metric(Outputs(at.values.expand(4, 4)))
    torch.testing.assert_close(product(unit), expected, rtol=1e-5, atol=1e-7)
    signs = torch.tensor(np.array(np.meshgrid(*[[-1.0, 1.0]] * 4)).reshape(4, -1).T)
    roots = HEAD.metric_root(Outputs(at.values.expand(16, 4)), signs)
    torch.testing.assert_close(roots.T @ roots / 16, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (1.2, 5.0), (40.0, 3.0), (2000.0, 2000.0)])
def test_draws_have_the_distribution(alpha: float, beta: float) -> None:
    count = 40_000
    noise = torch.from_numpy(np.random.default_rng(0).random(count))
    drawn = beta_draw(torch.full((count,), alpha), torch.full((count,), beta), noise).sort().values
    assert torch.equal(
        drawn,
        beta_draw(torch.full((count,), alpha), torch.full((count,), beta), noise).sort().values,
    )
    mean, variance = alpha / (alpha + beta), alpha * beta / (alpha + beta) ** 2 / (alpha + beta + 1)
    # Five standard errors of a mean and, for a fourth moment below 3 variances^2, of a variance.
    assert float(drawn.mean()) == pytest.approx(mean, abs=5 * (variance / count) ** 0.5)
    assert float(drawn.var()) == pytest.approx(variance, rel=5 * (2 / count) ** 0.5)
    if alpha == beta == 1:  # Kolmogorov & Smirnov at one in a million
        steps = torch.arange(1, count + 1) / count
        assert float((drawn - steps).abs().max()) < 2.7 / count**0.5


def test_draws_stay_inside_in_the_networks_dtype_and_pass_nan_on() -> None:
    at = Outputs(torch.tensor([[60.0, 60.0, -60.0, float("nan")]]))
    noise = torch.from_numpy(np.random.default_rng(0).random((1, 2)))
    found = HEAD.draw(at, noise)
    assert found.dtype is torch.float32
    assert 0 < float(found[0, 0]) < 1
    assert torch.isnan(found[0, 1])


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.5, 1.5])
def test_actions_outside_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=rf"strictly within \(0, 1\).*{bad}"):
        HEAD.checked_actions(torch.tensor([[0.5, bad]]), None, torch.float32)


def test_the_deterministic_action_is_the_mean_which_does_not_jump_where_all_are_as_likely() -> None:
    """There the mode goes from 0.5 to 1 by one output's rounding."""
    even, beside = torch.full((1, 4), -16.0), torch.tensor([[-15.0, -16.0, -16.0, -15.0]])
    for at in (even, beside, torch.full((1, 4), -200.0)):
        torch.testing.assert_close(mode(HEAD.distribution(Outputs(at))), torch.full((1, 2), 0.5))
    at = Outputs(torch.tensor([[0.3, 2.0, -1.0, 0.5]]))
    alpha, beta = HEAD.parts(at)
    torch.testing.assert_close(mode(HEAD.distribution(at)), alpha / (alpha + beta))


def test_a_policy_takes_its_actions_to_the_bounds() -> None:
    low, high = np.array([-2.0, 5.0], np.float32), np.array([3.0, 6.0], np.float32)
    space = spaces.Box(low, high)
    policy = MlpPolicy(spaces.Box(-1, 1, (3,)), space, distribution="beta")
    distribution = policy(torch.randn(100, 3))
    ends: Tensor = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
    assert policy.to_env(ends).tolist() == [[-2.0, 5.0], [3.0, 6.0], [0.5, 5.5]]
    for action in policy.to_env(distribution.sample()).numpy():
        assert space.contains(action)
    inner = policy.mode(distribution)
    assert bool(((inner > 0.4) & (inner < 0.6)).all())  # at the start it hardly leans


def test_a_mean_at_its_end_is_an_action_of_the_space() -> None:
    """There the mean is 1.0, and the map to these bounds rounds past the upper one."""
    space = spaces.Box(-2.8, 1.5, (1,))
    policy = MlpPolicy(spaces.Box(-1, 1, (3,)), space, distribution="beta")
    outputs = torch.tensor([[1e30, -17.0], [-17.0, 1e30]])
    chosen = mode(policy.head.distribution(Outputs(outputs, None, None)))
    assert chosen.flatten().tolist() == pytest.approx([1.0, 0.0], abs=1e-20)
    assert float(chosen[0, 0]) == 1
    for action in policy.to_env(chosen).numpy():
        assert space.contains(action)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_draw_ends_where_a_concentration_is_no_number(bad: float) -> None:
    shapes = torch.tensor([bad, 2.0, 2.0], dtype=torch.float64)
    drawn = beta_draw(shapes, torch.full_like(shapes, 3.0), torch.full_like(shapes, 0.3))
    assert drawn.isnan().tolist() == [True, False, False]
