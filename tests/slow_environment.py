"""An environment whose steps take a while, registered on import: slow_environment:Slow-v0."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
from toy_environments import Walk


class Slow(Walk):
    """A random walk, at `pause` seconds a step."""

    def __init__(self, pause: float = 0.01, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.pause = pause

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(self.pause)
        return super().step(action)


gym.register("Slow-v0", entry_point=Slow)
