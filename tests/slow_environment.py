"""An environment that does not come back, registered on import: slow_environment:Stuck-v0."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gymnasium as gym
from toy_environments import Walk

# Longer than any test waits.
FOREVER = 36_000.0


class Stuck(Walk):
    """A random walk that stays in step `at` of its life, once the file `marker` says that it does.

    Where the file is there already, it walks on.
    """

    def __init__(self, marker: str, at: int, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.marker = Path(marker)
        self.at = at
        self.life = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.life += 1
        if self.life == self.at and not self.marker.exists():
            self.marker.touch()
            time.sleep(FOREVER)
        return super().step(action)


gym.register("Stuck-v0", entry_point=Stuck)
