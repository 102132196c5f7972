"""Conjugate gradients against dense solves, and their guards."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from trpo_fast import Status
from trpo_fast.update.conjugate_gradient import conjugate_gradient

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")


def spd(size: int, condition: float, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    q, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    spectrum = torch.logspace(0, math.log10(condition), size, dtype=torch.float64)
    return (q * spectrum @ q.T).to(dtype)


class TestConjugateGradient:
    def test_reaches_the_dense_solution(self) -> None:
        F, g = spd(30, 50.0), torch.arange(1.0, 31.0, dtype=torch.float64)
        found = conjugate_gradient(lambda v: F @ v, g, damping=0.5, iters=200, tol=0.0)
        A = F + 0.5 * torch.eye(30, dtype=torch.float64)
        expected = torch.linalg.solve(A, g)
        assert torch.allclose(found.x, expected, rtol=1e-9)
        assert found.quadratic == pytest.approx(float(expected @ A @ expected), rel=1e-9)
        assert found.status is None

    @pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-6])
    def test_stops_at_the_relative_residual(self, tol: float) -> None:
        F, g = spd(30, 50.0), torch.ones(30, dtype=torch.float64)
        found = conjugate_gradient(lambda v: F @ v, g, damping=0.1, iters=200, tol=tol)
        true = (g - F @ found.x - 0.1 * found.x).norm() / g.norm()
        assert float(true) <= tol
        assert found.residual == pytest.approx(float(true), rel=1e-5)
        shorter = conjugate_gradient(
            lambda v: F @ v, g, damping=0.1, iters=found.cg_iters - 1, tol=tol
        )
        assert shorter.residual > tol

    def test_pitfall_02_p_and_r_do_not_share_storage(self) -> None:
        # With shared storage the error grows; in the A-norm it must fall at every iteration.
        F, g = spd(12, 100.0), torch.ones(12, dtype=torch.float64)
        expected, errors = torch.linalg.solve(F, g), []
        for iters in range(1, 13):
            x = conjugate_gradient(lambda v: F @ v, g, damping=0.0, iters=iters, tol=0.0).x
            errors.append(float((x - expected) @ F @ (x - expected)))
        assert all(b < a for a, b in itertools.pairwise(errors))
        assert errors[-1] < 1e-12 * errors[0]
        assert torch.equal(g, torch.ones(12, dtype=torch.float64))

    def test_pitfall_16_the_tolerance_is_relative(self) -> None:
        F, g = spd(30, 50.0), torch.ones(30, dtype=torch.float64)
        iters = {
            conjugate_gradient(lambda v: F @ v, s * g, damping=0.1, iters=99, tol=1e-4).cg_iters
            for s in (1e-12, 1.0, 1e12)
        }
        assert len(iters) == 1

    def test_negative_curvature_keeps_the_last_good_iterate(self) -> None:
        A = torch.diag(torch.tensor([4.0, 1.0, -2.0], dtype=torch.float64))
        g = torch.tensor([1.0, 1.0, 0.1], dtype=torch.float64)
        found = conjugate_gradient(lambda v: A @ v, g, damping=0.0, iters=10, tol=0.0)
        assert found.status is Status.negative_curvature
        good = conjugate_gradient(lambda v: A @ v, g, damping=0.0, iters=found.cg_iters, tol=0.0)
        assert torch.equal(found.x, good.x)
        assert found.cg_iters > 0
        assert found.quadratic > 0

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_non_finite_product_keeps_the_last_good_iterate(self, bad: float) -> None:
        F, g, calls = spd(6, 10.0), torch.ones(6, dtype=torch.float64), []

        def product(v: Tensor) -> Tensor:
            calls.append(1)
            return F @ v if len(calls) < 3 else torch.full_like(v, bad)

        found = conjugate_gradient(product, g, damping=0.1, iters=10, tol=0.0)
        assert found.status is Status.non_finite
        assert found.cg_iters == 2
        assert torch.isfinite(found.x).all()

    def test_a_null_direction_without_damping_does_not_divide_by_zero(self) -> None:
        g = torch.ones(4)
        found = conjugate_gradient(torch.zeros_like, g, damping=0.0, iters=10, tol=0.0)
        assert found.status is Status.negative_curvature
        assert torch.equal(found.x, torch.zeros(4))

    def test_a_zero_right_hand_side(self) -> None:
        found = conjugate_gradient(lambda v: v, torch.zeros(4), damping=0.1, iters=10, tol=0.0)
        assert (found.cg_iters, found.residual, found.quadratic) == (0, 0.0, 0.0)

    def test_stops_at_rounding_level(self) -> None:
        F = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
        found = conjugate_gradient(lambda v: F @ v, torch.ones(3), damping=0.0, iters=1000, tol=0.0)
        assert found.cg_iters < 10
        assert torch.allclose(found.x, torch.tensor([1.0, 1 / 2, 1 / 3]))
