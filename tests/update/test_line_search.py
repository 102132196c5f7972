"""step_size="boundary" along lines whose KL and surrogate are written down, and over every head."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from optimizer_cases import (
    BACKENDS,
    closure_of,
    every_backend,
    every_case,
    flat,
    optimizer,
    result_of,
)
from torch import Tensor
from update_cases import BY_NAME, Case, bits, make_data, make_policy, same_bits

from trpo_fast import Status, TRPOOptimizer
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters
from trpo_fast.update.result import Solution, TrustRegionResult
from trpo_fast.update.trust_region import update

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")
BOUNDARY, DAMPED = (Options(step_size=rule) for rule in ("boundary", "damped"))
Curve = Callable[[float], float]


@dataclass
class Along:
    """One parameter, x = 1, |g| = 1: what is measured at theta = s is ``gain(s)`` and ``kl(s)``."""

    kl: Curve
    gain: Curve = lambda s: s
    curvature: float = 1.0  # x'Fx
    backend: str = "along"
    tried: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tensor = torch.zeros(1, dtype=torch.float64)
        self.parameters = FlatParameters([self.tensor], ["theta"])

    def surrogate_gradient(self) -> tuple[float, Tensor]:
        return 1.0, torch.ones(1, dtype=torch.float64)

    def fisher_product(self, v: Tensor) -> Tensor:
        return self.curvature * v

    def solve(self, g: Tensor, options: Options) -> Solution:
        return Solution(g.clone(), self.curvature + options.damping, 1, 0.0)

    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        self.tried.append(float(theta))
        return 1.0 - self.gain(float(theta)), self.kl(float(theta))


def power(exponent: float, factor: float = 0.5) -> Curve:
    return lambda s: factor * s**exponent


class TestSizing:
    @pytest.mark.parametrize("damping", [1e-3, 0.1, 1.0, 10.0])
    def test_damping_does_not_shorten_a_quadratic_step(self, damping: float) -> None:
        problem = Along(power(2))
        result = update(problem, replace(BOUNDARY, damping=damping))
        assert 0.969 < result.region_used <= 1
        assert len(problem.tried) <= 2
        assert result.backtracks == len(problem.tried) - 1
        assert problem.tensor == result.step_size == problem.tried[-1]

    @pytest.mark.parametrize("exponent", [1.2, 1.5, 3.0, 4.0, 6.0])
    @pytest.mark.parametrize("factor", [0.05, 0.5, 5.0])
    def test_few_candidates_reach_the_boundary_by_any_power(
        self, exponent: float, factor: float
    ) -> None:
        kl = lambda s: factor * 0.02 * (s / 0.2) ** exponent  # noqa: E731
        problem = Along(kl)
        result = update(problem, replace(BOUNDARY, damping=0.0, max_kl=0.02))
        assert 0.9 <= result.region_used <= 1
        assert len(problem.tried) <= 4  # three that were sized, and one of the damped rule's

    @pytest.mark.parametrize(("share", "candidates"), [(0.92, 2), (0.94, 1), (0.999, 1), (1.01, 2)])
    def test_what_is_near_enough(self, share: float, candidates: int) -> None:
        problem = Along(power(2, 0.5 * share / 0.97))  # of the first candidate
        result = update(problem, replace(BOUNDARY, damping=1.0))
        assert len(problem.tried) == candidates
        assert result.region_used == pytest.approx(share if candidates == 1 else 0.97)

    def test_no_candidate_lies_beyond_one_that_was_refused(self) -> None:
        problem = Along(lambda s: 0.5 * s * s if s < 0.12 else 1.0)
        result = update(problem, replace(BOUNDARY, max_backtracks=30))
        assert result.accepted
        refused = [s for s in problem.tried if s >= 0.12]
        assert refused == sorted(refused, reverse=True)
        assert max(problem.tried[problem.tried.index(min(refused)) + 1 :]) < min(refused)

    def test_curvature_lost_in_rounding_is_not_divided_by(self) -> None:
        for curvature in (0.0, -1e-9, 1e-9):
            problem = Along(power(2), curvature=curvature)
            result = update(problem, replace(BOUNDARY, damping=1.0))
            assert problem.tried[0] == pytest.approx(math.sqrt(0.02))  # the damped form's
            assert result.accepted

    def test_a_kl_that_is_next_to_nothing_hardly_stretches_the_step(self) -> None:
        problem = Along(lambda s: 5e-324)
        assert update(problem, BOUNDARY).accepted
        assert len(problem.tried) <= 3

    def test_a_kl_or_a_loss_that_does_not_move_is_no_measurement(self) -> None:
        for problem in (Along(lambda s: 0.0), Along(power(2), gain=lambda s: 0.0)):
            with pytest.raises(ValueError, match="does not follow"):
                update(problem, BOUNDARY)

    def test_a_step_grows_tenfold_at_most(self) -> None:
        problem = Along(power(2, 1e-9))
        assert update(problem, BOUNDARY).accepted
        steps = zip(problem.tried, problem.tried[1:], strict=False)
        assert all(b == pytest.approx(10 * a) for a, b in steps)
        assert len(problem.tried) == 3


class TestWhatIsTaken:
    def test_the_better_surrogate_is_kept_and_not_the_last(self) -> None:
        kl = lambda s: 0.3 * s * s  # noqa: E731
        problem = Along(kl, gain=lambda s: s if s < 0.15 else 0.01 * s)
        result = update(problem, replace(BOUNDARY, damping=0.0))
        assert len(problem.tried) == 2
        assert problem.tensor == min(problem.tried)
        assert result.actual_improvement == pytest.approx(min(problem.tried))
        assert result.kl == kl(min(problem.tried))
        assert result.expected_improvement == pytest.approx(min(problem.tried))

    def test_a_surrogate_past_its_peak_is_not_followed_to_the_boundary(self) -> None:
        problem = Along(power(2), gain=lambda s: s - 6 * s * s)  # peaks at 1 / 12
        result = update(problem, replace(BOUNDARY, damping=1.0))
        damped = update(Along(power(2), gain=lambda s: s - 6 * s * s), replace(DAMPED, damping=1.0))
        assert result.actual_improvement >= damped.actual_improvement > 0

    def test_it_is_never_worse_than_the_damped_rule(self) -> None:
        taken_further = 0
        for seed in range(500):
            draw = torch.rand(5, generator=torch.Generator().manual_seed(seed)).tolist()
            exponent, bend = 1.5 + 3 * draw[0], 6 * draw[1] ** 2
            kl = lambda s, p=exponent, f=draw[2]: (0.2 + f) * 0.01 * (s / 0.14) ** p  # noqa: E731
            gain = lambda s, b=bend, c=10 * draw[3] ** 2: s - b * s * s - c * s**3  # noqa: E731
            found: list[TrustRegionResult] = []
            for options in (BOUNDARY, DAMPED):
                problem = Along(kl, gain)
                found.append(update(problem, replace(options, damping=draw[4])))
                assert len(problem.tried) <= 11
            assert found[0].accepted == found[1].accepted
            assert found[0].actual_improvement >= found[1].actual_improvement * (1 - 1e-12)
            taken_further += found[0].actual_improvement > 1.01 * found[1].actual_improvement
        assert taken_further > 300

    def test_accept_ratio_is_of_the_candidate_at_hand(self) -> None:
        gain = lambda s: s - 4 * s * s  # noqa: E731
        result = update(Along(power(2), gain), replace(BOUNDARY, accept_ratio=0.6))
        assert result.accepted
        assert result.actual_improvement >= 0.6 * result.expected_improvement
        plain = update(Along(power(2), gain), BOUNDARY)
        assert plain.actual_improvement < 0.6 * plain.expected_improvement

    def test_lr_sizes_the_region(self) -> None:
        result = update(Along(power(2)), replace(BOUNDARY, lr=0.5, damping=1.0))
        assert result.region_used == pytest.approx(0.25 * 0.97)
        assert 0.9 <= update(Along(power(2)), replace(BOUNDARY, lr=3.0)).region_used <= 1
        problem = Along(power(2))
        assert update(problem, replace(BOUNDARY, lr=0.0)).status is Status.zero_step
        assert problem.tried == []

    @pytest.mark.parametrize("constraint", ["penalty", "none"])
    def test_other_constraints_have_one_rule(self, constraint: str) -> None:
        found = []
        for options in (BOUNDARY, DAMPED):
            problem = Along(power(2))
            update(problem, replace(options, constraint=constraint, beta=3.0))
            found.append(problem.tried)
        assert found[0] == found[1]


class TestFailures:
    def test_a_candidate_that_is_not_finite_is_followed_by_the_damped_ones(self) -> None:
        problem = Along(lambda s: 0.5 * s * s if s < 0.1 else math.nan)
        result = update(problem, replace(BOUNDARY, damping=1.0))
        assert result.accepted
        assert problem.tried[1:] == pytest.approx([0.1, 0.08])

    @pytest.mark.parametrize("candidates", [1, 2, 3, 4, 11])
    def test_never_acceptable(self, candidates: int) -> None:
        options = replace(BOUNDARY, max_backtracks=candidates - 1)
        for kl, gain, status in (
            (lambda s: 1.0, lambda s: s, Status.line_search_failed),
            (power(2), lambda s: -s, Status.line_search_failed),
            (lambda s: -1.0, lambda s: s, Status.line_search_failed),
            (lambda s: math.inf, lambda s: s, Status.non_finite),
            (power(2), lambda s: math.nan, Status.non_finite),
        ):
            problem = Along(kl, gain)
            result = update(problem, options)
            assert result.status is status
            assert (result.kl, result.region_used, result.step_size) == (0.0, 0.0, 0.0)
            assert problem.tensor == 0
            assert len(problem.tried) == result.backtracks + 1 <= candidates
            # A KL of 1 is sized down below all of the damped rule's candidates.
            assert len(problem.tried) == candidates or kl(0.1) == 1.0

    @pytest.mark.parametrize("max_backtracks", range(5))
    def test_max_backtracks_bounds_the_candidates(self, max_backtracks: int) -> None:
        options = replace(BOUNDARY, max_backtracks=max_backtracks, damping=1.0)
        problem = Along(lambda s: 0.3 * abs(s) ** 3)
        result = update(problem, options)
        assert result.accepted
        assert len(problem.tried) <= max_backtracks + 1
        if max_backtracks == 0:  # one candidate: the damped rule's
            assert problem.tried == [pytest.approx(0.1)]

    def test_a_kl_that_rises_and_falls(self) -> None:
        for frequency in range(1, 200):
            problem = Along(lambda s, f=frequency: 0.02 * math.sin(f * s) ** 2 + 1e-4)
            result = update(problem, BOUNDARY)
            assert len(problem.tried) <= 11
            if result.accepted:
                assert problem.kl(float(problem.tensor)) == result.kl <= 0.01
            else:
                assert problem.tensor == 0


@every_backend
@every_case
def test_a_step_ends_at_the_boundary(backend: str, case: Case) -> None:
    for seed, damping in enumerate([1e-3, 0.1, 0.3, 1.0]):
        policy = make_policy(case, hidden=(16,), seed=seed)
        data = make_data(policy, case, rows=256, seed=seed, weighted=seed == 2)
        opt = optimizer(policy, backend, step_size="boundary", damping=damping, max_kl=1e-3)
        opt.step(**data)
        assert 0.9 <= result_of(opt).region_used <= 1
        assert result_of(opt).backtracks <= 3


def test_a_closure_ends_at_the_boundary() -> None:
    policy = make_policy(BY_NAME["gaussian"], hidden=(16,))
    data = make_data(policy, BY_NAME["gaussian"], rows=256)
    opt = TRPOOptimizer(policy.parameters(), step_size="boundary", max_kl=1e-3)
    opt.step(closure_of(policy, data))
    assert 0.9 <= result_of(opt).region_used <= 1


@every_backend
@pytest.mark.parametrize("name", ["gaussian_state_std", "categorical", "bernoulli"])
@pytest.mark.parametrize("max_kl", [0.3, 3.0])
def test_a_kl_far_from_quadratic(backend: str, name: str, max_kl: float) -> None:
    case, accepted = BY_NAME[name], 0
    for seed in range(8):
        gains = []
        for rule in ("boundary", "damped"):
            policy = make_policy(case, hidden=(8,), seed=seed)
            with torch.no_grad():  # nearly certain actions, standard deviations far from 1
                policy.body[-1].weight.mul_(1 + seed)
            data = make_data(policy, case, rows=64, seed=seed)
            before = bits(policy)
            opt = optimizer(policy, backend, step_size=rule, max_kl=max_kl)
            opt.step(**data)
            result = result_of(opt)
            assert result.accepted or same_bits(policy, before)
            assert result.kl <= max_kl
            gains.append(result.actual_improvement)
        accepted += result.accepted
        assert gains[0] >= gains[1] * (1 - 1e-9)
    assert accepted > 0


@every_case
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
@pytest.mark.parametrize("max_kl", [0.01, 0.3, 3.0])
def test_every_backend_takes_the_references_step(backend: str, case: Case, max_kl: float) -> None:
    for seed in range(4):
        found = []
        for name in (backend, "reference"):
            policy = make_policy(case, hidden=(8,), seed=seed)
            data = make_data(policy, case, rows=64, seed=seed)
            opt = optimizer(
                policy, name, step_size="boundary", max_kl=max_kl, preconditioner="none"
            )
            opt.step(**data)
            found.append((result_of(opt), flat(policy)))
        (result, theta), (expected, expected_theta) = found
        assert result.status is expected.status
        assert result.backtracks == expected.backtracks
        assert result.kl == pytest.approx(expected.kl, rel=1e-5)
        torch.testing.assert_close(theta, expected_theta, rtol=1e-6, atol=1e-8)
