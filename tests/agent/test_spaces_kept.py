"""What a space says, both ways: no action leaves it, no observation is bent to fit it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from agent_cases import small
from gymnasium import spaces
from torch import nn

from trpo_fast.networks.mlp import MlpPolicy

# 0.1 in float32 is more than 0.1.
TENTH = spaces.Box(-0.1, 0.1, (2,), np.float64)


class Strict(gym.Env[Any, Any]):
    """Raises where an action is not in the space; counts those on a bound."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = TENTH
    on_bound = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.action_space.contains(action):
            raise AssertionError(f"{action!r} is outside")
        Strict.on_bound += int((np.abs(action) == 0.1).sum())
        self.time += 1
        return np.zeros(1, np.float32), float(action[0]), False, self.time >= 8, {}


class Foreign(nn.Module):
    """A policy without a map of its own to the environment's actions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MlpPolicy(Strict.observation_space, TENTH, (4,))

    def forward(self, obs: Any) -> Any:
        return self.inner(obs)


@pytest.mark.reliability("float64_bounds")
@pytest.mark.parametrize("policy", ["native", "squashed", "foreign", "float64"])
def test_actions_on_a_bound_stay_in_a_float64_box(policy: str) -> None:
    Strict.on_bound = 0
    modules: dict[str, nn.Module] = {
        "foreign": Foreign(),
        "float64": MlpPolicy(Strict.observation_space, TENTH, (4,)).double(),
    }
    options: dict[str, Any] = {"distribution": "gaussian"}
    if policy == "squashed":
        options = {"distribution": "squashed", "log_std_init": 3.0}
    with small(Strict, policy=modules.get(policy), **options) as agent:
        agent.learn(64, progress_bar=False)
        agent.evaluate(2)
        last = agent.policy.inner.body[-1] if policy == "foreign" else agent.policy.body[-1]
        last.bias.data[:2] = 50.0
        agent.evaluate(1)
        for deterministic in (True, False):
            action, _ = agent.predict(np.zeros(1, np.float32), deterministic=deterministic)
            assert TENTH.contains(action)
            assert action.tolist() == [0.1, 0.1]
    assert Strict.on_bound > 20
