"""The update itself: gradient, solve, scale, line search, for any backend.

TRPO after Schulman et al. 2015 (arXiv 1502.05477, section 6 and appendix C). Departures from the
textbook: the solve runs on g / |g|, so that no scale of the advantages can overflow it; the step's
length comes from x'(F + damping I)x; every candidate is judged by the mean KL and the surrogate
over the whole batch, and a rejected step leaves every parameter's bits alone.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from trpo_fast.base.tensors import dot, norm, plus
from trpo_fast.update.damping import absolute, curvature_along
from trpo_fast.update.line_search import Line, LineSearch
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters
from trpo_fast.update.result import Solution, Status, TrustRegionResult

LEAST_KL = 1e-9  # twice the KL, by the quadratic model, that no rounding can make exactly 0
LEAST_CHANGE = 1e-4  # of a loss, that no rounding can hide at every candidate
ANEW = (
    "Compute loss and distribution anew inside the closure (or forward) at each call, from the "
    "parameters as they are"
)
STUCK = (
    f"the loss is exactly the same at every candidate: it does not follow the parameters. {ANEW}"
)
UNMEASURED = (
    "the KL at a candidate is exactly 0, though the parameters that the distribution depends on "
    f"have moved: it does not follow them. {ANEW}"
)


class Problem(Protocol):
    """One batch at theta_old, as a backend sees it. The loss is to fall; P-vectors are flat.

    No method changes a parameter for longer than the call lasts.
    """

    backend: str
    parameters: FlatParameters

    def surrogate_gradient(self) -> tuple[float, Tensor]:
        """The loss at theta_old, and minus its gradient ``[P]``: that of the surrogate."""

    def solve(self, g: Tensor, options: Options) -> Solution:
        """An approximate solution of ``(F + damping I) x = g`` for ``g`` ``[P]``."""

    def fisher_product(self, v: Tensor) -> Tensor:
        """``F v`` ``[P]``, without damping."""

    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        """Loss and mean KL at the parameters ``theta`` ``[P]``; NaN where they are not finite."""


class WholeUpdate(Problem):
    """A problem that does all of ``update`` itself, by the same steps, in one native call."""

    @abstractmethod
    def update(self, options: Options, unit: float) -> TrustRegionResult:
        """What the function ``update`` does, for a loss in units of ``unit``."""


def update(
    problem: Problem,
    options: Options,
    *,
    unit: float = 1.0,
    agreed: Callable[[float], float] = float,
) -> TrustRegionResult:
    """Do one update in place: an accepted step, or every parameter's bits as before.

    Args:
        problem: The batch at theta_old. Its loss is in units of ``unit``.
        options: Checked options.
        unit: What the problem's loss is multiplied by in every figure and decision.
        agreed: A number that decides -> what whoever else makes the same update takes for it.
    """
    if isinstance(problem, WholeUpdate):
        return problem.update(options, unit)
    theta = problem.parameters.start
    loss, g = problem.surrogate_gradient()
    size = agreed(norm(g))
    search = _Search(problem, options, theta, unit, loss * unit, size * unit, agreed)
    if not (math.isfinite(loss) and math.isfinite(search.gradient_norm)):
        return search.rejected(Status.non_finite)
    if search.gradient_norm == 0:
        return search.rejected(Status.zero_gradient)

    if options.relative_damping:
        options = absolute(options, curvature_along(g, problem.fisher_product, agreed))
        search.options = options
    # x solves (F + damping I) x = g / |g|
    g_unit = (g.double() / size).to(g.dtype)
    solution = search.solution = problem.solve(g_unit, options)
    slope, quadratic = agreed(dot(g_unit, solution.x)), solution.quadratic
    if not (math.isfinite(slope) and math.isfinite(quadratic)):
        return search.rejected(Status.non_finite)
    if quadratic <= 0 or slope <= 0:
        return search.rejected(solution.status or Status.breakdown)

    square = agreed(dot(solution.x, solution.x))
    line = Line(search.gradient_norm, slope, quadratic, square)
    return search.along(solution.x, LineSearch(options, line))


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
        agreed: Callable[[float], float],
    ) -> None:
        self.problem, self.options, self.theta, self.unit = problem, options, theta, unit
        self.agreed = agreed
        self.loss, self.gradient_norm = loss, gradient_norm
        self.solution: Solution | None = None
        self.expected = 0.0
        self.backtracks = 0

    def along(self, x: Tensor, line: LineSearch) -> TrustRegionResult:
        """The best acceptable one of the candidates that ``line`` tries along ``x`` ``[P]``."""
        taken: TrustRegionResult | None = None
        chosen = self.theta
        # far enough for any loss to tell
        stuck = line.step * line.step * line.fisher_quadratic > LEAST_KL
        self.expected = line.expected()
        while True:
            self.backtracks = line.tried
            candidate = plus(self.theta, x, line.step)
            if self.agreed(torch.equal(candidate, self.theta)):
                if line.tried == 0:
                    return self.rejected(Status.zero_step)
                break
            loss, kl = self.problem.evaluate(candidate)
            if kl == 0 and line.step * line.step * line.fisher_quadratic > LEAST_KL:
                raise ValueError(UNMEASURED)
            loss *= self.unit
            if math.isfinite(loss) and math.isfinite(kl):
                stuck = stuck and loss == self.loss
            if line.judge(self.loss - loss, kl):
                chosen, taken = candidate, self._accepted(loss, kl, line)
            if not line.next():
                break
        if taken is None:
            if line.finite and stuck and self.expected > LEAST_CHANGE * abs(self.loss):
                raise ValueError(STUCK)
            return self.rejected(Status.line_search_failed if line.finite else Status.non_finite)
        self.problem.parameters.replace(self.theta, chosen)
        return replace(taken, backtracks=self.backtracks)

    def _accepted(self, loss: float, kl: float, line: LineSearch) -> TrustRegionResult:
        step = line.step / self.gradient_norm
        return self._result(Status.accepted, kl, loss, step, line.expected())

    def rejected(self, status: Status) -> TrustRegionResult:
        return self._result(status, 0.0, self.loss, 0.0, self.expected)

    def _result(
        self, status: Status, kl: float, loss: float, step: float, expected: float
    ) -> TrustRegionResult:
        solution = self.solution
        return TrustRegionResult(
            status=status,
            accepted=status is Status.accepted,
            kl=kl,
            loss_before=self.loss,
            loss_after=loss,
            expected_improvement=expected,
            actual_improvement=self.loss - loss if status is Status.accepted else 0.0,
            step_size=step,
            backtracks=self.backtracks,
            cg_iters=solution.cg_iters if solution else 0,
            cg_residual=solution.residual if solution else 0.0,
            gradient_norm=self.gradient_norm,
            region_used=kl / self.options.max_kl,
            backend=self.problem.backend,
            solve_status=solution.status if solution else None,
        )
