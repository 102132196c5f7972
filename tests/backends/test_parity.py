"""Every backend against a float64 dense oracle: products, gradient, solve, loss and KL."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parity_cases import (
    Backend,
    analytic,
    assert_close,
    every_backend,
    every_case,
    every_dtype,
    generic,
    in_dtype,
    pair,
)
from torch import Tensor
from torch.distributions import kl_divergence
from update_cases import (
    BY_NAME,
    CASES,
    Case,
    dense_fisher,
    flat_of,
    loss_and_kl,
    old_distribution,
    read_batch,
)

from trpo_fast import MlpPolicy
from trpo_fast.backends.generic.modules import module_terms
from trpo_fast.backends.generic.problem import GenericProblem
from trpo_fast.update.options import Options


@every_backend
@every_case
@every_dtype
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_fisher_product_equals_the_dense_fisher(
    backend: Backend, case: Case, dtype: torch.dtype, weighted: bool
) -> None:
    policy, exact, data = pair(case, dtype, weighted=weighted)
    problem = backend.build(policy, in_dtype(data, dtype), Options())
    F = dense_fisher(exact, data)
    for seed in range(3):
        v = torch.randn(len(F), generator=torch.Generator().manual_seed(seed)).to(dtype)
        assert_close(problem.fisher_product(v), F @ v.double(), backend.within(case, dtype))


@every_backend
@every_dtype
@pytest.mark.parametrize(
    ("hidden", "activation", "rows", "obs_width"),
    [
        ((), "tanh", 9, 3),
        ((1,), "relu", 1, 1),
        ((9,), "leaky_relu", 33, 6),
        ((8, 8, 8), "elu", 17, 4),
        ((16, 5), "silu", 64, 7),
        ((5, 16), "gelu", 31, 2),
        ((4, 4), "gelu_tanh", 65, 3),
        ((6,), "softplus", 20, 3),
        ((6, 3), "sigmoid", 20, 3),
        ((6, 3), "identity", 20, 3),
    ],
)
@pytest.mark.parametrize("name", ["gaussian", "multi_categorical_masked"])
def test_fisher_product_and_gradient_in_every_shape(
    backend: Backend,
    dtype: torch.dtype,
    hidden: tuple[int, ...],
    activation: str,
    rows: int,
    obs_width: int,
    name: str,
) -> None:
    policy, exact, data = pair(
        BY_NAME[name], dtype, hidden=hidden, activation=activation, rows=rows, obs_width=obs_width
    )
    problem = backend.build(policy, in_dtype(data, dtype), Options())
    loss, g = problem.surrogate_gradient()
    F = dense_fisher(exact, data)
    v = torch.randn(len(F), generator=torch.Generator().manual_seed(5)).to(dtype)
    assert_close(problem.fisher_product(v), F @ v.double(), backend.tolerance[dtype])
    expected, _ = loss_and_kl(exact, data, old_distribution(exact, data))
    assert_close(g, -flat_gradient(expected, exact), backend.tolerance[dtype])
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5, abs=1e-6)


def flat_gradient(value: Tensor, policy: MlpPolicy) -> Tensor:
    slopes = torch.autograd.grad(value, list(policy.parameters()))
    return torch.cat([slope.reshape(-1) for slope in slopes])


@every_backend
@every_case
@every_dtype
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_gradient_equals_autograd_of_the_definition(
    backend: Backend, case: Case, dtype: torch.dtype, weighted: bool
) -> None:
    policy, exact, data = pair(case, dtype, weighted=weighted)
    # A stale behaviour policy: the ratio is not 1, and it enters the gradient.
    noise = torch.randn(len(data["obs"]), generator=torch.Generator().manual_seed(3))
    data["old_log_prob"] = data["old_log_prob"] + 0.2 * noise.double()
    loss, g = backend.build(policy, in_dtype(data, dtype), Options()).surrogate_gradient()
    expected, _ = loss_and_kl(exact, data, old_distribution(exact, data))
    tolerance = backend.tolerance[dtype]
    assert loss == pytest.approx(float(expected.detach()), rel=10 * tolerance, abs=tolerance)
    assert_close(g, -flat_gradient(expected, exact), tolerance)


@every_backend
@every_case
@every_dtype
@pytest.mark.parametrize("direction", ["old_new", "new_old"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_loss_and_kl_of_a_candidate(
    backend: Backend, case: Case, dtype: torch.dtype, direction: str, weighted: bool
) -> None:
    policy, exact, data = pair(case, dtype, weighted=weighted)
    problem = backend.build(policy, in_dtype(data, dtype), Options(kl_direction=direction))
    problem.surrogate_gradient()
    theta = problem.parameters.read()
    step = torch.randn(len(theta), generator=torch.Generator().manual_seed(9)).to(dtype)
    candidate = theta + 0.05 * step
    loss, kl = problem.evaluate(candidate)
    assert torch.equal(problem.parameters.read(), theta)

    old = old_distribution(exact, data)
    flat_of(exact).write(candidate.double())
    expected_loss, expected_kl = loss_and_kl(exact, data, old, direction)
    tolerance = 10 * backend.tolerance[dtype]
    assert loss == pytest.approx(float(expected_loss.detach()), rel=tolerance, abs=tolerance)
    assert kl == pytest.approx(float(expected_kl.detach()), rel=tolerance)


@every_backend
@every_case
@every_dtype
def test_solve_reaches_the_dense_solution(backend: Backend, case: Case, dtype: torch.dtype) -> None:
    policy, exact, data = pair(case, dtype)
    options = Options(cg_iters=300, cg_tol=0.0, damping=0.1)
    problem = backend.build(policy, in_dtype(data, dtype), options)
    _, g = problem.surrogate_gradient()
    g = g / g.norm()
    F = dense_fisher(exact, data)
    A = F + 0.1 * torch.eye(len(F), dtype=torch.float64)
    expected = torch.linalg.solve(A, g.double())
    solution = problem.solve(g, options)
    condition = float(torch.linalg.cond(A))
    rounding = 1e-6 if dtype is torch.float32 else 1e-12
    if backend.by_torch:
        rounding = max(rounding, case.torch_error)
    tolerance = condition * rounding
    assert_close(solution.x, expected, tolerance)
    assert solution.quadratic == pytest.approx(float(expected @ A @ expected), rel=tolerance)


@every_backend
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.73])
def test_fisher_fraction_takes_strided_rows(
    backend: Backend, weighted: bool, fraction: float
) -> None:
    case = BY_NAME["gaussian_state_std"]
    policy, exact, data = pair(case, torch.float64, weighted=weighted)
    problem = backend.build(policy, data, Options(fisher_fraction=fraction))
    problem.surrogate_gradient()
    counted = data["weights"].nonzero().squeeze(1) if weighted else torch.arange(40)
    kept = -(-len(counted) * fraction // 1)
    rows = counted[(torch.arange(int(kept)) * len(counted)) // int(kept)]
    part = {key: value[rows] for key, value in data.items()}
    F = dense_fisher(exact, part)
    v = torch.randn(len(F), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_close(problem.fisher_product(v), F @ v, 1e-10)
    # Twice the same matrix: nothing is drawn anew within a step.
    assert torch.equal(problem.fisher_product(v), problem.fisher_product(v))


@every_backend
@every_case
def test_frozen_tensors_leave_the_rest_of_the_product_alone(backend: Backend, case: Case) -> None:
    policy, exact, data = pair(case, torch.float64)
    frozen = [policy.body[0].weight, policy.body[2].bias]
    for tensor in frozen:
        tensor.requires_grad_(False)
    problem = backend.build(policy, data, Options())
    kept = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in policy.parameters()])
    F = dense_fisher(exact, data)[kept][:, kept]
    v = torch.randn(len(F), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_close(problem.fisher_product(v), F @ v, backend.within(case, torch.float64))
    _, g = problem.surrogate_gradient()
    assert len(g) == len(F)


@every_backend
@every_dtype
def test_transposed_and_sliced_parameters_and_inputs(backend: Backend, dtype: torch.dtype) -> None:
    case = BY_NAME["gaussian"]
    policy, exact, data = pair(case, dtype)
    for layer in (policy.body[0], policy.body[2]):
        layer.weight.data = layer.weight.data.T.contiguous().T
        wide = torch.zeros(2 * len(layer.bias), dtype=dtype)
        wide[::2] = layer.bias.data
        layer.bias.data = wide[::2]
    given = in_dtype(data, dtype)
    given["obs"] = given["obs"].T.contiguous().T
    given["advantages"] = torch.stack([given["advantages"], given["advantages"]], 1)[:, 0]
    problem = backend.build(policy, given, Options())
    F = dense_fisher(exact, data)
    v = torch.randn(len(F), generator=torch.Generator().manual_seed(1)).to(dtype)
    assert_close(problem.fisher_product(v), F @ v.double(), backend.tolerance[dtype])
    expected, _ = loss_and_kl(exact, data, old_distribution(exact, data))
    _, g = problem.surrogate_gradient()
    assert_close(g, -flat_gradient(expected, exact), backend.tolerance[dtype])


@every_backend
def test_float64_products_agree_with_autograd_to_1e_10(backend: Backend) -> None:
    for case in CASES:
        policy, _, data = pair(case, torch.float64)
        problem = backend.build(policy, data, Options())
        v = torch.randn(
            sum(problem.parameters.sizes),
            generator=torch.Generator().manual_seed(2),
            dtype=torch.float64,
        )
        expected = double_backward(policy, data, v)
        assert_close(problem.fisher_product(v), expected, max(1e-10, case.torch_error))


def double_backward(policy: MlpPolicy, data: dict[str, Any], v: Tensor) -> Tensor:
    """Hessian of the mean KL at theta_old times ``v``, by torch.autograd alone."""
    extra = {} if "action_mask" not in data else {"action_mask": data["action_mask"]}
    old = old_distribution(policy, data)
    parameters = list(policy.parameters())
    kl = kl_divergence(old, type_matched(policy(data["obs"], **extra), old)).mean()
    slopes = torch.autograd.grad(kl, parameters, create_graph=True)
    flat = torch.cat([slope.reshape(-1) for slope in slopes])
    products = torch.autograd.grad(flat @ v, parameters)
    return torch.cat([product.reshape(-1) for product in products])


def type_matched(new: Any, old: Any) -> Any:
    from trpo_fast.networks.distributions import in_double

    return new if type(new) is type(old) else in_double(new)


@every_case
def test_the_oracle_equals_finite_differences_of_the_kl_gradient(case: Case) -> None:
    policy, _, data = pair(case, torch.float64)
    old, flat = old_distribution(policy, data), flat_of(policy)
    theta = flat.read()
    F = dense_fisher(policy, data)
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    h = 1e-4 / float(v.norm())
    slopes = []
    for sign in (1, -1):
        flat.write(theta + sign * h * v)
        slopes.append(flat_gradient(loss_and_kl(policy, data, old)[1], policy))
    assert_close((slopes[0] - slopes[1]) / (2 * h), F @ v, 1e-6)


def test_a_large_batch_goes_through_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from trpo_fast.backends.generic import modules
    from trpo_fast.backends.reference import problem as reference

    case = BY_NAME["categorical_masked"]
    policy, _, data = pair(case, torch.float64, rows=50, weighted=True)
    v = torch.randn(
        sum(flat_of(policy).sizes),
        generator=torch.Generator().manual_seed(4),
        dtype=torch.float64,
    )
    for fraction in (1.0, 0.6):
        options = Options(fisher_fraction=fraction)
        for build in (analytic("reference"), generic):
            found = []
            for size in (1 << 16, 7):
                monkeypatch.setattr(reference, "CHUNK_ROWS", size)
                monkeypatch.setattr(modules, "CHUNK_ROWS", size)
                problem = build(policy, data, options)
                loss, g = problem.surrogate_gradient()
                theta = problem.parameters.read() + 0.01 * v
                product, solution = problem.fisher_product(v), problem.solve(g, options)
                figures = torch.tensor([loss, *problem.evaluate(theta)], dtype=torch.float64)
                found.append(torch.cat([g, product, solution.x, figures]))
            assert_close(found[1], found[0], 1e-12)


def test_the_fisher_of_a_squashed_policy_is_that_of_its_tanh_transform() -> None:
    from torch.distributions import TransformedDistribution
    from torch.distributions.transforms import TanhTransform

    class Squashed(torch.nn.Module):
        def __init__(self, inner: MlpPolicy) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, obs: Tensor) -> TransformedDistribution:
            return TransformedDistribution(self.inner(obs), [TanhTransform(cache_size=1)])

    case = BY_NAME["squashed_state_std"]
    policy, exact, data = pair(case, torch.float64)
    data = dict(data, actions=torch.tanh(data["actions"]))
    module = Squashed(policy)
    terms, fisher = module_terms(module, read_batch(policy, data), Options())
    problem = GenericProblem(flat_of(policy), Options(), terms, fisher)
    _, g = problem.surrogate_gradient()
    v = g / g.norm()
    assert_close(problem.fisher_product(v), dense_fisher(exact, data) @ v, 1e-10)
