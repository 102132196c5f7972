"""CartPole in which one rank kills its process, once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

STEPS = 40  # of the environment that dies


class DyingCartPole(CartPoleEnv):
    """Its process is killed at a step, on rank 1, while ``marker`` is not there.

    With ``machine`` the torchrun that started it, too.
    """

    def __init__(self, marker: str = "", machine: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._marker, self._machine, self._steps = Path(marker), machine, 0

    def step(self, action: Any) -> Any:
        self._steps += 1
        dies = os.environ.get("RANK") == "1" and self._steps == STEPS
        if dies and not self._marker.exists():
            self._marker.touch()
            if self._machine:
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


gym.register("Dying-v0", entry_point=DyingCartPole, max_episode_steps=100)
