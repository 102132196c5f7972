"""Options that adapt themselves between steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from update_cases import BY_NAME, make_data, make_policy

from trpo_fast import TRPOOptimizer
from trpo_fast.optimizer.adaptation import DAMPING_RANGE, adapted_damping
from trpo_fast.update.options import Options
from trpo_fast.update.result import Status, TrustRegionResult

GAUSSIAN = BY_NAME["gaussian"]
GOOD = TrustRegionResult(
    status=Status.accepted,
    accepted=True,
    kl=0.004,
    loss_before=0.0,
    loss_after=-0.9,
    expected_improvement=1.0,
    actual_improvement=0.9,
    step_size=0.02,  # for a KL of 0.01, by the model with damping
    backtracks=0,
    cg_iters=3,
    cg_residual=0.1,
    gradient_norm=1.0,
    region_used=0.4,
    backend="reference",
)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 0.3 / 1.5),  # a good model, and a region hardly used
        ({"kl": 0.009}, 0.3),  # the region is used
        ({"kl": 0.0023, "step_size": 0.005}, 0.3),  # likewise, of the smaller one by lr=0.5
        ({"actual_improvement": 0.5}, 0.3),  # a middling model
        ({"actual_improvement": 0.1}, 0.3 * 1.5),
        ({"backtracks": 1}, 0.3 * 1.5),
        ({"accepted": False, "status": Status.line_search_failed}, 0.3 * 1.5),
        ({"accepted": False, "status": Status.negative_curvature}, 0.3 * 1.5),
        ({"accepted": False, "status": Status.zero_gradient}, 0.3),
        ({"accepted": False, "status": Status.zero_step}, 0.3),
    ],
)
def test_the_rule(change: dict[str, object], expected: float) -> None:
    result = replace(GOOD, **change)  # type: ignore[arg-type]
    options = Options(damping=0.3, step_size="damped")
    assert adapted_damping(options, result) == pytest.approx(expected)
    assert adapted_damping(replace(options, constraint="none"), result) == 0.3


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 0.3 / 1.5),  # a good model, of which damping is more than half
        ({"backtracks": 2}, 0.3 / 1.5),  # candidates may have become longer
        ({"step_size": 0.025}, 0.3),  # 0.0125 with damping, 0.0098 without
        ({"actual_improvement": 0.1}, 0.3 * 1.5),
        ({"accepted": False, "status": Status.line_search_failed}, 0.3 * 1.5),
    ],
)
def test_the_rule_at_the_boundary(change: dict[str, object], expected: float) -> None:
    result = replace(GOOD, **{"kl": 0.0098, "step_size": 0.05, **change})  # type: ignore[arg-type]
    options = Options(damping=0.3, step_size="boundary")
    assert adapted_damping(options, result) == pytest.approx(expected)


@pytest.mark.parametrize(("start", "change"), [(2e-6, {}), (90.0, {"backtracks": 3})])
def test_it_stays_in_its_range(start: float, change: dict[str, object]) -> None:
    options = Options(damping=start, step_size="damped")
    for _ in range(20):
        damping = adapted_damping(options, replace(GOOD, **change))  # type: ignore[arg-type]
        options = replace(options, damping=damping)
    assert options.damping in DAMPING_RANGE


def test_zero_damping_can_rise() -> None:
    assert adapted_damping(Options(damping=0.0), replace(GOOD, actual_improvement=0.1)) > 0


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_optimizer_changes_it_in_the_group_and_saves_it(adaptive: bool) -> None:
    policy = make_policy(GAUSSIAN, dtype=torch.float32)
    opt = TRPOOptimizer(policy, damping=5.0, adaptive_damping=adaptive)
    for seed in range(4):
        opt.step(**make_data(policy, GAUSSIAN, rows=400, seed=seed))
    damping = opt.param_groups[0]["damping"]
    assert (damping < 5.0) == adaptive
    other = TRPOOptimizer(make_policy(GAUSSIAN, dtype=torch.float32))
    other.load_state_dict(opt.state_dict())
    assert other.param_groups[0]["damping"] == damping
