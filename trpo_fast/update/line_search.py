"""Which candidates along x an update tries, and which it takes: csrc/common/line_search.h.

``step_size="damped"``: ``scale * backtrack_coeff^j``, sized by x'(F + damping I)x, the first
acceptable one (Schulman et al. 2015, appendix C).

``step_size="boundary"``: damping belongs to the direction and not to the length, so the first
candidate is sized by x'Fx; and the KL along a line being nearly quadratic, at most two more by what
was measured of it. The damped rule's own candidates follow, while ``max_backtracks`` lasts, where
none of these was acceptable or they may be better. Which may be is told from a KL that is convex
along x and a surrogate that is a parabola: as far as they are, the step is no worse than by that
rule, and no further.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from trpo_fast.update.options import Options

AIM = 0.97  # of the region's KL: where a candidate is to land
ENOUGH = 0.93  # of it: what is near enough
SIZED = 3  # candidates sized so, at most
GROWTH = 10.0  # of a candidate over the last, at most
# Of the best candidate's improvement in what the slope promised: outside, the surrogate is no line
# or parabola, and the damped rule's own candidates are measured too.
LEAST_RATIO, MOST_RATIO = 0.75, 1.2
LEAST_SHARE = 0.01  # of x'Fx in x'(F + damping I)x: less is rounding


@dataclass(frozen=True)
class Line:
    """What is known along x, which solves (F + damping I) x = g / |g|.

    Attributes:
        gradient_norm: ``|g|``.
        slope: ``x'g / |g|``.
        quadratic: ``x'(F + damping I)x``.
        square: ``x'x``.
    """

    gradient_norm: float
    slope: float
    quadratic: float
    square: float


@dataclass
class LineSearch:
    """Give ``judge`` what the candidate at ``step`` measured, then ask ``next`` for another.

    Attributes:
        step: Length along x of the candidate to try.
        tried: Candidates tried before it.
        best: Length of the best acceptable candidate; None before there is one.
        finite: Whether any candidate's figures were.
    """

    options: Options
    line: Line
    tried: int = 0
    best: float | None = None
    finite: bool = False
    step: float = field(init=False)
    _best_kl: float = math.nan
    _improvement: float = -math.inf  # of the best
    _refused: float = math.inf  # the shortest length that was not acceptable
    _kl: float = math.nan  # of the last candidate
    _accepted: bool = False  # whether that was acceptable
    _before: tuple[float, float] | None = None  # length and KL of the sized one before it
    _damped_index: int = 0  # of the damped rule's next candidate
    _damped_done: bool = False  # whether it would have ended

    def __post_init__(self) -> None:
        o, line = self.options, self.line
        self._damped = o.lr * self._scale()
        self._fisher_quadratic = line.quadratic - o.damping * line.square
        self._sizing = o.step_size == "boundary" and o.constraint == "hard" and o.max_backtracks > 0
        self.step = self._damped
        if not self._sizing:
            return
        shrink = min(o.lr, 1.0)  # a longer step would leave the region
        self._region = shrink * shrink * o.max_kl
        form = line.quadratic
        if self._fisher_quadratic > LEAST_SHARE * form:
            form = min(form, self._fisher_quadratic / AIM)  # never shorter than the damped rule's
        self.step = shrink * math.sqrt(2 * o.max_kl / form)

    @property
    def fisher_quadratic(self) -> float:
        """``x'Fx``, without damping; 0 where that is within rounding."""
        rounding = 1e-3 * self.line.quadratic
        return self._fisher_quadratic if self._fisher_quadratic > rounding else 0.0

    def expected(self) -> float:
        """What the model promises of the candidate at ``step``."""
        o, line = self.options, self.line
        gain = self.step * line.slope * line.gradient_norm
        if o.constraint == "penalty":
            gain -= 0.5 * o.beta * self.step * self.step * line.quadratic
        return gain

    def judge(self, improvement: float, kl: float) -> bool:
        """Take note of the candidate at ``step``; whether it is the best acceptable one so far."""
        measured = math.isfinite(improvement) and math.isfinite(kl)
        self.finite |= measured
        self._kl = kl if measured else math.nan
        self._accepted = measured and self._acceptable(improvement, kl)
        if not self._accepted:
            self._refused = min(self._refused, self.step)
            return False
        self._damped_done |= not self._sizing or self.step == self._damped
        if not improvement > self._improvement:
            return False
        self.best, self._best_kl, self._improvement = self.step, kl, improvement
        return True

    def next(self) -> bool:
        """Whether another candidate is to be tried, then at ``step``."""
        o = self.options
        self.tried += 1
        if o.constraint == "none" or self.tried > o.max_backtracks:
            return False
        if self._sizing:
            length = self._sized()
            if length is not None:
                self._before = self.step, self._kl
                self.step = length
                return True
            self._sizing = False
        return not self._damped_done and self._next_damped()

    def _scale(self) -> float:
        o, line = self.options, self.line
        if o.constraint == "hard":
            return math.sqrt(2 * o.max_kl / line.quadratic)  # scale^2 x'(F + dI)x / 2 = max_kl
        if o.constraint == "penalty":
            return line.gradient_norm / o.beta  # maximises g.sx - beta s^2 x'(F + dI)x / 2
        return line.gradient_norm  # theta + lr (F + dI)^-1 g

    def _acceptable(self, improvement: float, kl: float) -> bool:
        o = self.options
        if o.constraint == "none":
            return True
        if kl < -o.max_kl:  # beyond rounding: what was registered as the KL is none
            return False
        if o.constraint == "penalty":
            improvement -= o.beta * kl
        elif kl > o.max_kl:
            return False
        return improvement > 0 and improvement >= o.accept_ratio * self.expected()

    def _sized(self) -> float | None:
        """The length at which the KL should be ``AIM`` of the region's, if it is worth a try."""
        kl = self._kl
        if self.tried >= SIZED or not kl > 0:
            return None
        if kl <= self.options.max_kl and (not self._accepted or kl >= ENOUGH * self._region):
            return None
        power = 2.0
        if self._before is not None:  # a power law through both
            step, before = self._before
            power = max(1.0, math.log(kl / before) / math.log(self.step / step))
        length = self.step * (AIM * self._region / kl) ** (1 / power)
        length = min(length, GROWTH * self.step)
        return length if length < self._refused and self._promises_more(length) else None

    def _next_damped(self) -> bool:
        """Go on with the damped rule's candidates."""
        o = self.options
        while self._damped_index <= o.max_backtracks:
            length = self._damped * o.backtrack_coeff**self._damped_index
            if self._damped_may_win(length):
                self.step = length
                return True
            if self.best is not None and length < self.best:
                return False
            self._damped_index += 1
        return False

    def _damped_may_win(self, length: float) -> bool:
        """Whether the damped rule's candidate of this length may be better than the best so far."""
        if not length < self._refused:
            return False
        if self.best is None:
            return True
        # A KL that is convex along x is beyond max_kl there.
        outside = self._best_kl * length > self.options.max_kl * self.best
        if outside or length == self.best:
            return False
        return length > self.best or not LEAST_RATIO <= self._best_ratio(self.best) <= MOST_RATIO

    def _best_ratio(self, best: float) -> float:
        """The best candidate's improvement over what the slope of the line promised of it."""
        return self._improvement / (best * self.line.slope * self.line.gradient_norm)

    def _promises_more(self, length: float) -> bool:
        """Whether the surrogate should be better at ``length`` than at the best candidate.

        By the parabola through that and the slope of the line.
        """
        if self.best is None:
            return True
        bend = 1 - self._best_ratio(self.best)
        return length > self.best and bend * (1 + length / self.best) < 1
