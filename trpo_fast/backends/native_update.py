"""The options of a native update, and its figures as a result: the same for CPU and CUDA.

Numbers as csrc/common/trust_region.h gives them.
"""

from __future__ import annotations

from collections.abc import Sequence

from trpo_fast.update.options import Options
from trpo_fast.update.result import Status, TrustRegionResult

# The order of SolveStatus; an interrupt raises instead.
SOLVE_STATUS = (None, Status.negative_curvature, Status.breakdown, Status.non_finite)
# The order of UpdateStatus, of StepSize and of Constraint.
UPDATE_STATUS = tuple(Status)
STEP_SIZE_CODES = {"damped": 0, "boundary": 1}
CONSTRAINT_CODES = {"hard": 0, "penalty": 1, "none": 2}


def solve_options(options: Options, preconditioned: bool) -> dict[str, float]:
    """What steers conjugate gradients."""
    return {
        "damping": options.damping,
        "cg_iters": options.cg_iters,
        "cg_tol": options.cg_tol,
        # That stop is for preconditioned solves.
        "cg_progress_tol": options.cg_progress_tol if preconditioned else 0.0,
    }


def update_options(options: Options, unit: float, preconditioned: bool) -> dict[str, float]:
    """What steers a whole update; ``unit`` is a power of two that every loss is multiplied by."""
    return {
        "step_size": STEP_SIZE_CODES[options.step_size],
        "constraint": CONSTRAINT_CODES[options.constraint],
        "max_kl": options.max_kl,
        "beta": options.beta,
        "lr": float(options.lr),
        "backtrack_coeff": options.backtrack_coeff,
        "accept_ratio": options.accept_ratio,
        "max_backtracks": options.max_backtracks,
        "unit": unit,
        **solve_options(options, preconditioned),
    }


def update_result(figures: Sequence[float], options: Options, backend: str) -> TrustRegionResult:
    """The result that an update's eleven figures tell, in the order of ``Figure``."""
    code, before, after, kl, expected, step, norm, backtracks, solved, cg_iters, residual = figures
    status = UPDATE_STATUS[int(code)]
    return TrustRegionResult(
        status=status,
        accepted=status is Status.accepted,
        kl=kl,
        loss_before=before,
        loss_after=after,
        expected_improvement=expected,
        actual_improvement=before - after if status is Status.accepted else 0.0,
        step_size=step,
        backtracks=int(backtracks),
        cg_iters=int(cg_iters),
        cg_residual=residual,
        gradient_norm=norm,
        region_used=kl / options.max_kl,
        backend=backend,
        solve_status=SOLVE_STATUS[int(solved)],
    )
