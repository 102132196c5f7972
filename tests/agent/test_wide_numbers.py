"""Numbers whose digits float32 does not hold: normalised in the width they come in."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from agent_cases import small
from gymnasium import spaces

from trpo_fast.base.errors import EnvironmentFault

NOW = 1.7e9  # seconds since 1970; float32 holds multiples of 128 there


class Clock(gym.Env[Any, Any]):
    """Shows a clock near NOW; the reward is for the action that its last bit names."""

    action_space = spaces.Discrete(2)

    def __init__(self, dtype: Any = np.float64, nested: bool = False, offset: float = NOW) -> None:
        box = spaces.Box(-np.inf, np.inf, (1,), dtype) if dtype == np.float64 else None
        box = box or spaces.Box(0, 2**62, (1,), dtype)
        self.observation_space = spaces.Dict(a=spaces.Discrete(2), t=box) if nested else box
        self.nested, self.offset, self.dtype = nested, offset, dtype

    def _shown(self) -> Any:
        self.bit = int(self.np_random.integers(2))
        clock = np.array([self.offset + 20 * self.bit], self.dtype)
        return {"a": 0, "t": clock} if self.nested else clock

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._shown(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(action == self.bit)
        self.time += 1
        return self._shown(), reward, False, self.time >= 10, {}


@pytest.mark.reliability("clock")
@pytest.mark.parametrize("vectorization", ["sync", "async", "workers"])
@pytest.mark.parametrize("dtype", [np.float64, np.int64])
@pytest.mark.parametrize("nested", [False, True])
def test_a_clock_is_learnt_from_as_a_small_number_is(
    vectorization: str, dtype: Any, nested: bool
) -> None:
    """It cannot be when the feature is constant: chance is 5 of 10."""
    options = {"num_envs": 2, "rollout_steps": 128, "vectorization": vectorization, "max_kl": 0.05}
    with small(lambda: Clock(dtype, nested), **options) as agent:
        agent.learn(256 * 15, progress_bar=False)
        statistics = agent.learner.normalizer.statistics
        place = 2 if nested else 0
        assert statistics.mean[place] == pytest.approx(NOW + 10, abs=1)
        assert statistics.std[place] == pytest.approx(10, rel=0.05)
        assert agent.evaluate(5)[0] > 9
        for bit in (0, 1):
            clock = np.array([NOW + 20 * bit], dtype)
            action, _ = agent.predict({"a": 0, "t": clock} if nested else clock)
            assert action == bit


@pytest.mark.reliability("clock")
def test_every_way_of_choosing_sees_the_same_clock(monkeypatch: Any) -> None:
    """Natively, in torch, and by a policy that samples for itself: the same statistics."""
    from trpo_fast.rollouts import samplers

    seen = []
    for kind in ("native", "torch"):
        if kind == "torch":
            monkeypatch.setattr(samplers, "NativeSampler", samplers.NetworkSampler)
        with small(Clock) as agent:
            agent.learn(192, progress_bar=False)
            rollout = agent.collector.collect(
                agent.policy, agent.learner.normalizer, 32, np.random.default_rng(0)
            )
            shown = agent.learner.as_shown(rollout).observations
            assert shown.dtype.is_floating_point
            assert shown.element_size() == 4
            assert sorted(set(shown.round().flatten().tolist())) == [-1, 1]
            seen.append((rollout.actions.tolist(), rollout.observations.tolist()))
    assert seen[0] == seen[1]


class Bandit(gym.Env[Any, Any]):
    """One step; the reward is 1e9, and 10 more for action 1."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)
    base = 1e9

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), self.base + 10.0 * int(action), True, False, {}


@pytest.mark.reliability("large_rewards")
def test_small_differences_of_large_rewards_are_learnt_from() -> None:
    """float32 holds multiples of 64 there."""
    with small(Bandit, normalize_rewards=False, critic_epochs=0) as agent:
        agent.learn(64 * 4, progress_bar=False)
        assert agent.predict(np.zeros(1, np.float32))[0] == 1
        assert agent.evaluate(1)[0] == 1e9 + 10


@pytest.mark.parametrize("value", [1e39, -1e300])
def test_what_is_beyond_float32_is_a_fault_still(value: float) -> None:
    class Large(Clock):
        def _shown(self) -> Any:
            return super()._shown() * 0 + value

    with (
        small(Large) as agent,
        pytest.raises(EnvironmentFault, match="observation at its reset"),
    ):
        agent.learn(64, progress_bar=False)
