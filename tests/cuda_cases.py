"""Updates and products of the CUDA backend's emulated kernels, beside the reference backend's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from emulated_cuda import EmulatedProblem, emulated
from precision_cases import BOUNDS as CPU_BOUNDS
from update_cases import BY_NAME, Case, flat_of, make_data, make_policy, recognised

from trpo_fast import MlpPolicy
from trpo_fast.backends.reference.problem import ReferenceProblem
from trpo_fast.update.options import Options
from trpo_fast.update.result import TrustRegionResult
from trpo_fast.update.trust_region import update

# Largest relative error (2-norm) of F v: an operand moves by at most 2^-11, 2^-8 or 2^-17 of
# itself.
BOUNDS = CPU_BOUNDS | {"tf32": 2**-10}
every_precision = pytest.mark.parametrize("precision", BOUNDS)


def run(
    problem_class: Any, policy: MlpPolicy, data: dict[str, Any], options: Options, unit: float = 1.0
) -> tuple[TrustRegionResult, torch.Tensor]:
    network, batch = recognised(policy, data)
    flat = flat_of(policy)
    result = update(problem_class(network, flat, batch, options), options, unit=unit)
    return result, flat.read()


def assert_same_update(
    case: Case, options: Options, hidden: tuple[int, ...] = (7, 6), **keywords: Any
) -> TrustRegionResult:
    """An emulated update in float64 equals the reference's; returns its result."""
    rows, weighted = keywords.pop("rows", 40), keywords.pop("weighted", False)
    problem_class = keywords.pop("problem_class", EmulatedProblem)
    first, second = (make_policy(case, hidden, **keywords) for _ in range(2))
    data = make_data(first, case, rows, weighted=weighted)
    found, theta = run(problem_class, first, data, options)
    expected, theta_expected = run(ReferenceProblem, second, data, options)
    assert found.status is expected.status
    assert found.backtracks == expected.backtracks
    assert found.cg_iters == expected.cg_iters
    torch.testing.assert_close(theta, theta_expected, rtol=1e-7, atol=1e-9)
    for name in ("kl", "loss_before", "loss_after", "step_size", "gradient_norm", "cg_residual"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6, abs=1e-12)
    assert found.expected_improvement == pytest.approx(expected.expected_improvement, rel=1e-6)
    return found


def products(
    problem_class: Any,
    case: Case,
    precision: str,
    hidden: tuple[int, ...] = (24, 33),
    **keywords: Any,
) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A problem in float32, a vector, and its product with the Fisher matrix in float64."""
    weighted, rows = keywords.pop("weighted", False), keywords.pop("rows", 150)
    policy = make_policy(case, hidden, dtype=torch.float32, **keywords)
    exact = make_policy(case, hidden, **keywords)
    exact.load_state_dict(policy.state_dict())
    data = make_data(policy, case, rows, weighted=weighted)
    network, batch = recognised(policy, data)
    problem = problem_class(network, flat_of(policy), batch, Options(precision=precision))
    double_network, double_batch = recognised(
        exact, make_data(exact, case, rows, weighted=weighted)
    )
    oracle = ReferenceProblem(double_network, flat_of(exact), double_batch, Options())
    v = torch.randn(sum(problem.parameters.sizes), generator=torch.Generator().manual_seed(1))
    return problem, v, oracle.fisher_product(v.double())


def assert_same_bits_in_every_order(
    problem_class: Any, hidden: tuple[int, ...], rows: int, options: Options
) -> None:
    """An update has the same bits whatever the order in which threads have their turns."""
    case = BY_NAME["gaussian"]
    found = []
    for order in (0, 1, 2, 3):  # as they come, reversed, shuffled, shuffled
        emulated.set_order(order)
        policy = make_policy(case, hidden, dtype=torch.float32)
        result, theta = run(problem_class, policy, make_data(policy, case, rows), options)
        found.append((result, theta.numpy().tobytes()))
    assert found[0][0].accepted
    assert all(item == found[0] for item in found)
