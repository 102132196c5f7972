"""Vector environments that do not say what they do: told by what they give."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.environments.make import make_vector_env

LENGTH = 3


class Counter(gym.Env[Any, Any]):
    """Observes the number of its step; truncated after LENGTH."""

    observation_space = spaces.Box(-100, 100, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, late_mask: bool = False) -> None:
        self.late_mask, self.steps = late_mask, 0

    def reset(self, **_: Any) -> Any:
        self.steps = 0
        return self._now(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        info = {"action_mask": np.array([True, False])} if self.late_mask else {}
        return self._now(), 1.0, False, self.steps == LENGTH, info

    def _now(self) -> Any:
        return np.array([self.steps], np.float32)


def undeclared(mode: AutoresetMode, **keywords: Any) -> SyncVectorEnv:
    vector = SyncVectorEnv([lambda: Counter(**keywords)] * 2, autoreset_mode=mode)
    vector.metadata = {key: v for key, v in vector.metadata.items() if key != "autoreset_mode"}
    return vector


@pytest.mark.reliability("undeclared_autoreset")
@pytest.mark.filterwarnings("ignore:.*autoreset_mode")
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_final_observations_tell_the_convention(mode: AutoresetMode) -> None:
    env = make_vector_env(undeclared(mode), seed=0)
    out = np.zeros((2, 1), np.float32)
    env.reset(out)
    seen, masked = [], []
    for _ in range(2 * LENGTH + 2):
        transition = env.step(np.zeros(2, np.int64), out)
        if len(transition.final_envs):
            seen.append(transition.final_observations[:, 0].tolist())
        masked.append(bool(transition.resetting.any()))
    assert seen == [[LENGTH, LENGTH]] * 2
    assert env.autoreset_mode == mode
    assert any(masked) == (mode is AutoresetMode.NEXT_STEP)


@pytest.mark.reliability("late_mask")
def test_a_mask_that_comes_after_the_first_action_is_refused() -> None:
    vector = SyncVectorEnv([lambda: Counter(late_mask=True)] * 2)
    env = make_vector_env(vector, seed=0)
    out = np.zeros((2, 1), np.float32)
    env.reset(out)
    with pytest.raises(EnvironmentFault, match="at a step but gave none at reset"):
        env.step(np.zeros(2, np.int64), out)
