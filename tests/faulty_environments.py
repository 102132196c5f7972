"""Environments that misbehave on purpose, registered on import for the command line."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from toy_environments import Walk


class Faulty(Walk):
    """A random walk that goes wrong at step `at` of its life: `fault` says how."""

    def __init__(self, fault: str = "none", at: int = 50, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.fault = fault
        self.at = at
        self.life = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        self.life += 1
        if self.life == self.at:
            if self.fault == "raise":
                raise ZeroDivisionError("broken on purpose")
            if self.fault == "observation":
                observation = observation * np.nan
                terminated = truncated = False
            if self.fault == "reward":
                reward = float("nan")
        return observation, reward, terminated, truncated, info


gym.register("Faulty-v0", entry_point=Faulty)
