"""What the CUDA backend's tensor cores round, in tiles and in panels alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_cases import BOUNDS, every_precision, products
from cuda_device import needs_device, on_device
from emulated_cuda import EmulatedProblem, EmulatedTiles, needs_emulation
from precision_cases import assert_only_products_are_rounded
from update_cases import (
    BY_NAME,
    CASES,
    Case,
    flat_of,
    make_data,
    make_policy,
    recognised,
    relative,
)

from trpo_fast.backends.reference.problem import ReferenceProblem
from trpo_fast.update.options import Options

every_plan = pytest.mark.parametrize(
    "problem_class", [EmulatedTiles, EmulatedProblem], ids=["tiles", "panels"]
)


@needs_emulation
@every_plan
@every_precision
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_the_error_of_a_product_is_bounded(
    problem_class: Any, precision: str, case: Case, weighted: bool
) -> None:
    problem, v, expected = products(problem_class, case, precision, weighted=weighted)
    assert problem.in_tiles == (problem_class is EmulatedTiles)
    error = relative(problem.fisher_product(v), expected)
    assert BOUNDS[precision] / 1000 < error < BOUNDS[precision]


@needs_emulation
@every_plan
@every_precision
def test_gradient_and_candidates_are_not_rounded(problem_class: Any, precision: str) -> None:
    plain, rounded = (
        products(problem_class, BY_NAME["gaussian"], choice)[0] for choice in ("fp32", precision)
    )
    for problem in (plain, rounded):
        assert problem.in_tiles == (problem_class is EmulatedTiles)
    assert_only_products_are_rounded(plain, rounded)


@needs_device
@pytest.mark.parametrize("precision", ["fp32", *BOUNDS])
@pytest.mark.parametrize("hidden", [(300, 270), (64, 64)], ids=["tiles", "panels"])
def test_a_product_on_the_device(precision: str, hidden: tuple[int, ...]) -> None:
    case = BY_NAME["gaussian"]
    policy = make_policy(case, hidden, dtype=torch.float32)
    exact = make_policy(case, hidden)
    exact.load_state_dict(policy.state_dict())
    data = make_data(policy, case, 1000)
    if precision != "fp32" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("the device's tensor cores multiply neither TF32 nor bfloat16")
    problem = on_device(policy, data, Options(precision=precision))
    network, batch = recognised(exact, make_data(exact, case, 1000))
    oracle = ReferenceProblem(network, flat_of(exact), batch, Options())
    v = torch.randn(sum(problem.parameters.sizes), generator=torch.Generator().manual_seed(1))
    error = relative(problem.fisher_product(v), oracle.fisher_product(v.double()))
    assert error < BOUNDS.get(precision, 2e-5)
