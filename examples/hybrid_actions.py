"""An action with parts: which bin, and where to put the arm; one trust region holds for both.

``python examples/hybrid_actions.py`` trains the agent on a task that pays for neither part alone.
"""

from __future__ import annotations

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from trpo_fast import TRPO

STEPS = 10


class Sorting(gym.Env[Any, Any]):
    """Each step shows a place and a bin; the reward, at most 1, is for the right one of both."""

    observation_space = spaces.Dict(
        {"place": spaces.Box(-1, 1, (2,), np.float32), "bin": spaces.Discrete(3)}
    )
    action_space = spaces.Dict(
        {"arm": spaces.Box(-1, 1, (2,), np.float32), "bin": spaces.Discrete(3)}
    )

    def _shown(self) -> dict[str, Any]:
        self.place = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        self.bin = self.np_random.integers(3)
        return {"place": self.place, "bin": self.bin}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        del options
        super().reset(seed=seed)
        self.time = 0
        return self._shown(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Pay for what was put where."""
        near = max(0.0, 1.0 - float(np.square(action["arm"] - self.place).sum()))
        reward = near * float(action["bin"] == self.bin)
        self.time += 1
        return self._shown(), reward, False, self.time == STEPS, {}


def main() -> None:
    """Read the options, train, print what an episode pays before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60_000)
    options = parser.parse_args()
    with TRPO(Sorting, seed=0) as agent:
        print(f"before: {agent.evaluate(20, progress_bar=False)[0]:.2f} of {STEPS}")
        agent.learn(options.steps, progress_bar=False)
        print(f"after: {agent.evaluate(20, progress_bar=False)[0]:.2f} of {STEPS}")
        print(
            "an action:", agent.predict({"place": np.array([0.5, -0.5], np.float32), "bin": 2})[0]
        )


if __name__ == "__main__":
    main()
