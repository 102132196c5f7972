"""A head added in Python alone: one class, entered in ``HEADS``; nothing else knows of it.

Geometric counts, which no native kernel has: the reference backend serves them, and is held to the
float64 dense oracle that the package's own heads are held to.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pytest
import torch
import update_cases
from gymnasium import spaces
from parity_cases import DTYPES, analytic, assert_close, generic, in_dtype, pair
from torch import Tensor, nn
from torch.distributions import Distribution, Geometric, Independent
from update_cases import Case, Wrapped, dense_fisher, flat_of, loss_and_kl, old_distribution

from trpo_fast import MlpPolicy, TRPOOptimizer
from trpo_fast.backends.registry import ANALYTIC
from trpo_fast.base.errors import FallbackWarning
from trpo_fast.networks import heads
from trpo_fast.networks.head import Head, Outputs, Product
from trpo_fast.networks.network import Network
from trpo_fast.recognition.recognizer import network_of
from trpo_fast.update.options import Options

WIDTH = 3
COUNTS = Case("geometric", spaces.Box(0, 10**6, (WIDTH,), np.int64), {})


@dataclass(frozen=True)
class GeometricHead(Head):
    """Independent numbers of failures before a success; the outputs are the success's logits."""

    kind = "geometric"
    width: int

    @classmethod
    def for_space(
        cls, space: spaces.Space[Any], *, state_dependent_std: bool, distribution: str
    ) -> Self | None:
        whole = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.integer)
        return cls(math.prod(space.shape or ())) if whole else None

    @classmethod
    def of_outputs(cls, distribution: Distribution) -> tuple[Self, Tensor] | None:
        found: Any = distribution
        if type(found) is not Independent or type(found.base_dist) is not Geometric:
            return None
        return cls(found.base_dist.logits.shape[-1]), found.base_dist.logits

    @property
    def components(self) -> int:
        return self.width

    def distribution(self, at: Outputs) -> Distribution:
        counts = Geometric(logits=at.values, validate_args=False)
        return Independent(counts, 1, validate_args=False)

    def score(self, at: Outputs, actions: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = at.values.double()
        return torch.sigmoid(-logits) - actions * torch.sigmoid(logits), None

    def metric(self, at: Outputs) -> Product:
        return lambda u: torch.sigmoid(-at.values) * u

    def metric_root(self, at: Outputs, signs: Tensor) -> Tensor:
        return torch.sigmoid(-at.values).sqrt() * signs

    def draw(self, at: Outputs, noise: Tensor) -> Tensor:
        failure = torch.nn.functional.logsigmoid(-at.values.double())
        return torch.floor(torch.log1p(-noise) / failure).to(at.values.dtype)

    def checked_actions(self, actions: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        if not bool(((actions >= 0) & (actions == actions.floor())).all()):
            raise ValueError("counts must be whole numbers >= 0")
        return actions.to(dtype)


def textbook_fisher(policy: MlpPolicy, outputs: Tensor, mask: Tensor | None) -> Tensor:
    """Var(count) p^2 on the diagonal, with the variance (1 - p) / p^2."""
    p = 1 / (1 + torch.exp(-outputs))
    return torch.diag_embed((1 - p) / p**2 * p**2)


@pytest.fixture(autouse=True)
def entered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "HEADS", [*heads.HEADS, GeometricHead])
    monkeypatch.setitem(update_cases.HEAD_FISHERS, "geometric", textbook_fisher)
    monkeypatch.setattr("trpo_fast.base.errors._said", set())  # a fallback is said once a process


class Own(nn.Module):
    """A user's module, which returns the distribution and knows no head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, WIDTH))

    def forward(self, obs: Tensor, action_mask: None = None) -> Distribution:
        return Independent(Geometric(logits=self.body(obs)), 1)


def some_outputs() -> Outputs:
    generator = torch.Generator().manual_seed(0)
    return Outputs(2 * torch.randn(7, WIDTH, generator=generator, dtype=torch.float64))


def test_the_score_is_autograds() -> None:
    at = some_outputs()
    head = GeometricHead(WIDTH)
    values = at.values.clone().requires_grad_()
    actions = torch.arange(7 * WIDTH, dtype=torch.float64).view(7, WIDTH)
    log_prob = head.distribution(Outputs(values)).log_prob(actions)
    (slopes,) = torch.autograd.grad(log_prob.sum(), values)
    torch.testing.assert_close(head.score(at, actions)[0], slopes, rtol=1e-12, atol=1e-12)


def test_the_metric_is_the_mean_square_of_the_score() -> None:
    at = Outputs(torch.tensor([[-1.0], [0.3], [2.0]], dtype=torch.float64))
    head = GeometricHead(1)
    expected = torch.zeros(3, 1, dtype=torch.float64)
    for count in range(400):  # beyond, the likeliest has probability 0.731^400 = 1e-55
        actions = torch.full((3, 1), float(count), dtype=torch.float64)
        probability = head.distribution(at).log_prob(actions).exp().unsqueeze(1)
        expected += probability * head.score(at, actions)[0].square()
    ones = torch.ones(3, 1, dtype=torch.float64)
    torch.testing.assert_close(head.metric(at)(ones), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(head.metric_root(at, ones).square(), expected, rtol=1e-12, atol=0)


def test_a_draw_is_the_inverse_of_the_distribution_function() -> None:
    head, at = GeometricHead(1), Outputs(torch.tensor([[0.4]], dtype=torch.float64))
    failure = 1 / (1 + math.exp(0.4))
    for count in range(6):
        for noise in (1 - failure**count + 1e-9, 1 - failure ** (count + 1) - 1e-9):
            drawn = head.draw(at, torch.tensor([[noise]], dtype=torch.float64))
            assert drawn.item() == count


@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("build", [analytic("reference"), generic], ids=["reference", "generic"])
def test_products_gradient_and_candidates_equal_the_dense_oracle(
    build: Any, dtype: torch.dtype, weighted: bool
) -> None:
    policy, exact, data = pair(COUNTS, dtype, weighted=weighted)
    tolerance = 2e-5 if dtype is torch.float32 else 1e-10  # as for the package's own heads
    problem = build(policy, in_dtype(data, dtype), Options())
    loss, g = problem.surrogate_gradient()
    old = old_distribution(exact, data)
    expected, _ = loss_and_kl(exact, data, old)
    assert loss == pytest.approx(float(expected.detach()), rel=10 * tolerance, abs=tolerance)
    slopes = torch.autograd.grad(expected, list(exact.parameters()))
    assert_close(g, -torch.cat([slope.reshape(-1) for slope in slopes]), tolerance)

    F = dense_fisher(exact, data)
    v = torch.randn(len(F), generator=torch.Generator().manual_seed(1)).to(dtype)
    assert_close(problem.fisher_product(v), F @ v.double(), tolerance)

    candidate = problem.parameters.read() + 0.05 * v
    loss, kl = problem.evaluate(candidate)
    flat_of(exact).write(candidate.double())
    expected_loss, expected_kl = loss_and_kl(exact, data, old)
    assert loss == pytest.approx(float(expected_loss.detach()), rel=10 * tolerance)
    assert kl == pytest.approx(float(expected_kl.detach()), rel=10 * tolerance)


def test_an_update_is_the_dense_natural_gradient() -> None:
    policy, exact, data = pair(COUNTS, torch.float64)
    start = flat_of(policy).read()
    expected, _ = loss_and_kl(exact, data, old_distribution(exact, data))
    slopes = torch.autograd.grad(expected, list(exact.parameters()))
    g = -torch.cat([slope.reshape(-1) for slope in slopes])
    damped = dense_fisher(exact, data) + 0.1 * torch.eye(len(g), dtype=torch.float64)
    options: dict[str, Any] = {"damping": 0.1, "cg_iters": 300, "cg_tol": 0.0}
    optimizer = TRPOOptimizer(
        policy, constraint="none", lr=0.01, backend="reference", preconditioner="none", **options
    )
    optimizer.step(**data)
    assert optimizer.path == "fused"
    assert_close(flat_of(policy).read() - start, 0.01 * torch.linalg.solve(damped, g), 1e-8)


def test_a_users_module_is_recognised_by_what_it_returns() -> None:
    torch.manual_seed(0)
    policy, obs = Own(), torch.randn(60, 5)
    network = network_of(policy, obs)
    assert isinstance(network, Network), network
    assert network.head == GeometricHead(WIDTH)
    actions = policy(obs).sample()
    twin = Wrapped(Own())
    twin.inner.load_state_dict(policy.state_dict())
    given = {"obs": obs, "actions": actions, "advantages": torch.randn(60)}
    found = []
    for module in (policy, twin):
        optimizer = TRPOOptimizer(module, preconditioner="none", precision="fp32")
        leaves = "cpu" in ANALYTIC or module is twin
        with pytest.warns(FallbackWarning) if leaves else nullcontext():
            optimizer.step(**given)
        assert optimizer.last_result is not None
        assert optimizer.last_result.accepted
        assert 0 < optimizer.last_result.kl <= 0.01
        found.append((optimizer.path, optimizer.last_result.backend))
    assert found == [("fused", "reference"), ("generic", "generic")]
    for a, b in zip(policy.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_actions_that_the_head_cannot_have_are_refused() -> None:
    policy, _, data = pair(COUNTS, torch.float64)
    data["actions"][3, 1] = 0.5
    with pytest.raises(ValueError, match="whole numbers"):
        TRPOOptimizer(policy, backend="reference").step(**data)
