"""Fisher products of models of every kind, against dense float64 Hessians of the mean KL."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from generic_cases import MODELS, Model, dense_fisher, linear_of
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Cauchy,
    Dirichlet,
    Distribution,
    Exponential,
    Gamma,
    Geometric,
    Gumbel,
    HalfNormal,
    Independent,
    Laplace,
    LogNormal,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Poisson,
    TransformedDistribution,
    kl_divergence,
)
from torch.distributions.transforms import TanhTransform
from torch.nn.functional import softplus

from trpo_fast import TRPOOptimizer, fisher_vector_product
from trpo_fast.backends.generic.convolutions import Convolutions
from trpo_fast.backends.generic.linearization import KlHessian, ReverseTwice, depends_on
from trpo_fast.base.modes import twice_differentiable
from trpo_fast.networks.distributions import MaskedCategorical, MultiCategorical, detached

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_kind_of_model_equals_the_dense_fisher_matrix(model: Model) -> None:
    module, obs = model.make(torch.float64)
    with twice_differentiable(module):
        dense = dense_fisher(module, obs)
        torch.manual_seed(1)
        for convolutions in (None, Convolutions()):
            linear = linear_of(module, obs, convolutions)
            assert type(linear) is ReverseTwice
            for _ in range(2):  # the linearisation is kept
                v = torch.randn(len(dense), dtype=torch.float64)
                assert torch.allclose(linear.product(v), dense @ v, rtol=1e-8, atol=1e-12)
    assert float(dense.abs().max()) > 1e-6


class Head(nn.Module):
    """Some outputs of a small network, made into a distribution."""

    def __init__(self, width: int, make: Callable[[Tensor], Distribution]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, width))
        self.make = make

    def forward(self, obs: Tensor) -> Distribution:
        return self.make(self.body(obs))


def positive(x: Tensor) -> Tensor:
    return softplus(x) + 0.3


def tril(x: Tensor) -> Tensor:
    return torch.diag_embed(positive(x[:, :2])) + torch.tensor([[0.0, 0], [0.5, 0]]).to(x)


MASK = torch.tensor([True, True, False, True])
HEADS: dict[str, tuple[int, Callable[[Tensor], Distribution], type]] = {
    "normal": (4, lambda x: Independent(Normal(x[:, :2], positive(x[:, 2:])), 1), ReverseTwice),
    "normal, fixed scale": (2, lambda x: Independent(Normal(x, torch.ones(2)), 1), ReverseTwice),
    "scalar normal": (2, lambda x: Normal(x[:, 0], positive(x[:, 1])), ReverseTwice),
    "tanh": (
        4,
        lambda x: TransformedDistribution(
            Independent(Normal(x[:, :2], positive(x[:, 2:])), 1), [TanhTransform(cache_size=1)]
        ),
        ReverseTwice,
    ),
    "log-normal": (2, lambda x: LogNormal(x[:, 0], positive(x[:, 1])), ReverseTwice),
    "categorical": (4, lambda x: Categorical(logits=x), ReverseTwice),
    "categorical, probs": (4, lambda x: Categorical(probs=x.softmax(1)), ReverseTwice),
    "categorical, masked": (
        4,
        lambda x: MaskedCategorical(x, MASK.expand_as(x)),
        ReverseTwice,
    ),
    "multi-categorical": (5, lambda x: MultiCategorical(x, (2, 3)), ReverseTwice),
    "one-hot": (4, lambda x: OneHotCategorical(logits=x), ReverseTwice),
    "bernoulli": (3, lambda x: Independent(Bernoulli(logits=x), 1), ReverseTwice),
    "bernoulli, probs": (3, lambda x: Independent(Bernoulli(probs=x.sigmoid()), 1), ReverseTwice),
    "beta": (4, lambda x: Independent(Beta(*positive(x).chunk(2, 1)), 1), ReverseTwice),
    "gamma": (2, lambda x: Gamma(*positive(x).unbind(1)), ReverseTwice),
    "dirichlet": (3, lambda x: Dirichlet(positive(x)), ReverseTwice),
    "exponential": (1, lambda x: Exponential(positive(x[:, 0])), ReverseTwice),
    "poisson": (1, lambda x: Poisson(positive(x[:, 0])), ReverseTwice),
    "gumbel": (2, lambda x: Gumbel(x[:, 0], positive(x[:, 1])), ReverseTwice),
    "half-normal": (1, lambda x: HalfNormal(positive(x[:, 0])), ReverseTwice),
    "multivariate": (
        4,
        lambda x: MultivariateNormal(x[:, 2:], scale_tril=tril(x)),
        ReverseTwice,
    ),
    "multivariate, covariance": (
        4,
        lambda x: MultivariateNormal(x[:, 2:], tril(x) @ tril(x).mT),
        ReverseTwice,
    ),
    "low rank": (
        4,
        lambda x: LowRankMultivariateNormal(x[:, :2], x[:, 2:, None], positive(x[:, 2:])),
        ReverseTwice,
    ),
    # Of these types nothing is known here but their KL.
    "geometric": (1, lambda x: Geometric(logits=x[:, 0]), KlHessian),
    "binomial": (1, lambda x: Binomial(5, logits=x[:, 0]), KlHessian),
    "cauchy": (2, lambda x: Cauchy(x[:, 0], positive(x[:, 1])), KlHessian),
}


@pytest.mark.parametrize("name", HEADS)
def test_every_distribution_equals_the_dense_fisher_matrix(name: str) -> None:
    width, make, kind = HEADS[name]
    torch.manual_seed(0)
    module, obs = Head(width, make).double(), torch.randn(6, 3, dtype=torch.float64)
    dense = dense_fisher(module, obs)
    v = torch.randn(len(dense), dtype=torch.float64)
    linear = linear_of(module, obs)
    assert type(linear) is kind
    assert torch.allclose(linear.product(v), dense @ v, rtol=1e-7, atol=1e-11)
    assert float(torch.linalg.eigvalsh(dense)[-1]) > 1e-3
    # The whole way, through the public function.
    product = fisher_vector_product(module, obs, v)
    assert torch.allclose(product, dense @ v, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("name", HEADS)
def test_every_distribution_takes_a_step_in_float32(name: str) -> None:
    width, make, _ = HEADS[name]
    torch.manual_seed(0)
    module, obs = Head(width, make), torch.randn(64, 3)
    with torch.no_grad():
        old = detached(module(obs))
        actions = old.sample()
    opt = TRPOOptimizer(module)
    opt.step(obs=obs, actions=actions, advantages=torch.randn(64))
    result = opt.last_result
    assert result is not None
    assert result.accepted, result
    with torch.no_grad():
        kl = float(kl_divergence(old, module(obs)).mean())
    assert kl == pytest.approx(result.kl, rel=1e-2, abs=1e-6)
    assert 1e-4 < kl <= 0.01 * (1 + 1e-3)


def test_laplace_has_the_curvature_that_autograd_does_not_see() -> None:
    torch.manual_seed(0)
    module = Head(2, lambda x: Laplace(x[:, 0], positive(x[:, 1]))).double()
    obs = torch.randn(1, 3, dtype=torch.float64)
    scale = float(module(obs).scale.detach())
    J = torch.autograd.functional.jacobian(
        lambda bias: torch.stack([positive(bias)[1], bias[0]]), module.body(obs)[0].detach()
    )
    # Of the last bias: 1 / scale^2 on (loc, scale), both. Its entries are the last two of [P].
    expected = J.T @ J / scale**2
    sizes = [p.numel() for p in module.parameters()]
    v = torch.zeros(sum(sizes), dtype=torch.float64)
    for column in range(2):
        v.zero_()
        v[-2 + column] = 1
        product = fisher_vector_product(module, obs, v)[-2:]
        assert torch.allclose(product, expected[:, column], rtol=1e-9)


def test_dependence_is_read_from_the_graph() -> None:
    a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
    assert depends_on([(a * 2).sum(), c], [a, b, c]) == [True, False, True]
    assert depends_on([(a + b).detach()], [a, b]) == [False, False]


@pytest.mark.parametrize("form", ["dropout", "functional", "noise"])
def test_a_policy_that_answers_otherwise_each_time_is_refused(form: str) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.drop = nn.Linear(3, 4), nn.Dropout(0.5)

        def forward(self, obs: Tensor) -> Distribution:
            if form == "dropout":
                logits = self.drop(self.linear(obs))
            elif form == "functional":
                logits = nn.functional.dropout(self.linear(obs), 0.5, training=True)
            else:
                logits = self.linear(obs + torch.randn_like(obs))
            return Categorical(logits=logits)

    torch.manual_seed(0)
    module = Noisy()
    before = [p.detach().clone() for p in module.parameters()]
    opt = TRPOOptimizer(module)
    obs, actions = torch.randn(64, 3), torch.randint(0, 4, (64,))
    if form == "dropout":  # eval mode switches it off
        opt.step(obs=obs, actions=actions, advantages=torch.randn(64))
        assert opt.last_result is not None
        assert opt.last_result.accepted
        return
    with pytest.raises(ValueError, match=r"each time it is called: KL\(theta, theta\) = 0\.\d"):
        opt.step(obs=obs, actions=actions, advantages=torch.randn(64))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))
    assert module.training
