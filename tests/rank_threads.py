"""CartPole whose process notes at its end which threads it has left."""

from __future__ import annotations

import atexit
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.classic_control.cartpole import CartPoleEnv


class NotingCartPole(CartPoleEnv):
    """A rank writes its threads' names into ``place`` when its interpreter begins to end."""

    def __init__(self, place: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        atexit.register(note_threads, Path(place) / os.environ["RANK"])


def note_threads(file: Path) -> None:
    """The names of this process's threads, a line each."""
    names = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir()]
    file.write_text("".join(names))


gym.register("Noting-v0", entry_point=NotingCartPole, max_episode_steps=100)
