"""Environments whose episodes end on time, and trainings on them that are saved at every turn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from toy_environments import BOTH, TERMINATED, TRUNCATED

from trpo_fast import TRPO
from trpo_fast.agent.state import state_of
from trpo_fast.environments.seeded_episodes import episode_seed

ENDS = (TERMINATED, TRUNCATED, BOTH)
MIXED = 0  # as a length: each episode's own, from 1 to 6
LENGTHS = ROLLOUTS = range(1, 7)
TINY: dict[str, Any] = {
    "hidden_sizes": (2,),
    "value_hidden_sizes": (2,),
    "critic_epochs": 1,
    "critic_batch_size": 32,
    "seed": 5,
    "keep_checkpoints": 99,
}


class Clockwork(gym.Env[Any, Any]):
    """Episodes of `length` steps that end in one way; seed and actions decide everything else.

    `poison` spoils the episodes of the seeds in `poisoned`: the "reward" or the "observation" of
    one step is NaN, or the first observation ("reset").
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)

    def __init__(
        self,
        length: int = 3,
        end: str = TERMINATED,
        poison: str = "",
        poisoned: Collection[int] = (),
        action_space: spaces.Space[Any] | None = None,
    ) -> None:
        self.length = length
        self.end = end
        self.poison = poison
        self.poisoned = poisoned
        self.action_space = action_space or spaces.Discrete(3)

    def _observation(self, poisoned: bool) -> Any:
        observation = np.array([self.start, self.time, self.pushed])
        return observation * np.nan if poisoned else observation

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.start = self.np_random.normal()
        self.time = 0
        self.pushed = 0.0
        self.over_at = self.length or int(self.np_random.integers(1, 7))
        spoiled = seed in self.poisoned
        self.spoiled_at = int(self.np_random.integers(1, self.over_at + 1)) if spoiled else -1
        return self._observation(spoiled and self.poison == "reset"), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        self.pushed += float(np.sum(action)) + 0.1 * self.np_random.normal()
        over = self.time == self.over_at
        now = self.time == self.spoiled_at
        return (
            self._observation(now and self.poison == "observation"),
            float("nan") if now and self.poison == "reward" else self.pushed - self.start,
            over and self.end != TRUNCATED,
            over and self.end != TERMINATED,
            {},
        )


def one_after_the_other(*makers: Callable[[], Any]) -> Callable[[], Any]:
    """A function that makes these environments, one at each call."""
    turns = itertools.cycle(makers)

    def make() -> Any:
        return next(turns)()

    return make


def clockworks(length: int, ends: tuple[str, ...]) -> Callable[[], Any]:
    """A function that makes environments of this length, each of its own way to end."""
    return one_after_the_other(*(lambda end=end: Clockwork(length, end) for end in ends))


def spoiled(index: int, length: int, end: str, poison: str) -> Callable[[], Any]:
    """A function that makes environment `index`, every other episode of which is spoiled."""
    # Never two in a row: a training stops where a second reset is no better than the first.
    poisoned = {episode_seed(TINY["seed"], index, episode) for episode in range(0, 99, 2)}
    return lambda: Clockwork(length, end, poison, poisoned)


class Bomb:
    """Stands for the vector's step, and raises in its call of a certain number."""

    def __init__(self, step: Callable[..., Any], call: int, error: type[BaseException]) -> None:
        self.step = step
        self.left = call
        self.error = error

    def __call__(self, actions: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error("on purpose")
        return self.step(actions)


def moment(agent: TRPO) -> dict[str, Any]:
    """The agent's state but for the wall clock."""
    state = state_of(agent.training)
    del state["progress"]["time_elapsed"]
    return state


def uninterrupted(
    env: Any, updates: int, run_dir: Path | None = None, **options: Any
) -> list[dict[str, Any]]:
    """The moments of a training: before its first update and after each one."""
    with TRPO(env, run_dir=run_dir, **(TINY | options)) as agent:
        moments = [moment(agent)]
        train(agent, updates, lambda *_: moments.append(moment(agent)))
    return moments


def train(agent: TRPO, updates: int, callback: Any = None) -> None:
    """Train for a number of updates, however many transitions each of them has."""
    last = agent.progress.num_updates + updates

    def stop(local: Any, names: Any) -> bool:
        if callback is not None:
            callback(local, names)
        return agent.progress.num_updates < last

    if updates:
        agent.learn(10**6, stop, progress_bar=False)
