"""The update: scaling, line search, and the promise."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest
import torch
from optimizer_cases import BACKENDS, every_backend, every_case, optimizer
from torch import Tensor
from update_cases import (
    BY_NAME,
    CASES,
    Case,
    bits,
    dense_fisher,
    loss_and_kl,
    make_data,
    make_policy,
    old_distribution,
    same_bits,
)

from trpo_fast import Status
from trpo_fast.base.tensors import dot, strided_rows, weighted_mean
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters
from trpo_fast.update.result import Solution, TrustRegionResult
from trpo_fast.update.trust_region import WholeUpdate, update

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")


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
    result = update(problem, Options(), unit=2.0)
    assert (result.backend, result.loss_before, problem.seen) == ("whole", 2.0, [])


def test_figures_are_plain_values_of_every_field_but_the_solves_status() -> None:
    result = update(Scripted([GOOD]), Options())
    figures = result.figures()
    assert list(figures) == [f.name for f in fields(result) if f.name != "solve_status"]
    assert json.loads(json.dumps(figures)) == figures
    assert figures["status"] == "accepted"
    assert type(figures["status"]) is str
    assert figures["kl"] == result.kl == GOOD[1]


BAD = (2.0, 0.001)  # the loss rose


FAR = (0.5, 0.02)  # outside the region


NAN = (math.nan, math.nan)


GOOD = (0.9, 0.009)


class TestLineSearch:
    def test_the_first_acceptable_candidate_is_taken(self) -> None:
        problem = Scripted([BAD, FAR, NAN, GOOD, GOOD])
        result = update(problem, Options())
        assert result.status is Status.accepted
        assert result.backtracks == 3
        assert len(problem.seen) == 4
        assert (result.kl, result.loss_before, result.loss_after) == (0.009, 1.0, 0.9)
        assert torch.equal(problem.tensor, problem.seen[3])

    def test_candidates_lie_at_scale_times_backtrack_to_the_j(self) -> None:
        problem = Scripted([BAD] * 3 + [GOOD])
        result = update(problem, Options(max_kl=0.02, backtrack_coeff=0.5, lr=0.7))
        unit = torch.tensor([0.6, 0.8])
        for j, seen in enumerate(problem.seen):
            assert torch.allclose(seen, 0.7 * math.sqrt(0.04) * 0.5**j * unit)
        # x = (F + dI)^-1 g = g here, of length 5
        assert result.step_size == pytest.approx(0.7 * math.sqrt(0.04) * 0.5**3 / 5)

    def test_pitfall_17_inexact_products_do_not_set_the_length_by_g_x(self) -> None:
        # A solver whose x'(F + dI)x is not g.x, as with low-precision products.
        problem = Scripted([GOOD], quadratic=4.0)
        update(problem, Options(max_kl=0.02))
        unit = torch.tensor([0.6, 0.8])
        assert torch.allclose(problem.seen[0], math.sqrt(2 * 0.02 / 4.0) * unit)

    def test_pitfall_06_expected_improvement_is_not_shrunk_twice(self) -> None:
        problem = Scripted([BAD] * 4 + [GOOD])
        result = update(problem, Options())
        # step_size * g.x with g.x = 25
        assert result.expected_improvement == pytest.approx(result.step_size * 25.0)
        assert result.actual_improvement == pytest.approx(0.1)

    def test_pitfall_15_a_kl_barely_above_the_bound_is_refused(self) -> None:
        problem = Scripted([(0.5, 0.0101), (0.5, 0.010000001), (0.6, 0.01)])
        result = update(problem, Options(max_kl=0.01))
        assert result.accepted
        assert result.backtracks == 2
        assert result.kl == 0.01

    def test_pitfall_15_an_unchanged_surrogate_is_no_improvement(self) -> None:
        problem = Scripted([(1.0, 0.001), (1.0, 0.001), (0.999, 0.001)])
        assert update(problem, Options()).backtracks == 2

    def test_pitfall_20_a_failed_search_reports_kl_0_and_restores(self) -> None:
        problem = Scripted([FAR] * 11)
        before = problem.tensor.clone()
        result = update(problem, Options())
        assert result.status is Status.line_search_failed
        assert not result.accepted
        assert (result.kl, result.step_size, result.actual_improvement) == (0.0, 0.0, 0.0)
        assert result.loss_after == result.loss_before == 1.0
        assert len(problem.seen) == 11
        assert torch.equal(problem.tensor, before)

    @pytest.mark.parametrize("constraint", ["hard", "penalty"])
    def test_pitfall_05_what_is_no_kl_is_refused(self, constraint: str) -> None:
        problem = Scripted([(0.5, -0.5)] * 3 + [(0.5, -1e-9)])
        result = update(problem, Options(constraint=constraint))
        assert result.backtracks == 3

    def test_accept_ratio(self) -> None:
        # expected at j = 0: sqrt(2 * 0.01) * 5
        expected = math.sqrt(0.02) * 5
        candidates = [(1 - 0.4 * expected, 0.001), (1 - 0.6 * 0.8 * expected, 0.001)]
        assert update(Scripted(list(candidates)), Options(accept_ratio=0.5)).backtracks == 1
        assert update(Scripted(list(candidates)), Options(accept_ratio=0.3)).backtracks == 0

    def test_all_candidates_not_finite(self) -> None:
        result = update(Scripted([NAN] * 11), Options())
        assert result.status is Status.non_finite

    def test_max_backtracks_0_tries_one_candidate(self) -> None:
        problem = Scripted([BAD, GOOD])
        assert update(problem, Options(max_backtracks=0)).status is Status.line_search_failed
        assert len(problem.seen) == 1

    @pytest.mark.parametrize("loss", [math.nan, math.inf])
    def test_a_loss_that_is_not_finite(self, loss: float) -> None:
        assert update(Scripted([GOOD], loss=loss), Options()).status is Status.non_finite

    def test_a_gradient_that_is_not_finite(self) -> None:
        problem = Scripted([GOOD], g=torch.tensor([1.0, math.nan]))
        assert update(problem, Options()).status is Status.non_finite

    def test_zero_gradient(self) -> None:
        problem = Scripted([GOOD], g=torch.zeros(2))
        result = update(problem, Options())
        assert result.status is Status.zero_gradient
        assert problem.seen == []

    def test_lr_0_is_an_exact_no_op(self) -> None:
        problem = Scripted([GOOD])
        assert update(problem, Options(lr=0.0)).status is Status.zero_step
        assert problem.seen == []

    def test_negative_curvature_at_once(self) -> None:
        problem = Scripted([GOOD], quadratic=-1.0)
        assert update(problem, Options()).status is Status.negative_curvature

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
            update(problem, Options())
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


@every_backend
@every_case
def test_the_promise_over_200_seeds(backend: str, case: Case) -> None:
    """Accepted inside the region with a better surrogate, or every bit as before."""
    accepted = 0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        policy = make_policy(case, hidden=(6,), dtype=torch.float32, seed=seed)
        data = make_data(policy, case, rows=16, seed=seed, weighted=seed % 3 == 0)
        # From well-behaved to absurd, so that both outcomes are met.
        scale = 10.0 ** float(torch.randint(-6, 7, (), generator=generator))
        data["advantages"] = data["advantages"] * scale
        noise = torch.randn(16, generator=generator)
        data["old_log_prob"] = data["old_log_prob"] + 0.3 * noise
        max_kl = 10.0 ** float(torch.randint(-5, 1, (), generator=generator))
        direction = "old_new" if seed % 2 else "new_old"
        opt = optimizer(
            policy,
            backend,
            max_kl=max_kl,
            kl_direction=direction,
            damping=[0.0, 1e-3, 0.1][seed % 3],
            max_backtracks=seed % 5,
            fisher_fraction=[1.0, 0.3][seed % 2],
        )
        old, before = old_distribution(policy, data), bits(policy)
        loss_before = float(loss_and_kl(policy, data, old)[0].detach())
        opt.step(**data)
        result = opt.last_result
        assert result is not None
        if result.accepted:
            accepted += 1
            loss, kl = (float(t.detach()) for t in loss_and_kl(policy, data, old, direction))
            assert kl <= max_kl * (1 + 1e-5)
            assert loss <= loss_before + 1e-6 * abs(loss_before)
            assert result.loss_after < result.loss_before
            # The figures reported are those measured again from the definition.
            assert result.kl == pytest.approx(kl, rel=1e-3, abs=1e-9)
            assert result.loss_after == pytest.approx(loss, rel=1e-4, abs=1e-5 * scale)
            assert not same_bits(policy, before)
        else:
            assert same_bits(policy, before)
            assert result.kl == 0.0
    assert 50 < accepted < 200  # both outcomes are met


@every_backend
def test_pitfall_01_kl_is_joint_not_averaged_over_action_dims(backend: str) -> None:
    # Eight copies of one action dimension: the joint KL is 8 times that of one.
    from gymnasium import spaces

    kls = []
    for width in (1, 8):
        case = Case("box", spaces.Box(-1.0, 1.0, (width,)), {})
        policy = make_policy(case, hidden=(4,))
        with torch.no_grad():
            last = policy.body[-1]
            last.weight[:] = last.weight[:1].clone()
            last.bias[:] = last.bias[:1].clone()
        data = make_data(policy, case)
        old = old_distribution(policy, data)
        opt = optimizer(policy, backend, max_kl=0.01)
        opt.step(**data)
        assert opt.last_result is not None
        assert opt.last_result.accepted
        normal = policy(data["obs"]).base_dist
        per_dimension = torch.distributions.kl_divergence(old.base_dist, normal)
        assert opt.last_result.kl == pytest.approx(float(per_dimension.sum(1).mean().detach()))
        kls.append(opt.last_result.kl)
    assert all(0.003 < kl <= 0.01 for kl in kls)


@every_backend
def test_pitfall_04_one_fisher_subsample_a_step_and_no_random_numbers(backend: str) -> None:
    case, results = BY_NAME["gaussian"], []
    for seed in (0, 123):
        torch.manual_seed(seed)
        policy = make_policy(case)
        data = make_data(policy, case, rows=60)
        opt = optimizer(policy, backend, fisher_fraction=0.25)
        opt.step(**data)
        results.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    assert torch.equal(*results)


@every_backend
def test_pitfall_14_kl_and_improvement_are_judged_on_the_whole_batch(backend: str) -> None:
    case = BY_NAME["gaussian"]
    policy = make_policy(case)
    data = make_data(policy, case, rows=60)
    # The subsample's rows are quiet ones; elsewhere the policy is a hundred times as sensitive.
    data["obs"][1::2] *= 100
    data["obs"][::2] *= 0.01
    old = old_distribution(policy, data)
    opt = optimizer(policy, backend, fisher_fraction=0.5, max_backtracks=40)
    opt.step(**data)
    result = opt.last_result
    assert result is not None
    assert result.accepted
    assert result.kl == pytest.approx(float(loss_and_kl(policy, data, old)[1].detach()), rel=1e-6)
    assert result.kl <= 0.01


@every_backend
@pytest.mark.parametrize("cg_iters", [1, 2, 5])
def test_pitfall_17_the_step_length_comes_from_the_damped_quadratic_form(
    backend: str, cg_iters: int
) -> None:
    case = BY_NAME["gaussian_state_std"]
    policy = make_policy(case)
    data = make_data(policy, case)
    F = dense_fisher(policy, data)
    theta = torch.cat([p.detach().flatten() for p in policy.parameters()])
    opt = optimizer(policy, backend, cg_iters=cg_iters, cg_tol=0.0, damping=0.3, max_kl=1e-3)
    opt.step(**data)
    result = opt.last_result
    assert result is not None
    assert result.accepted
    now = torch.cat([p.detach().flatten() for p in policy.parameters()])
    step = (now - theta) / 0.8**result.backtracks
    A = F + 0.3 * torch.eye(len(F), dtype=torch.float64)
    assert float(0.5 * step @ A @ step) == pytest.approx(1e-3, rel=1e-6)


@every_backend
def test_pitfall_19_a_step_consumes_no_random_numbers(backend: str) -> None:
    for case in CASES:
        policy = make_policy(case)
        data = make_data(policy, case)
        opt = optimizer(policy, backend)
        state = torch.get_rng_state()
        opt.step(**data)
        assert torch.equal(torch.get_rng_state(), state)


@every_backend
def test_pitfall_22_one_row_and_constant_advantages_give_no_nan(backend: str) -> None:
    for case in CASES:
        for rows in (1, 12):
            policy = make_policy(case, dtype=torch.float32)
            data = make_data(policy, case, rows=rows)
            data["advantages"] = torch.full((rows,), 1.5)
            opt = optimizer(policy, backend)
            loss = opt.step(**data)
            assert float(loss) == pytest.approx(-1.5, rel=1e-5)
            assert all(torch.isfinite(p).all() for p in policy.parameters())
            assert opt.last_result is not None
            assert math.isfinite(opt.last_result.kl)


def test_pitfall_24_kl_and_its_gradient_are_0_before_the_update() -> None:
    for case in CASES:
        policy = make_policy(case)
        data = make_data(policy, case)
        _, kl = loss_and_kl(policy, data, old_distribution(policy, data))
        slopes = torch.autograd.grad(kl, list(policy.parameters()))
        assert abs(float(kl.detach())) < 1e-15
        assert max(float(slope.abs().max()) for slope in slopes) < 1e-15


def test_results_are_the_same_bits_every_time() -> None:
    for backend in BACKENDS:
        found = []
        for _ in range(2):
            policy = make_policy(BY_NAME["multi_categorical"], dtype=torch.float32)
            data = make_data(policy, BY_NAME["multi_categorical"], rows=300)
            optimizer(policy, backend).step(**data)
            found.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
        assert torch.equal(*found)


def test_strided_rows() -> None:
    device = torch.device("cpu")
    assert strided_rows(10, 1.0, device).tolist() == list(range(10))
    assert strided_rows(10, 0.5, device).tolist() == [0, 2, 4, 6, 8]
    assert strided_rows(7, 0.01, device).tolist() == [0]
    assert strided_rows(7, 0.4, device).tolist() == [0, 2, 4]
    # Beyond 32 bits.
    assert strided_rows(3_000_000_000, 1e-9, device).tolist()[-1] > 2**30


def test_weighted_mean_ignores_rows_of_weight_0() -> None:
    values = torch.tensor([1.0, math.nan, 3.0, math.inf])
    weights = torch.tensor([1.0, 0.0, 3.0, 0.0])
    assert float(weighted_mean(values, weights)) == 2.5
