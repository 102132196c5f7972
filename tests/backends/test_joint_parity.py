"""Policies over random trees of action spaces, on every backend, against the dense oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from parity_cases import Backend, assert_close, every_backend, pair
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Independent,
    Normal,
    TanhTransform,
    TransformedDistribution,
)
from update_cases import TRIGAMMA_ERROR, Case, dense_fisher, loss_and_kl, old_distribution

from trpo_fast import JointDistribution, MlpPolicy, TRPOOptimizer, fisher_vector_product
from trpo_fast.networks.distributions import detached
from trpo_fast.update.options import Options

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")
TREES = 12


def random_space(rng: np.random.Generator, depth: int) -> spaces.Space[Any]:
    kind = int(rng.integers(4 if depth == 0 else 7))
    if kind == 0:
        shape = [(), (2,), (1, 3)][int(rng.integers(3))]
        return spaces.Box(-1.5, 2.0, shape)
    if kind == 1:
        return spaces.Discrete(int(rng.integers(1, 6)), start=int(rng.integers(-2, 3)))
    if kind == 2:
        return spaces.MultiDiscrete(rng.integers(1, 4, int(rng.integers(1, 4))))
    if kind == 3:
        return spaces.MultiBinary(int(rng.integers(1, 4)))
    parts = [random_space(rng, depth - 1) for _ in range(int(rng.integers(1, 4)))]
    if kind == 4:
        return spaces.Tuple(parts)
    return spaces.Dict({f"part {index}": part for index, part in enumerate(parts)})


def random_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    space = spaces.Tuple([random_space(rng, 2), spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3)])
    options: list[dict[str, Any]] = [
        {"log_std_init": -0.3},
        {"distribution": "squashed", "log_std_init": -0.2},
        {"distribution": "beta"},
        {"state_dependent_std": True},
    ]
    error = TRIGAMMA_ERROR if seed % 4 == 2 else 0.0
    return Case(f"tree {seed}", space, options[seed % 4], masked=seed % 3 > 0, torch_error=error)


@every_backend
@pytest.mark.parametrize("seed", range(TREES))
def test_a_tree_of_parts_equals_the_dense_oracle(backend: Backend, seed: int) -> None:
    """Products, gradient and a candidate's loss and KL, with masks and weights; in both dtypes."""
    case = random_case(seed)
    for dtype, bound in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        policy, exact, data = pair(case, dtype, weighted=seed % 2 > 0, seed=seed)
        own = {k: v.to(dtype) if v.is_floating_point() else v for k, v in data.items()}
        problem = backend.build(policy, own, Options())
        F = dense_fisher(exact, data)
        generator = torch.Generator().manual_seed(seed)
        v = torch.randn(len(F), generator=generator, dtype=torch.float64)
        of_product = max(bound, case.torch_error) if backend.by_torch else bound
        assert_close(problem.fisher_product(v.to(dtype)), F @ v, of_product)
        old = old_distribution(exact, data)
        loss, kl = loss_and_kl(exact, data, old)
        slopes = torch.autograd.grad(loss, list(exact.parameters()))
        loss_at, g = problem.surrogate_gradient()
        assert loss_at == pytest.approx(float(loss.detach()), rel=bound, abs=bound)
        assert_close(-g, torch.cat([slope.flatten() for slope in slopes]), 20 * bound)
        assert float(kl.detach()) == pytest.approx(0, abs=1e-12)
        step = 0.02 * torch.randn(len(F), generator=generator, dtype=torch.float64)
        theta = torch.cat([p.detach().flatten() for p in exact.parameters()])
        moved = (theta + step).to(dtype)
        found = problem.evaluate(moved)
        torch.nn.utils.vector_to_parameters(moved.double(), exact.parameters())
        wanted = [float(t.detach()) for t in loss_and_kl(exact, data, old)]
        assert found == pytest.approx(wanted, rel=20 * bound, abs=bound)


class Split(nn.Module):
    """A user's perceptron that splits its outputs among parts, as the fused path knows it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 13))
        self.log_std = nn.Parameter(torch.full((2,), -0.4))

    def forward(self, obs: Tensor) -> JointDistribution:
        mean, logits, bits, other, spread = self.body(obs).split([2, 3, 2, 3, 3], dim=1)
        return JointDistribution(
            (
                Independent(Normal(mean, self.log_std.exp()), 1),
                {"a": Categorical(logits=logits), "b": Independent(Bernoulli(logits=bits), 1)},
                Independent(Normal(other, spread.exp()), 1),
            )
        )


class Hidden(nn.Module):
    """The same behind what the recogniser does not follow."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, obs: Tensor) -> JointDistribution:
        found: JointDistribution = self.inner(obs.neg().neg())
        return found


def test_a_users_split_perceptron_is_recognised() -> None:
    torch.manual_seed(3)
    module, obs = Split(), torch.randn(50, 5)
    distribution = module(obs)
    actions, advantages = distribution.sample(), torch.randn(50)
    start = {name: t.clone() for name, t in module.state_dict().items()}
    ends = []
    for policy in (module, Hidden(module)):
        module.load_state_dict(start)
        opt = TRPOOptimizer(policy, cg_iters=30, cg_tol=1e-8)
        opt.step(obs=obs, actions=actions, advantages=advantages)
        assert opt.path == ("fused" if policy is module else "generic"), opt.path_reason
        ends.append(torch.nn.utils.parameters_to_vector(module.parameters()).detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=2e-4)
    moved = ends[0] - torch.cat([start[name].flatten() for name, _ in module.named_parameters()])
    assert float(moved.norm()) > 0.05


class AnyParts(nn.Module):
    """A user's module whose parts no head of ours has, beside some that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        self.outs = nn.ModuleList(nn.Linear(6, n) for n in (2, 2, 3, 4))
        self.log_std = nn.Parameter(torch.full((2,), -0.4))

    def raw(self, obs: Tensor) -> list[Tensor]:
        hidden = self.trunk(obs)
        return [out(hidden) for out in self.outs]

    def forward(self, obs: Tensor) -> JointDistribution:
        mean, spread, logits, shapes = self.raw(obs)
        squashed = TransformedDistribution(
            Independent(Normal(mean, self.log_std.exp()), 1), [TanhTransform(cache_size=1)]
        )
        alpha, beta = (1 + shapes.exp()).chunk(2, dim=-1)
        return JointDistribution(
            {
                "arm": (squashed, Independent(Normal(mean, spread.exp()), 1)),
                "tool": Categorical(logits=logits),
                "valve": Independent(Beta(alpha, beta), 1),
            }
        )


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_a_joint_of_any_module_has_the_sum_of_its_parts_fisher(weighted: bool) -> None:
    torch.manual_seed(0)
    module, obs = AnyParts().double(), torch.randn(30, 5, dtype=torch.float64)
    weights = torch.rand(30, dtype=torch.float64) if weighted else None
    w = torch.ones(30).double() if weights is None else weights
    kept = detached(module(obs))
    parameters = [p for _, p in module.named_parameters()]
    kl = (w / w.sum()) @ torch.distributions.kl_divergence(kept, module(obs))
    slopes = torch.autograd.grad(kl, parameters, create_graph=True)
    flat = torch.cat([s.flatten() for s in slopes])
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(s, parameters, retain_graph=True)])
        for s in flat
    ]
    F = torch.stack(rows)
    v = torch.randn(len(F), dtype=torch.float64)
    found = fisher_vector_product(module, obs, v, weights=weights)
    assert_close(found, F @ v, 1e-10)


def test_a_step_of_any_module_takes_nested_and_flat_actions_alike() -> None:
    torch.manual_seed(1)
    module, obs = AnyParts(), torch.randn(40, 5)
    start = {name: t.clone() for name, t in module.state_dict().items()}
    distribution = module(obs)
    actions, ends = distribution.sample(), []
    advantages = torch.randn(40)
    for given in (actions, distribution.flatten(actions)):
        module.load_state_dict(start)
        opt = TRPOOptimizer(module)
        opt.step(obs=obs, actions=given, advantages=advantages)
        assert opt.path == "generic"
        assert opt.last_result is not None
        assert opt.last_result.accepted
        assert 0 < opt.last_result.kl <= 0.01
        ends.append(torch.nn.utils.parameters_to_vector(module.parameters()).detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize("generic", [False, True], ids=["fused", "generic"])
@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            lambda a: {"arm": a["arm"]},
            ValueError,
            r"action is expected to be a dict of \['arm', 't",
        ),
        (lambda a: {**a, "arm": a["arm"][:1]}, ValueError, r"action\['arm'\] .* 2 parts, got 1"),
        (
            lambda a: {**a, "arm": 3 * (a["arm"][0],)},
            ValueError,
            r"action\['arm'\] .*2 parts, got 3",
        ),
        (
            lambda a: {**a, "arm": (a["arm"][0], a["arm"][0][:, :1])},
            ValueError,
            r"action\['arm'\]\[1\] has shape \(40, 1\)",
        ),
        (lambda a: {**a, "tool": a["tool"] + 9}, IndexError, r"action\['tool'\].* expected 0 to 2"),
        (lambda a: {**a, "tool": a["tool"] + 0.5}, ValueError, r"action\['tool'\].* whole numbers"),
        (
            lambda a: {**a, "arm": (a["arm"][0], a["arm"][1] / 0)},
            ValueError,
            r"actions\['arm'\]\[1\]\[0, 0\] is",
        ),
        (lambda a: a["tool"], ValueError, r"shape \(40,\), expected"),
    ],
)
def test_bad_actions_are_named_by_path_and_move_nothing(
    generic: bool, change: Any, error: type[Exception], text: str
) -> None:
    torch.manual_seed(2)
    space = spaces.Dict(
        {
            "arm": spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,))]),
            "tool": spaces.Discrete(3),
            "valve": spaces.Box(0, 1, (2,)),
        }
    )
    module = AnyParts() if generic else MlpPolicy(spaces.Box(-1, 1, (5,)), space)
    obs = torch.randn(40, 5)
    actions = module(obs).sample()
    before = [p.detach().clone() for p in module.parameters()]
    opt = TRPOOptimizer(module)
    with pytest.raises(error, match=text):
        opt.step(obs=obs, actions=change(actions), advantages=torch.randn(40))
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
