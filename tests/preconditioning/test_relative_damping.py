"""Damping in units of the Fisher matrix's mean diagonal, against the dense matrix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from parity_cases import Backend, every_backend, generic
from torch import Tensor
from update_cases import (
    BY_NAME,
    CASES,
    Case,
    Wrapped,
    bits,
    dense_fisher,
    flat_of,
    make_data,
    make_policy,
    recognised,
    same_bits,
)

from trpo_fast import MlpPolicy, TRPOOptimizer
from trpo_fast.backends.generic.problem import GenericProblem
from trpo_fast.preconditioning.curvature import Curvature, mean_diagonal, precondition
from trpo_fast.update.damping import PROBES, absolute, probe_signs, probed_mean_diagonal
from trpo_fast.update.options import Options
from trpo_fast.update.trust_region import Problem, update

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def problem_and_options(
    backend: Backend, policy: MlpPolicy, data: dict[str, Any], options: Options
) -> tuple[Problem, Options]:
    """As ``problem_of`` makes them, on a backend that is named."""
    problem = backend.build(policy, data, options)
    if isinstance(problem, GenericProblem):
        return problem, options
    network, batch = recognised(policy, data)
    return problem, precondition(problem, Curvature(), network, batch, options)


def dense_mean(policy: MlpPolicy, data: dict[str, Any]) -> float:
    F = dense_fisher(policy, data)
    return float(F.trace()) / len(F)


@every_backend
@pytest.mark.parametrize("weighted", [False, True])
def test_the_mean_is_exact_where_kronecker_factors_are(backend: Backend, weighted: bool) -> None:
    """One layer under a Gaussian: G is constant over the rows, and so independent of A."""
    case = BY_NAME["gaussian"]
    policy = make_policy(case, hidden=())
    data = make_data(policy, case, rows=60, weighted=weighted)
    if backend.build is generic:
        pytest.skip("it has no factors; its probes have their own test")
    options = Options(damping=0.25, relative_damping=True, preconditioner="none")
    _, used = problem_and_options(backend, policy, data, options)
    assert used.damping == pytest.approx(0.25 * dense_mean(policy, data), rel=1e-9)
    assert not used.relative_damping


@every_case
def test_the_mean_is_near_elsewhere(case: Case) -> None:
    """By one draw of signs over 512 rows, and as if inputs and gradients were independent."""
    policy = make_policy(case)
    data = make_data(policy, case, rows=512)
    network, batch = recognised(policy, data)
    problem = GenericProblem(flat_of(policy), Options())  # only its parameters are asked for
    factors = Curvature().factors(network, problem, batch)
    assert factors is not None
    found = mean_diagonal(network, problem.parameters, factors)
    assert found == pytest.approx(dense_mean(policy, data), rel=0.25)


def test_frozen_parameters_do_not_count() -> None:
    case = BY_NAME["gaussian"]
    policy = make_policy(case, hidden=())
    policy.body[-1].weight.requires_grad_(False)
    policy.log_std.requires_grad_(False)
    data = make_data(policy, case, rows=30)
    network, batch = recognised(policy, data)
    problem = GenericProblem(flat_of(policy), Options())
    factors = Curvature().factors(network, problem, batch)
    assert factors is not None
    variance = torch.exp(2 * policy.log_std.detach().double())
    expected = float((1 / variance).mean())  # each bias has the mean's own curvature
    assert mean_diagonal(network, problem.parameters, factors) == pytest.approx(expected)


@every_case
def test_the_probes_are_those_of_the_dense_matrix(case: Case) -> None:
    policy = make_policy(case)
    data = make_data(policy, case, rows=40)
    F = dense_fisher(policy, data)
    signs = probe_signs(len(F)).double()
    assert signs.shape == (PROBES, len(F))
    assert torch.equal(signs.abs(), torch.ones_like(signs))
    expected = float(torch.einsum("kp,pq,kq->", signs, F, signs)) / PROBES / len(F)
    problem = generic(policy, data, Options())
    g = problem.surrogate_gradient()[1]
    assert probed_mean_diagonal(problem.fisher_product, g) == pytest.approx(expected, rel=1e-9)


def test_probes_are_right_in_the_mean() -> None:
    """Over as many as make one another's errors small: 4 x 500, so 1/22 of one set's."""
    A = torch.randn(30, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    F = A @ A.T
    found = []
    for shift in range(500):
        turn = torch.randperm(30, generator=torch.Generator().manual_seed(shift))
        flip = torch.randint(0, 2, (30,), generator=torch.Generator().manual_seed(-shift - 1))
        flip = 2.0 * flip.double() - 1

        def product(v: Tensor, turn: Tensor = turn, flip: Tensor = flip) -> Tensor:
            w = torch.empty_like(v)
            w[turn] = v * flip
            return (F @ w)[turn] * flip

        found.append(probed_mean_diagonal(product, F[0]))
    assert sum(found) / len(found) == pytest.approx(float(F.diagonal().mean()), rel=0.05)


@every_backend
@pytest.mark.parametrize("step_size", ["boundary", "damped"])
@pytest.mark.parametrize("preconditioner", ["none", "kfac"])
def test_the_step_is_that_of_the_absolute_damping(
    backend: Backend, step_size: str, preconditioner: str
) -> None:
    case = BY_NAME["gaussian"]
    if backend.build is generic and preconditioner == "kfac":
        pytest.skip("the generic path has no layers to look at")
    options = Options(
        damping=0.5, relative_damping=True, step_size=step_size, preconditioner=preconditioner
    )
    ends = []
    for relative in (True, False):
        policy = make_policy(case)
        data = make_data(policy, case, rows=100)
        if relative:
            problem, given = problem_and_options(backend, policy, data, options)
        else:
            problem, _ = problem_and_options(backend, policy, data, options)
            g = problem.surrogate_gradient()[1]
            if isinstance(problem, GenericProblem):
                given = absolute(options, probed_mean_diagonal(problem.fisher_product, g))
            else:
                network, batch = recognised(policy, data)
                factors = Curvature().factors(network, problem, batch)
                assert factors is not None
                mean = mean_diagonal(network, problem.parameters, factors)
                given = replace(options, relative_damping=False, damping=0.5 * mean)
            problem, given = problem_and_options(backend, policy, data, given)
        result = update(problem, given)
        assert result.accepted
        ends.append(bits(policy))
        assert not same_bits(make_policy(case), ends[-1])
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")
@pytest.mark.parametrize("form", ["fused", "generic", "closure"])
def test_every_form_of_step_takes_it(form: str) -> None:
    """It changes the step, and not the option in the group."""
    case, steps = BY_NAME["gaussian"], []
    for option in (True, False):
        policy = make_policy(case)
        data = make_data(policy, case, rows=100)
        module = policy if form == "fused" else Wrapped(policy)
        opt = TRPOOptimizer(module, damping=50.0, relative_damping=option)
        if form == "closure":

            def closure(module: Any = module, data: dict[str, Any] = data) -> Any:
                distribution = module(data["obs"])
                ratio = torch.exp(distribution.log_prob(data["actions"]) - data["old_log_prob"])
                return -(ratio * data["advantages"]).mean(), distribution

            opt.step(closure)
        else:
            opt.step(**data)
        assert opt.last_result is not None
        assert opt.last_result.accepted
        steps.append(bits(policy))
        assert opt.param_groups[0]["damping"] == 50.0
    assert any(not torch.equal(a, b) for a, b in zip(*steps, strict=True))


def test_what_is_no_number_leaves_the_damping_as_it_is() -> None:
    options = Options(damping=0.3, relative_damping=True)
    for mean in (float("nan"), float("inf"), -1.0):
        assert absolute(options, mean) == Options(damping=0.3)
    assert absolute(options, 0.0).damping == 0.0
