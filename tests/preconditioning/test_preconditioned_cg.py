"""Preconditioned conjugate gradients by themselves, on small systems."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from trpo_fast.update.conjugate_gradient import conjugate_gradient
from trpo_fast.update.result import Status


class TestConjugateGradient:
    """The solver alone, on small matrices."""

    def test_with_the_inverse_itself_one_iteration_is_enough(self) -> None:
        A = torch.diag(torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.float64))
        g = torch.ones(4, dtype=torch.float64)
        found = conjugate_gradient(
            lambda v: A @ v,
            g,
            damping=0.0,
            iters=10,
            tol=1e-10,
            precondition=lambda r: r / A.diagonal(),
        )
        assert found.cg_iters == 1
        assert torch.allclose(found.x, g / A.diagonal())

    @pytest.mark.parametrize("sign", [-1.0, 0.0, float("nan")])
    def test_a_preconditioner_that_is_not_positive_breaks_down(self, sign: float) -> None:
        g = torch.ones(3)
        found = conjugate_gradient(
            lambda v: v, g, damping=0.1, iters=5, tol=0.0, precondition=lambda r: sign * r
        )
        assert found.status is Status.breakdown
        assert found.cg_iters == 0
        assert not found.x.any()

    def test_progress_stops_where_an_iteration_gains_little(self) -> None:
        torch.manual_seed(0)
        A = torch.diag(torch.logspace(0, 4, 40, dtype=torch.float64))
        g = torch.randn(40, dtype=torch.float64)

        def run(iters: int, progress_tol: float) -> Any:
            return conjugate_gradient(
                lambda v: A @ v, g, damping=0.0, iters=iters, tol=0.0, progress_tol=progress_tol
            )

        full = run(30, 0.0)
        assert full.cg_iters == 30
        stopped = run(30, 0.05)
        assert 1 < stopped.cg_iters < 30
        # 2 (q(0) - q(x)) = g.x at every iterate of conjugate gradients
        falls = [float(g @ run(k, 0.0).x) for k in range(stopped.cg_iters + 1)]
        shares = [(b - a) / b for a, b in itertools.pairwise(falls)]
        assert shares[-1] < 0.05
        assert all(share >= 0.05 for share in shares[:-1])
        assert torch.equal(stopped.x, run(stopped.cg_iters, 0.0).x)
