"""Damping by the Fisher matrix's curvature along the gradient, against the dense matrix."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from parity_cases import Backend, every_backend, generic
from update_cases import (
    BY_NAME,
    CASES,
    Case,
    Wrapped,
    bits,
    dense_fisher,
    flat_of,
    loss_and_kl,
    make_data,
    make_policy,
    old_distribution,
    recognised,
    same_bits,
)

from trpo_fast import MlpPolicy, TRPOOptimizer
from trpo_fast.backends.generic.problem import GenericProblem
from trpo_fast.preconditioning.curvature import Curvature, precondition
from trpo_fast.update.damping import LEAST, absolute, curvature_along
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


def dense_curvature(policy: MlpPolicy, data: dict[str, Any]) -> float:
    """``g'Fg / g'g`` by autograd and the float64 oracle."""
    surrogate = -loss_and_kl(policy, data, old_distribution(policy, data))[0]
    parts = torch.autograd.grad(surrogate, list(policy.parameters()), allow_unused=True)
    pairs = zip(parts, policy.parameters(), strict=True)
    g = torch.cat([torch.zeros_like(p).flatten() if d is None else d.flatten() for d, p in pairs])
    return float(g @ dense_fisher(policy, data) @ g / (g @ g))


@every_backend
@every_case
@pytest.mark.parametrize("weighted", [False, True])
def test_the_unit_is_the_dense_matrix_along_the_gradient(
    backend: Backend, case: Case, weighted: bool
) -> None:
    policy = make_policy(case)
    data = make_data(policy, case, rows=60, weighted=weighted)
    problem = backend.build(policy, data, Options())
    found = curvature_along(problem.surrogate_gradient()[1], problem.fisher_product)
    assert found == pytest.approx(dense_curvature(policy, data), rel=1e-8)


@every_backend
@pytest.mark.parametrize("preconditioner", ["none", "diagonal", "kfac"])
def test_the_update_gets_so_many_of_it(backend: Backend, preconditioner: str) -> None:
    """Fused problems before their update, which natively knows of absolute damping alone."""
    if backend.build is generic:
        pytest.skip("it is made absolute within the update; the steps are compared below")
    case = BY_NAME["gaussian"]
    policy = make_policy(case)
    data = make_data(policy, case, rows=60)
    options = Options(damping=0.25, relative_damping=True, preconditioner=preconditioner)
    _, used = problem_and_options(backend, policy, data, options)
    assert used.damping == pytest.approx(0.25 * dense_curvature(policy, data), rel=1e-8)
    assert not used.relative_damping


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_gradients_scale_does_not_count(scale: float) -> None:
    F = torch.diag(torch.tensor([1.0, 2.0, 5.0]))
    g = torch.tensor([1.0, 1.0, 0.0]) * scale
    assert curvature_along(g, F.mv) == pytest.approx(1.5)


@pytest.mark.parametrize("g", [[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_a_gradient_without_direction_has_none(g: list[float]) -> None:
    assert math.isnan(curvature_along(torch.tensor(g), lambda v: v))


@every_backend
def test_frozen_parameters_do_not_count(backend: Backend) -> None:
    """Neither in g nor in F: the dense matrix without their rows and columns."""
    case = BY_NAME["gaussian"]
    policy = make_policy(case)
    data = make_data(policy, case, rows=60)
    whole = list(policy.parameters())
    F = dense_fisher(policy, data)
    policy.body[0].weight.requires_grad_(False)
    policy.log_std.requires_grad_(False)
    kept = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in whole])
    problem = backend.build(policy, data, Options())
    g = problem.surrogate_gradient()[1].cpu()
    assert len(g) == int(kept.sum()) < len(F)
    exact = float(g @ F[kept][:, kept] @ g / (g @ g))
    unit = curvature_along(problem.surrogate_gradient()[1], problem.fisher_product)
    assert unit == pytest.approx(exact, rel=1e-8)


@every_backend
def test_the_gradient_that_an_update_has_scaled_is_not_taken_again(backend: Backend) -> None:
    """``lr=0`` leaves the parameters, so that the second update is the first again."""
    case = BY_NAME["gaussian"]
    policy = make_policy(case)
    data = make_data(policy, case, rows=60)
    problem = backend.build(policy, data, Options())
    norm = float(problem.surrogate_gradient()[1].norm())
    options = Options(lr=0.0)
    found = [update(problem, options).gradient_norm for _ in range(2)]
    assert found == pytest.approx([norm, norm], rel=1e-12)


def test_parameters_of_which_the_rows_say_nothing_do_not_count() -> None:
    """Where a mean over all of the diagonal would fall with each."""
    F, g = torch.diag(torch.tensor([4.0, 2.0])), torch.tensor([1.0, 1.0])
    wide = torch.zeros(100, 100)
    wide[:2, :2] = F
    longer = torch.cat([g, torch.zeros(98)])
    assert curvature_along(longer, wide.mv) == pytest.approx(curvature_along(g, F.mv))


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
        given = options
        if not relative:
            problem = backend.build(policy, data, options)
            unit = curvature_along(problem.surrogate_gradient()[1], problem.fisher_product)
            given = replace(options, relative_damping=False, damping=0.5 * unit)
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
    """As the absolute one that it comes to, and the option in the group stays."""
    case, steps = BY_NAME["gaussian"], []
    for relative in (True, False):
        policy = make_policy(case)
        data = make_data(policy, case, rows=100)
        module = policy if form == "fused" else Wrapped(policy)
        damping = 0.5 if relative else 0.5 * dense_curvature(policy, data)
        opt = TRPOOptimizer(module, damping=damping, relative_damping=relative)
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
        steps.append(flat_of(policy).start.clone())
        assert opt.param_groups[0]["damping"] == damping
    start = flat_of(make_policy(case)).start
    assert (steps[0] - start).norm() > 0
    assert (steps[0] - steps[1]).norm() < 1e-6 * (steps[0] - start).norm()


def test_what_is_no_number_leaves_the_damping_as_it_is() -> None:
    options = Options(damping=0.3, relative_damping=True)
    for unit in (float("nan"), float("inf"), -1.0):
        assert absolute(options, unit) == Options(damping=0.3)


def test_there_is_a_least_damping_but_where_none_is_asked_for() -> None:
    for unit in (0.0, 1e-9, LEAST):
        assert absolute(Options(damping=0.3, relative_damping=True), unit).damping == LEAST
    assert absolute(Options(damping=0.0, relative_damping=True), 0.0).damping == 0.0


def test_a_policy_that_hardly_chooses_is_still_stepped() -> None:
    """Its curvature is that of probabilities of exp(-20), which float32 cannot solve for."""
    policy = make_policy(BY_NAME["categorical"], hidden=(64, 64), dtype=torch.float32)
    with torch.no_grad():
        policy.body[-1].bias[0] = 20.0
    data = make_data(policy, BY_NAME["categorical"], rows=2048)
    optimizer = TRPOOptimizer(policy, damping=0.01, relative_damping=True)
    optimizer.step(**data)
    assert optimizer.last_result is not None
    assert optimizer.last_result.accepted
