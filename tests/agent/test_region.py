"""What the agent's ``max_kl`` is for, and how much of it a rollout gets."""

from __future__ import annotations

from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from agent_cases import small
from gymnasium import spaces
from torch import Tensor, nn
from toy_environments import Walk

from trpo_fast import TRPO, TRPOOptimizer
from trpo_fast.agent.config import OPTIONS
from trpo_fast.agent.older_files import current_options
from trpo_fast.agent.region import LEAST, region_share, scaled_region
from trpo_fast.networks.mlp import MlpPolicy


@pytest.mark.parametrize(("per", "bound"), [("dimension", 0.02), ("action", 0.01)])
def test_the_bound_of_the_joint_action(per: str, bound: float) -> None:
    with small(Walk, max_kl=0.01, max_kl_per=per, shrink_max_kl=False) as agent:
        agent.learn(256, progress_bar=False)
        assert agent.optimizer.param_groups[0]["max_kl"] == pytest.approx(bound)
        assert agent.config.max_kl == 0.01
        result = agent.optimizer.last_result
        assert 0 < result.kl <= bound
        assert result.region_used == pytest.approx(result.kl / bound)


def test_one_choice_is_one_dimension() -> None:
    assert OPTIONS["max_kl_per"].default == "dimension"
    with small("CartPole-v1") as agent:
        assert agent.optimizer.param_groups[0]["max_kl"] == 0.01


def test_a_loaded_agent_has_the_same_bound_and_a_new_one_is_for_each_dimension(
    tmp_path: Path,
) -> None:
    with small(Walk, max_kl=0.01) as agent:
        agent.learn(64, progress_bar=False)
        path = agent.save(tmp_path / "agent")
    for changes, bound in (({}, 0.02), ({"max_kl": 0.03}, 0.06)):
        with TRPO.load(path, env=Walk, **changes) as loaded:
            loaded.learn(64, progress_bar=False)
            assert loaded.optimizer.param_groups[0]["max_kl"] == pytest.approx(bound)


def test_it_cannot_change_when_a_run_is_resumed() -> None:
    """The bound that the optimizer has would not follow."""
    assert OPTIONS["max_kl_per"].fixed


class Wrong(nn.Module):
    """A critic whose errors vary more than any returns."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(30.0))

    def forward(self, obs: Tensor) -> Tensor:
        return self.scale * torch.sin(40 * obs.sum(-1))


def an_optimizer(**options: Any) -> TRPOOptimizer:
    return TRPOOptimizer(
        MlpPolicy(spaces.Box(-1, 1, (2,)), spaces.Discrete(2)), max_kl=0.01, **options
    )


@pytest.mark.parametrize(
    ("explained", "share"),
    [
        (0.9, 1),
        (0.0, 1),
        (-1.0, 1 / 4),
        (-9.0, 1 / 100),
        (-1e9, LEAST),
        (-1e200, LEAST),
        (None, LEAST),
    ],
)
def test_the_share_of_the_region_is_the_square_of_how_much_returns_vary_of_advantages(
    explained: float | None, share: float
) -> None:
    assert region_share(an_optimizer(), explained) == pytest.approx(share)


def test_what_has_no_region_or_no_number_shrinks_nothing() -> None:
    assert region_share(an_optimizer(constraint="penalty"), -9.0) == 1
    assert region_share(an_optimizer(constraint="none"), -9.0) == 1
    assert region_share(an_optimizer(), nan) == 1
    assert region_share(an_optimizer(), -inf) == LEAST


def test_the_region_is_whole_again_after_a_step_that_raised() -> None:
    optimizer = an_optimizer()
    within = []

    def stopped() -> None:
        with scaled_region(optimizer, 0.25):
            within.append(optimizer.param_groups[0]["max_kl"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert within == [0.0025]
    assert optimizer.param_groups[0]["max_kl"] == 0.01


@pytest.mark.parametrize("shrinks", [True, False])
def test_steps_stay_within_the_share_that_the_log_tells(shrinks: bool) -> None:
    rows: list[dict[str, Any]] = []

    def note(local: dict[str, Any], _: dict[str, Any]) -> None:
        rows.append(local["row"])

    with small(Walk, max_kl=0.01, value_function=Wrong(), shrink_max_kl=shrinks) as agent:
        agent.learn(256, note, progress_bar=False)
        assert agent.optimizer.param_groups[0]["max_kl"] == pytest.approx(0.02)
    shares = [row["train/max_kl"] / 0.02 for row in rows]
    explained = [row["train/explained_variance"] for row in rows]
    assert min(explained) < -1
    expected = [min(1, 1 / (1 - each)) ** 2 if shrinks else 1 for each in explained]
    assert shares == pytest.approx([max(each, LEAST) for each in expected])
    for row in rows:
        assert row["train/kl"] <= row["train/max_kl"]
        if row["train/accepted"]:
            assert row["train/region_used"] == pytest.approx(row["train/kl"] / row["train/max_kl"])
    assert any(row["train/accepted"] for row in rows)


def test_runs_of_before_go_on_without() -> None:
    assert OPTIONS["shrink_max_kl"].default is True
    assert current_options({"max_kl": 0.01})["shrink_max_kl"] is False
    assert current_options({"shrink_max_kl": True})["shrink_max_kl"] is True
