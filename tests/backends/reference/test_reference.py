"""The reference backend by itself: what the shared parity cases do not see."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import torch
from update_cases import (
    BY_NAME,
    CASES,
    Case,
    dense_fisher,
    flat_of,
    make_data,
    make_policy,
    recognised,
)

from trpo_fast.backends.reference import problem as reference
from trpo_fast.backends.reference.problem import ReferenceProblem
from trpo_fast.update.options import Options

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def problem_of(case: Case, rows: int = 40, **options: float) -> ReferenceProblem:
    policy = make_policy(case)
    network, batch = recognised(policy, make_data(policy, case, rows))
    return ReferenceProblem(network, flat_of(policy), batch, Options(**options))  # type: ignore[arg-type]


def test_it_imports_no_native_code() -> None:
    tree = ast.parse(Path(reference.__file__).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert imported
    assert not [name for name in imported if "_core" in name or "_native" in name or "cpu" in name]


@every_case
def test_no_parameter_is_ever_written(case: Case) -> None:
    problem = problem_of(case)
    versions = [t._version for t in problem.parameters.tensors]
    theta = problem.parameters.read()
    _, g = problem.surrogate_gradient()
    problem.solve(g, Options())
    problem.evaluate(theta + 0.1)
    assert [t._version for t in problem.parameters.tensors] == versions


@every_case
def test_the_product_is_symmetric_and_positive(case: Case) -> None:
    problem = problem_of(case)
    size = sum(problem.parameters.sizes)
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, size, generator=generator, dtype=torch.float64)
    Fu, Fv = problem.fisher_product(u), problem.fisher_product(v)
    assert float(u @ Fv) == pytest.approx(float(v @ Fu), rel=1e-10)
    assert float(v @ Fv) > 0


@every_case
def test_the_quadratic_model_predicts_kl_and_loss_of_a_small_step(case: Case) -> None:
    problem = problem_of(case)
    loss, g = problem.surrogate_gradient()
    theta = problem.parameters.read()
    step = 1e-4 * g / g.norm()
    candidate_loss, kl = problem.evaluate(theta + step)
    model = 0.5 * float(step @ problem.fisher_product(step))
    assert kl == pytest.approx(model, rel=1e-2)
    assert loss - candidate_loss == pytest.approx(float(g @ step), rel=1e-2)


@every_case
def test_kl_of_a_tiny_float32_step_is_not_lost_in_rounding(case: Case) -> None:
    policy = make_policy(case, dtype=torch.float32)
    data = make_data(policy, case)
    network, batch = recognised(policy, data)
    problem = ReferenceProblem(network, flat_of(policy), batch, Options())
    _, g = problem.surrogate_gradient()
    theta = problem.parameters.read()
    candidate = theta + 3e-4 * g / g.norm()
    step = candidate.double() - theta.double()
    _, kl = problem.evaluate(candidate)
    F = dense_fisher(
        policy.double(), {k: v.double() if v.is_floating_point() else v for k, v in data.items()}
    )
    # About 1e-8: the terms themselves carry 1e-7 in float32.
    assert kl == pytest.approx(0.5 * float(step @ F @ step), rel=2e-2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e300])
@every_case
def test_candidates_that_overflow_are_not_finite_or_far(case: Case, bad: float) -> None:
    problem = problem_of(case)
    problem.surrogate_gradient()
    theta = problem.parameters.read()
    loss, kl = problem.evaluate(torch.full_like(theta, bad))
    assert not (math.isfinite(loss) and kl <= 0.01)


@pytest.mark.parametrize("name", ["categorical", "multi_categorical", "categorical_masked"])
def test_the_kl_of_huge_logits_is_not_negative(name: str) -> None:
    problem = problem_of(BY_NAME[name])
    problem.surrogate_gradient()
    theta = problem.parameters.read()
    for scale in (1e4, 1e8, 1e12, 1e17):
        _, kl = problem.evaluate(theta * scale)
        assert kl > 0 or math.isnan(kl)


def test_without_actions_only_products_are_served() -> None:
    from trpo_fast.optimizer.batch_reader import BatchReader, fused_batch

    case = BY_NAME["gaussian"]
    policy = make_policy(case)
    obs = torch.randn(9, policy.obs_width, dtype=torch.float64)
    network, _ = recognised(policy, make_data(policy, case))
    batch = BatchReader(obs, None, dtype=torch.float64, device=obs.device).inputs()
    batch = fused_batch(batch, network.head, policy.obs_width, torch.float64)
    problem = ReferenceProblem(network, flat_of(policy), batch, Options())
    v = torch.ones(sum(problem.parameters.sizes), dtype=torch.float64)
    assert torch.isfinite(problem.fisher_product(v)).all()


def test_the_log_std_block_needs_no_data() -> None:
    problem = problem_of(BY_NAME["gaussian"], rows=1)
    v = torch.zeros(sum(problem.parameters.sizes), dtype=torch.float64)
    v[:3] = torch.tensor([1.0, -2.0, 3.0])
    product = problem.fisher_product(v)
    assert product[:3].tolist() == [2.0, -4.0, 6.0]
    assert not product[3:].any()
