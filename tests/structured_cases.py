"""Environments whose observations are nested, and what the tests expect of them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Pictures(gym.Env[Any, Any]):
    """The action is to name the column of a bright bar; everything else is noise."""

    observation_space: spaces.Space[Any] = spaces.Dict(
        picture=spaces.Box(0, 255, (6, 6, 2), np.uint8),
        body=spaces.Dict(
            speed=spaces.Box(-np.inf, np.inf, (2,), np.float64),
            gear=spaces.Discrete(4, start=2),
        ),
        rest=spaces.Tuple([spaces.MultiBinary(3), spaces.MultiDiscrete([2, 3])]),
    )
    action_space = spaces.Discrete(3)

    def __init__(self, poison: int | None = None, length: int = 6) -> None:
        self.poison, self.length = poison, length

    def _shown(self) -> dict[str, Any]:
        rng = self.np_random
        self.bar = int(rng.integers(3))
        picture = rng.integers(0, 60, (6, 6, 2)).astype(np.uint8)
        picture[:, 2 * self.bar] = 250
        speed = rng.normal(100, 5, 2)
        if self.time == self.poison:
            speed[1] = np.nan
        return {
            "picture": picture,
            "body": {"speed": speed, "gear": int(rng.integers(2, 6))},
            "rest": (rng.integers(0, 2, 3).astype(np.int8), rng.integers(0, (2, 3))),
        }

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._shown(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        reward = float(action == self.bar)
        return self._shown(), reward, self.time >= self.length, False, {}


class Picture(Pictures):
    """The picture alone."""

    observation_space = Pictures.observation_space["picture"]  # type: ignore[index]

    def _shown(self) -> Any:
        return super()._shown()["picture"]


def nested(size: int | None = None, seed: int = 0) -> Any:
    """Observations of `Pictures`, a batch of ``size`` or a single one."""
    env = Pictures()
    shown = [env.reset(seed=seed + i)[0] for i in range(size or 1)]
    return shown[0] if size is None else stacked(shown)


def stacked(observations: list[Any]) -> Any:
    """A list of nested observations as one batch, as gymnasium's vectors stack them."""
    first = observations[0]
    if isinstance(first, dict):
        return {key: stacked([o[key] for o in observations]) for key in first}
    if isinstance(first, tuple):
        return tuple(stacked([o[i] for o in observations]) for i in range(len(first)))
    return np.stack([np.asarray(o) for o in observations])
