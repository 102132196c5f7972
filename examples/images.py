"""Pixels: the agent gives images to a convolutional policy as they are, uint8 all the way.

``python examples/images.py`` trains it to catch what falls; the network is chosen by the images'
size, and ``policy="auto"`` takes it for a space of images.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from trpo_fast import TRPO, FallbackWarning

SIDE = 8


class Catch(gym.Env[Any, Any]):
    """A ball falls, a paddle below moves left, stays or moves right: 1 for a catch, else -1."""

    observation_space = spaces.Box(0, 255, (SIDE, SIDE, 1), np.uint8)
    action_space = spaces.Discrete(3)

    def _frame(self) -> Any:
        frame = np.zeros((SIDE, SIDE, 1), np.uint8)
        frame[self.row, self.column] = 255
        frame[-1, self.paddle] = 128
        return frame

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Drop a ball."""
        del options
        super().reset(seed=seed)
        self.row, self.column = 0, int(self.np_random.integers(SIDE))
        self.paddle = SIDE // 2
        return self._frame(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move the paddle and let the ball fall by a row."""
        self.paddle = int(np.clip(self.paddle + int(action) - 1, 0, SIDE - 1))
        self.row += 1
        over = self.row == SIDE - 1
        reward = (1.0 if self.column == self.paddle else -1.0) if over else 0.0
        return self._frame(), reward, over, False, {}


def main() -> None:
    """Read the options, train, print how often the ball is caught."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40_000)
    options = parser.parse_args()
    warnings.simplefilter("ignore", FallbackWarning)
    with TRPO(Catch, seed=0) as agent:
        print(f"{type(agent.policy).__name__} on {agent.observation_space.shape} of uint8")
        agent.learn(options.steps, progress_bar=False)
        mean = agent.evaluate(100, progress_bar=False)[0]
        print(f"caught: {(1 + mean) / 2:.0%}")


if __name__ == "__main__":
    main()
