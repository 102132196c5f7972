"""Where one observation does not tell the state: a policy that remembers its episode.

``python examples/memory.py`` balances CartPole without seeing a velocity; ``--policy mlp`` shows
what comes of it without a memory.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from trpo_fast import TRPO, FallbackWarning


class Positions(gym.ObservationWrapper[Any, Any, Any]):
    """Place of the cart and angle of the pole, without how they change."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observation(self, observation: Any) -> Any:
        """The two positions of CartPole's four numbers."""
        return observation[[0, 2]]


def main() -> None:
    """Read the options, train, act with the memory carried by hand."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--policy", choices=["recurrent", "mlp"], default="recurrent")
    parser.add_argument("--cell", choices=["lstm", "gru"], default="lstm")
    options = parser.parse_args()
    warnings.simplefilter("ignore", FallbackWarning)
    kind = {"policy": options.policy, "cell": options.cell}
    with TRPO(lambda: Positions(gym.make("CartPole-v1")), seed=0, **kind) as agent:
        agent.learn(options.steps, progress_bar=False)
        print(f"score: {agent.evaluate(10, progress_bar=False)[0]:.0f} of 500")
        env = Positions(gym.make("CartPole-v1"))
        observation, _ = env.reset(seed=1)
        state, total, over = None, 0.0, False
        while not over:  # the state that predict gives is for the next call
            action, state = agent.predict(observation, state)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        print(f"an episode by hand: {total:.0f}")


if __name__ == "__main__":
    main()
