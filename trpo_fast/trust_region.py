"""The update itself: gradient, solve, scale, line search, for any backend.

TRPO after Schulman et al. 2015 (arXiv 1502.05477, section 6 and appendix C). Departures from the
textbook: the solve runs on g / |g|, so that no scale of the advantages can overflow it; the step's
length comes from x'(F + damping I)x; every candidate is judged by the mean KL and the surrogate
over the whole batch, and a rejected step leaves every parameter's bits alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

from trpo_fast.flat import FlatParameters, dot, norm
from trpo_fast.options import Options


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


class Problem(Protocol):
    """One batch at theta_old, as a backend sees it. The loss is to fall; P-vectors are flat.

    No method changes a parameter for longer than the call lasts. A problem that can do all of
    ``update`` itself, by the same steps, in one native call, has a method for it besides these:
    ``update(options, unit) -> TrustRegionResult``.
    """

    backend: str
    parameters: FlatParameters

    def gradient(self) -> tuple[float, Tensor]:
        """The loss at theta_old, and the direction ``[P]`` of its steepest descent, -dloss."""

    def solve(self, g: Tensor, options: Options) -> Solution:
        """An approximate solution of ``(F + damping I) x = g`` for ``g`` ``[P]``."""

    def fisher_product(self, v: Tensor) -> Tensor:
        """``F v`` ``[P]``, without damping."""

    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        """Loss and mean KL at the parameters ``theta`` ``[P]``; NaN where they are not finite."""


def conjugate_gradient(
    product: Callable[[Tensor], Tensor],
    g: Tensor,
    *,
    damping: float,
    iters: int,
    tol: float,
    progress_tol: float = 0.0,
    precondition: Callable[[Tensor], Tensor] | None = None,
) -> Solution:
    """Preconditioned conjugate gradients on ``(F + damping I) x = g`` from ``x = 0``.

    Hestenes & Stiefel 1952, as in Nocedal & Wright 2006, algorithms 5.2 and 5.3. Departures: a
    stop on the relative residual ``|r| / |g|``, which no preconditioner changes the meaning of; a
    stop on the quadratic model's relative progress (Martens 2010, section 4.4) over one iteration
    instead of ten or more, because here there are hardly ten; dots in float64; a stop at the last
    good iterate when ``p'Ap`` or ``r'M^-1 r`` is not positive, when anything is not finite, or when
    the residual reaches rounding level.

    Args:
        product: ``v -> F v`` ``[P]``, the same matrix at every call.
        g: ``[P]``.
        damping: Added to the diagonal.
        iters: Most iterations.
        tol: Stop once the residual is below ``tol |g|``; 0 runs all iterations.
        progress_tol: Stop once an iteration's share of what the quadratic model has fallen so far
            is below this; 0 never does.
        precondition: ``r -> M^-1 r`` ``[P]``, the same positive definite matrix at every call.
    """
    x, r = torch.zeros_like(g), g.clone()
    rr = rr_start = dot(r, r)
    floor = max(tol, 4 * torch.finfo(g.dtype).eps) ** 2 * rr_start
    status, done, progress = None, 0, 0.0  # progress: twice what the quadratic model has fallen
    p, rz_old = torch.zeros_like(g), math.inf
    while done < iters and rr > floor:
        z = r if precondition is None else precondition(r)  # z = M^-1 r
        rz = rr if precondition is None else dot(r, z)
        if not (math.isfinite(rz) and rz > 0):
            status = Status.breakdown
            break
        p = z.add(p, alpha=rz / rz_old)  # p = z + (r'z / r_old'z_old) p
        Ap = product(p).add(p, alpha=damping)
        pAp = dot(p, Ap)
        if not math.isfinite(pAp):
            status = Status.non_finite
            break
        if pAp <= 0:
            status = Status.negative_curvature
            break
        alpha = rz / pAp  # alpha = r'z / p'Ap
        r_next = r.add(Ap, alpha=-alpha)  # r = r - alpha A p
        rr_next = dot(r_next, r_next)
        if not math.isfinite(rr_next):
            status = Status.breakdown
            break
        x, r, rr, rz_old, done = x.add(p, alpha=alpha), r_next, rr_next, rz, done + 1
        gain = alpha * rz  # q(x_old) - q(x) = alpha r'z / 2, with q(x) = x'Ax / 2 - g'x
        progress += gain
        if gain < progress_tol * progress:
            break
    residual = math.sqrt(rr / rr_start) if rr_start > 0 else 0.0
    # x'Ax = x'(g - r)
    return Solution(x, dot(x, g) - dot(x, r), done, residual, status)


def update(problem: Problem, options: Options, *, unit: float = 1.0) -> TrustRegionResult:
    """Do one update in place: an accepted step, or every parameter's bits as before.

    Args:
        problem: The batch at theta_old. Its loss is in units of ``unit``.
        options: Checked options.
        unit: What the problem's loss is multiplied by in every figure and decision.
    """
    whole: Callable[[Options, float], TrustRegionResult] | None = getattr(problem, "update", None)
    if whole is not None:
        return whole(options, unit)
    theta = problem.parameters.start
    loss, g = problem.gradient()
    size = norm(g)
    search = _Search(problem, options, theta, unit, loss * unit, size * unit)
    if not (math.isfinite(loss) and math.isfinite(search.gradient_norm)):
        return search.rejected(Status.non_finite)
    if search.gradient_norm == 0:
        return search.rejected(Status.zero_gradient)

    # x solves (F + damping I) x = g / |g|
    g_unit = (g.double() / size).to(g.dtype)
    solution = search.solution = problem.solve(g_unit, options)
    slope, quadratic = dot(g_unit, solution.x), solution.quadratic
    if not (math.isfinite(slope) and math.isfinite(quadratic)):
        return search.rejected(Status.non_finite)
    if quadratic <= 0 or slope <= 0:
        return search.rejected(solution.status or Status.breakdown)

    if options.constraint == "hard":
        scale = math.sqrt(2 * options.max_kl / quadratic)  # scale^2 x'(F + dI)x / 2 = max_kl
    elif options.constraint == "penalty":
        scale = search.gradient_norm / options.beta  # maximises g.sx - beta s^2 x'(F + dI)x / 2
    else:
        scale = search.gradient_norm  # theta + lr (F + dI)^-1 g
    return search.along(solution.x, options.lr * scale, slope, quadratic)


def _moved(theta: Tensor, x: Tensor, step: float) -> Tensor:
    """``theta + step x``, also where torch refuses the step as too large for the dtype."""
    if step <= torch.finfo(theta.dtype).max:
        return torch.add(theta, x, alpha=step)
    return (theta.double() + step * x.double()).to(theta.dtype)


class _Search:
    """The line search of one update, and the figures gathered on the way."""

    def __init__(
        self,
        problem: Problem,
        options: Options,
        theta: Tensor,
        unit: float,
        loss: float,
        gradient_norm: float,
    ) -> None:
        self.problem, self.options, self.theta, self.unit = problem, options, theta, unit
        self.loss, self.gradient_norm = loss, gradient_norm
        self.solution: Solution | None = None
        self.expected = 0.0
        self.backtracks = 0

    def along(self, x: Tensor, size: float, slope: float, quadratic: float) -> TrustRegionResult:
        """Candidates ``theta + size * backtrack_coeff^j * x``, the first acceptable one taken."""
        o, finite = self.options, False
        candidates = 1 if o.constraint == "none" else o.max_backtracks + 1
        for self.backtracks in range(candidates):
            step = size * o.backtrack_coeff**self.backtracks
            expected = step * slope * self.gradient_norm
            if o.constraint == "penalty":
                expected -= 0.5 * o.beta * step * step * quadratic
            if self.backtracks == 0:
                self.expected = expected
            candidate = _moved(self.theta, x, step)
            if torch.equal(candidate, self.theta):
                if self.backtracks == 0:
                    return self.rejected(Status.zero_step)
                break
            loss, kl = self.problem.evaluate(candidate)
            loss *= self.unit
            if not (math.isfinite(loss) and math.isfinite(kl)):
                continue
            finite = True
            if self._acceptable(loss, kl, expected):
                return self._accepted(candidate, loss, kl, step, expected)
        return self.rejected(Status.line_search_failed if finite else Status.non_finite)

    def _acceptable(self, loss: float, kl: float, expected: float) -> bool:
        o = self.options
        improvement = self.loss - loss
        if o.constraint == "none":
            return True
        if kl < -o.max_kl:  # beyond rounding: what was registered as the KL is none
            return False
        if o.constraint == "penalty":
            improvement -= o.beta * kl
        elif kl > o.max_kl:
            return False
        return improvement > 0 and improvement >= o.accept_ratio * expected

    def _accepted(
        self, candidate: Tensor, loss: float, kl: float, step: float, expected: float
    ) -> TrustRegionResult:
        self.problem.parameters.replace(self.theta, candidate)
        self.expected = expected
        return self._result(Status.accepted, kl, loss, step / self.gradient_norm)

    def rejected(self, status: Status) -> TrustRegionResult:
        return self._result(status, 0.0, self.loss, 0.0)

    def _result(self, status: Status, kl: float, loss: float, step: float) -> TrustRegionResult:
        solution = self.solution
        return TrustRegionResult(
            status=status,
            accepted=status is Status.accepted,
            kl=kl,
            loss_before=self.loss,
            loss_after=loss,
            expected_improvement=self.expected,
            actual_improvement=self.loss - loss if status is Status.accepted else 0.0,
            step_size=step,
            backtracks=self.backtracks,
            cg_iters=solution.cg_iters if solution else 0,
            cg_residual=solution.residual if solution else 0.0,
            gradient_norm=self.gradient_norm,
            backend=self.problem.backend,
            solve_status=solution.status if solution else None,
        )
