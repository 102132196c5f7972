"""What an update tells: its status, the solve behind it, its figures."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from torch import Tensor


class Status(StrEnum):
    """How an update ended. ``str(status)`` says what happened and what to do about it."""

    accepted = "accepted"
    zero_gradient = "zero_gradient"
    zero_step = "zero_step"
    line_search_failed = "line_search_failed"
    negative_curvature = "negative_curvature"
    breakdown = "breakdown"
    non_finite = "non_finite"

    @property
    def advice(self) -> str:
        """What happened and what to do, in words."""
        return _ADVICE[self.value]

    def __str__(self) -> str:
        return f"{self.value}: {self.advice}"


_ADVICE = {
    "accepted": "the step was taken; nothing to do.",
    "zero_gradient": "the surrogate's gradient is exactly 0, so there is no direction to step in; "
    "check that the advantages are not all 0 or constant over identical samples.",
    "zero_step": "the step is too small to change any parameter; raise lr or max_kl if they are "
    "(nearly) 0.",
    "line_search_failed": "no candidate on the search line was acceptable, so the parameters were "
    "left as they were; now and then this is normal. If it is frequent, use a larger batch, "
    "raise damping or cg_iters, or lower max_kl.",
    "negative_curvature": "the damped Fisher matrix is not positive along a search direction; "
    "raise damping, and check that forward gives the same distribution at each call.",
    "breakdown": "the linear solve lost its accuracy before it had a direction; raise damping.",
    "non_finite": "the loss, the gradient, a Fisher product or every candidate was NaN or "
    "infinite, so the parameters were left as they were; look for extreme log standard "
    "deviations, logits, advantages or old_log_prob.",
}


@dataclass(frozen=True)
class Solution:
    """A solve of ``(F + damping I) x = g``.

    Attributes:
        x: ``[P]``.
        quadratic: ``x'(F + damping I)x``.
        cg_iters: Iterations done.
        residual: ``|g - (F + damping I)x| / |g|``.
        status: None, or why the solve stopped early; ``x`` is then the last good iterate.
    """

    x: Tensor
    quadratic: float
    cg_iters: int
    residual: float
    status: Status | None = None


@dataclass(frozen=True)
class TrustRegionResult:
    """What one update did.

    Attributes:
        status: How it ended; its text is the advice.
        accepted: Whether the parameters changed.
        kl: Mean KL of the accepted step, measured over the whole batch; 0 when rejected.
        loss_before: The loss at the step's start.
        loss_after: The loss of the accepted step; ``loss_before`` when rejected.
        expected_improvement: What the model promised for the accepted (or, when all were
            rejected, the first) candidate: ``step_size * g.x``.
        actual_improvement: What was got; 0 when rejected.
        step_size: ``lr * scale * backtrack_coeff^backtracks``, along x = (F + damping I)^-1 g;
            0 when rejected.
        backtracks: Candidates rejected before the search ended.
        cg_iters: Conjugate-gradient iterations.
        cg_residual: Relative residual of the solve; from backend "cpu" that of the iterate before
            the last, where cg_iters or cg_progress_tol ended it: half a product for a figure.
        gradient_norm: Euclidean norm of the loss's gradient.
        backend: What computed it.
        solve_status: Why the solve stopped early, when it did and its last iterate was used.
    """

    status: Status
    accepted: bool
    kl: float
    loss_before: float
    loss_after: float
    expected_improvement: float
    actual_improvement: float
    step_size: float
    backtracks: int
    cg_iters: int
    cg_residual: float
    gradient_norm: float
    backend: str
    solve_status: Status | None = None

    def figures(self) -> dict[str, bool | int | float | str]:
        """What a log records of the step, as plain values."""
        return {name: getattr(self, name) for name in FIGURES} | {"status": self.status.value}


FIGURES = tuple(f.name for f in fields(TrustRegionResult) if f.name != "solve_status")
