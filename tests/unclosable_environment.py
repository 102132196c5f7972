"""An environment that cannot be closed: unclosable_environment:Unclosable-v0."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
from slow_environment import FOREVER
from toy_environments import Walk


class Unclosable(Walk):
    """A random walk that, once it has walked, raises or hangs in close(); or in step(), too."""

    def __init__(self, instead: str, fault_at: int = 0) -> None:
        super().__init__()
        self.instead = instead
        self.fault_at = fault_at
        self.steps = 0
        self.walked = False

    def step(self, action: Any) -> Any:
        self.walked = True
        self.steps += 1
        if self.steps == self.fault_at:
            raise ZeroDivisionError("a fault of the environment's")
        return super().step(action)

    def close(self) -> None:
        if self.walked and self.instead == "raise":
            raise ZeroDivisionError("no way out")
        if self.walked and self.instead == "exit":
            raise SystemExit("no way out")
        if self.walked and self.instead == "hang":
            time.sleep(FOREVER)


gym.register("Unclosable-v0", entry_point=Unclosable)
