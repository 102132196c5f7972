"""The update on scripted problems: scaling, line search, and what ends it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from trpo_fast import Status
from trpo_fast.base.tensors import dot
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters
from trpo_fast.update.result import Solution, TrustRegionResult
from trpo_fast.update.trust_region import WholeUpdate, update

BAD = (2.0, 0.001)  # the loss rose
FAR = (0.5, 0.02)  # outside the region
NAN = (math.nan, math.nan)
GOOD = (0.9, 0.009)
DAMPED = Options(step_size="damped")


@dataclass
class Scripted:
    """A problem whose curvature is the identity and whose candidates are scripted."""

    candidates: list[tuple[float, float]]
    g: Tensor = field(default_factory=lambda: torch.tensor([3.0, 4.0]))
    loss: float = 1.0
    backend: str = "scripted"
    quadratic: float | None = None
    seen: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tensor = torch.zeros(2)
        self.parameters = FlatParameters([self.tensor], ["theta"])

    def surrogate_gradient(self) -> tuple[float, Tensor]:
        return self.loss, self.g

    def fisher_product(self, v: Tensor) -> Tensor:
        return v

    def solve(self, g: Tensor, options: Options) -> Solution:
        quadratic = dot(g, g) if self.quadratic is None else self.quadratic
        status = None if quadratic > 0 else Status.negative_curvature
        return Solution(g.clone(), quadratic, 1, 0.0, status)

    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        self.seen.append(theta.clone())
        return self.candidates[len(self.seen) - 1]


class Whole(Scripted, WholeUpdate):
    """A problem that does the whole update itself."""

    def update(self, options: Options, unit: float) -> TrustRegionResult:
        return replace(update(Scripted(self.candidates), options, unit=unit), backend="whole")


def test_a_problem_that_does_the_whole_update_is_left_to_it() -> None:
    problem = Whole([GOOD])
    result = update(problem, DAMPED, unit=2.0)
    assert (result.backend, result.loss_before, problem.seen) == ("whole", 2.0, [])


def test_figures_are_plain_values_of_every_field_but_the_solves_status() -> None:
    result = update(Scripted([GOOD]), DAMPED)
    figures = result.figures()
    assert list(figures) == [f.name for f in fields(result) if f.name != "solve_status"]
    assert json.loads(json.dumps(figures)) == figures
    assert figures["status"] == "accepted"
    assert type(figures["status"]) is str
    assert figures["kl"] == result.kl == GOOD[1]


class TestDampedLineSearch:
    def test_the_first_acceptable_candidate_is_taken(self) -> None:
        problem = Scripted([BAD, FAR, NAN, GOOD, GOOD])
        result = update(problem, DAMPED)
        assert result.status is Status.accepted
        assert result.backtracks == 3
        assert len(problem.seen) == 4
        assert (result.kl, result.loss_before, result.loss_after) == (0.009, 1.0, 0.9)
        assert torch.equal(problem.tensor, problem.seen[3])

    def test_candidates_lie_at_scale_times_backtrack_to_the_j(self) -> None:
        problem = Scripted([BAD] * 3 + [GOOD])
        result = update(problem, replace(DAMPED, max_kl=0.02, backtrack_coeff=0.5, lr=0.7))
        unit = torch.tensor([0.6, 0.8])
        for j, seen in enumerate(problem.seen):
            assert torch.allclose(seen, 0.7 * math.sqrt(0.04) * 0.5**j * unit)
        # x = (F + dI)^-1 g = g here, of length 5
        assert result.step_size == pytest.approx(0.7 * math.sqrt(0.04) * 0.5**3 / 5)

    def test_pitfall_17_inexact_products_do_not_set_the_length_by_g_x(self) -> None:
        # A solver whose x'(F + dI)x is not g.x, as with low-precision products.
        problem = Scripted([GOOD], quadratic=4.0)
        update(problem, replace(DAMPED, max_kl=0.02))
        unit = torch.tensor([0.6, 0.8])
        assert torch.allclose(problem.seen[0], math.sqrt(2 * 0.02 / 4.0) * unit)

    def test_pitfall_06_expected_improvement_is_not_shrunk_twice(self) -> None:
        problem = Scripted([BAD] * 4 + [GOOD])
        result = update(problem, DAMPED)
        # step_size * g.x with g.x = 25
        assert result.expected_improvement == pytest.approx(result.step_size * 25.0)
        assert result.actual_improvement == pytest.approx(0.1)

    def test_pitfall_15_a_kl_barely_above_the_bound_is_refused(self) -> None:
        problem = Scripted([(0.5, 0.0101), (0.5, 0.010000001), (0.6, 0.01)])
        result = update(problem, DAMPED)
        assert result.accepted
        assert result.backtracks == 2
        assert result.kl == 0.01

    def test_pitfall_15_an_unchanged_surrogate_is_no_improvement(self) -> None:
        problem = Scripted([(1.0, 0.001), (1.0, 0.001), (0.999, 0.001)])
        assert update(problem, DAMPED).backtracks == 2

    def test_pitfall_20_a_failed_search_reports_kl_0_and_restores(self) -> None:
        problem = Scripted([FAR] * 11)
        before = problem.tensor.clone()
        result = update(problem, DAMPED)
        assert result.status is Status.line_search_failed
        assert not result.accepted
        assert (result.kl, result.step_size, result.actual_improvement) == (0.0, 0.0, 0.0)
        assert result.loss_after == result.loss_before == 1.0
        assert len(problem.seen) == 11
        assert torch.equal(problem.tensor, before)

    @pytest.mark.parametrize("constraint", ["hard", "penalty"])
    def test_pitfall_05_what_is_no_kl_is_refused(self, constraint: str) -> None:
        problem = Scripted([(0.5, -0.5)] * 3 + [(0.5, -1e-9)])
        result = update(problem, replace(DAMPED, constraint=constraint))
        assert result.backtracks == 3

    def test_accept_ratio(self) -> None:
        # expected at j = 0: sqrt(2 * 0.01) * 5
        expected = math.sqrt(0.02) * 5
        candidates = [(1 - 0.4 * expected, 0.001), (1 - 0.6 * 0.8 * expected, 0.001)]
        assert update(Scripted(list(candidates)), replace(DAMPED, accept_ratio=0.5)).backtracks == 1
        assert update(Scripted(list(candidates)), replace(DAMPED, accept_ratio=0.3)).backtracks == 0

    def test_all_candidates_not_finite(self) -> None:
        result = update(Scripted([NAN] * 11), DAMPED)
        assert result.status is Status.non_finite

    def test_max_backtracks_0_tries_one_candidate(self) -> None:
        problem = Scripted([BAD, GOOD])
        assert (
            update(problem, replace(DAMPED, max_backtracks=0)).status is Status.line_search_failed
        )
        assert len(problem.seen) == 1

    @pytest.mark.parametrize("loss", [math.nan, math.inf])
    def test_a_loss_that_is_not_finite(self, loss: float) -> None:
        assert update(Scripted([GOOD], loss=loss), DAMPED).status is Status.non_finite

    def test_a_gradient_that_is_not_finite(self) -> None:
        problem = Scripted([GOOD], g=torch.tensor([1.0, math.nan]))
        assert update(problem, DAMPED).status is Status.non_finite

    def test_zero_gradient(self) -> None:
        problem = Scripted([GOOD], g=torch.zeros(2))
        result = update(problem, DAMPED)
        assert result.status is Status.zero_gradient
        assert problem.seen == []

    def test_lr_0_is_an_exact_no_op(self) -> None:
        problem = Scripted([GOOD])
        assert update(problem, replace(DAMPED, lr=0.0)).status is Status.zero_step
        assert problem.seen == []

    def test_negative_curvature_at_once(self) -> None:
        problem = Scripted([GOOD], quadratic=-1.0)
        assert update(problem, DAMPED).status is Status.negative_curvature

    def test_an_interrupt_while_writing_restores(self, monkeypatch: Any) -> None:
        problem = Scripted([GOOD])
        write, calls = problem.parameters.write, []

        def interrupted(theta: Tensor) -> None:
            write(theta)
            calls.append(1)
            if len(calls) == 1:
                raise KeyboardInterrupt

        monkeypatch.setattr(problem.parameters, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            update(problem, DAMPED)
        assert torch.equal(problem.tensor, torch.zeros(2))

    def test_every_status_has_advice(self) -> None:
        for status in Status:
            assert str(status).startswith(f"{status.value}: ")
            assert len(status.advice) > 30
            assert status == status.name


class TestPenaltyAndNone:
    def test_penalty_accepts_what_raised_the_penalised_objective(self) -> None:
        # improvement 0.1 against beta * kl: 0.12, then 0.08
        problem = Scripted([(0.9, 0.06), (0.9, 0.04)])
        result = update(problem, Options(constraint="penalty", beta=2.0))
        assert result.backtracks == 1
        assert result.kl == 0.04

    def test_penalty_steps_along_x_over_beta(self) -> None:
        problem = Scripted([GOOD])
        update(problem, Options(constraint="penalty", beta=4.0))
        assert torch.allclose(problem.seen[0], torch.tensor([3.0, 4.0]) / 4.0)

    def test_penalty_that_fails_restores(self) -> None:
        problem = Scripted([(0.9, 1.0)] * 11)
        result = update(problem, Options(constraint="penalty", beta=2.0))
        assert result.status is Status.line_search_failed
        assert torch.equal(problem.tensor, torch.zeros(2))

    def test_none_is_the_plain_natural_gradient(self) -> None:
        problem = Scripted([(7.0, 99.0)])  # worse and far outside: not checked
        result = update(problem, Options(constraint="none", lr=0.1))
        assert result.accepted
        assert torch.allclose(problem.tensor, torch.tensor([0.3, 0.4]))
        assert result.step_size == pytest.approx(0.1)

    def test_none_checks_finiteness(self) -> None:
        problem = Scripted([NAN])
        result = update(problem, Options(constraint="none"))
        assert result.status is Status.non_finite
        assert torch.equal(problem.tensor, torch.zeros(2))
