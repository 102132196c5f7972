"""What the agent's ``max_kl`` is for: each action dimension, or the whole action."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent_cases import small
from toy_environments import Walk

from trpo_fast import TRPO
from trpo_fast.agent.config import OPTIONS


@pytest.mark.parametrize(("per", "bound"), [("dimension", 0.02), ("action", 0.01)])
def test_the_bound_of_the_joint_action(per: str, bound: float) -> None:
    with small(Walk, max_kl=0.01, max_kl_per=per) as agent:
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
