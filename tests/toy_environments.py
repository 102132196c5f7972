"""Tiny environments whose every observation, reward and ending is known in advance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

TERMINATED, TRUNCATED, BOTH = "terminated", "truncated", "both"
Script = Sequence[tuple[int, str]]


class Scripted(gym.Env[Any, Any]):
    """Episode k lasts script[k][0] steps and ends as script[k][1]; the script repeats.

    Observation [index, episode, step]; reward 10 * episode + step, step counted from 1.
    """

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space: spaces.Space[Any] = spaces.Discrete(2)

    def __init__(self, script: Script = ((3, TERMINATED),), index: int = 0) -> None:
        self.script = script
        self.index = index
        self.episode = -1
        self.time = 0
        self.seeds: list[int | None] = []
        self.actions: list[Any] = []

    def _observation(self) -> Any:
        return np.array([self.index, self.episode, self.time], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.episode += 1
        self.time = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        self.time += 1
        length, end = self.script[self.episode % len(self.script)]
        over = self.time >= length
        return (
            self._observation(),
            10.0 * self.episode + self.time,
            over and end != TRUNCATED,
            over and end != TERMINATED,
            {},
        )


class Walk(gym.Env[Any, Any]):
    """A random walk pushed by the action: seeds and actions decide everything."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def __init__(self, continuous: bool = True, length: int = 7) -> None:
        self.action_space = (
            spaces.Box(-1, 1, (2,), np.float32) if continuous else spaces.Discrete(3, start=-1)
        )
        self.length = length

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.normal(size=2)
        self.time = 0
        return self.position.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        self.position = self.position + action + self.np_random.normal(size=2)
        terminated = bool(np.abs(self.position).max() > 4)
        return (
            self.position.copy(),
            float(-np.abs(self.position).sum()),
            terminated,
            self.time >= self.length,
            {},
        )


class Poisoned(Scripted):
    """Gives ``value`` as reward or observation (``where``) at one step of one episode."""

    def __init__(
        self,
        where: str,
        at: tuple[int, int],
        script: Script = ((3, TERMINATED),),
        index: int = 0,
        value: float = float("nan"),
    ) -> None:
        super().__init__(script, index)
        self.where = where
        self.at = at
        self.value = value

    def _observation(self) -> Any:
        observation = super()._observation()
        if self.where == "observation" and (self.episode, self.time) == self.at:
            observation[1] = self.value
        return observation

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if self.where == "reward" and (self.episode, self.time) == self.at:
            reward = self.value
        return observation, reward, terminated, truncated, info


class Raising(Scripted):
    """Raises at the given step of its first episode; step 0 is the reset, -1 the constructor."""

    def __init__(self, at: int, index: int = 0, error: type[Exception] = ZeroDivisionError) -> None:
        super().__init__(((5, TERMINATED),), index)
        self.at = at
        self.error = error
        if at == -1:
            raise error("broken on purpose")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        if self.at == 0:
            raise self.error("broken on purpose")
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.time + 1 == self.at:
            raise self.error("broken on purpose")
        return super().step(action)


class Masked(gym.Env[Any, Any]):
    """Allows only action ``step % n``; shows the mask in one of the three known places."""

    def __init__(self, place: str, nvec: Sequence[int] = (4,)) -> None:
        self.place = place
        self.nvec = list(nvec)
        self.action_space = (
            spaces.MultiDiscrete(self.nvec) if len(nvec) > 1 else spaces.Discrete(nvec[0])
        )
        plain = spaces.Box(-1, 100, (1,), np.float32)
        self.observation_space = (
            spaces.Dict({"state": plain, "action_mask": spaces.MultiBinary(sum(nvec))})
            if place == "observation"
            else plain
        )
        if place == "method":
            self.action_masks = self.mask
        self.time = 0

    def mask(self) -> Any:
        blocks = [np.arange(n) == self.time % n for n in self.nvec]
        if self.time == 5:  # the episode is over: nothing is allowed
            blocks = [np.zeros(n, bool) for n in self.nvec]
        return np.concatenate(blocks)

    def _shown(self) -> Any:
        state = np.array([self.time], np.float32)
        if self.place == "observation":
            return {"state": state, "action_mask": self.mask().astype(np.int8)}
        return state

    def _info(self) -> dict[str, Any]:
        return {"action_mask": self.mask()} if self.place == "info" else {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._shown(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        allowed = [self.time % n for n in self.nvec]
        if np.ravel(action).tolist() != allowed:
            raise AssertionError(f"action {action} was masked; only {allowed} is allowed")
        self.time += 1
        return self._shown(), 1.0, False, self.time >= 5, self._info()


class Fractions(Walk):
    """Says whole numbers, returns fractions at step `at` of an episode (0: its reset)."""

    def __init__(self, at: int, index: int = 0, nested: bool = False) -> None:
        super().__init__(length=3)
        self.at, self.index, self.nested = at, index, nested
        whole = spaces.Box(-100, 100, (2,), np.int64)
        self.observation_space = spaces.Dict(a=whole) if nested else whole

    def _shown(self, observation: Any) -> Any:
        wrong = self.time == self.at and self.index == 0
        shown = np.trunc(observation).astype(np.int64) + (0.5 if wrong else 0)
        return {"a": shown} if self.nested else shown

    def reset(self, **keywords: Any) -> Any:
        observation, info = super().reset(**keywords)
        return self._shown(observation), info

    def step(self, action: Any) -> Any:
        observation, reward, _, truncated, info = super().step(action)
        return self._shown(observation), reward, False, truncated, info


class Sorting(gym.Env[Any, Any]):
    """Each step shows a place and a bin: the reward is for the right bin and the right place.

    Either part alone earns next to nothing. An episode of ten steps is worth 10 at best.
    """

    observation_space = spaces.Dict(
        {"place": spaces.Box(-1, 1, (2,), np.float32), "bin": spaces.Discrete(3, start=1)}
    )
    action_space = spaces.Dict(
        {
            "arm": spaces.Tuple([spaces.Box(-1, 1, (2,), np.float32), spaces.MultiBinary(1)]),
            "bin": spaces.Discrete(3, start=1),
        }
    )

    def __init__(self, masked: bool = False) -> None:
        self.masked = masked

    def _shown(self) -> tuple[dict[str, Any], dict[str, Any]]:
        self.place = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        self.bin = np.int64(self.np_random.integers(1, 4))
        allowed = np.ones(3, bool)
        allowed[self.bin % 3] = not self.masked  # never the right one
        mask = {"arm": None, "bin": allowed}
        shown = {"place": self.place.copy(), "bin": self.bin}
        return shown, {"action_mask": mask} if self.masked else {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self._shown()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        if self.masked:
            assert action["bin"] - 1 != self.bin % 3
        self.time += 1
        (place, lit), bin_ = action["arm"], action["bin"]
        near = max(0.0, 1 - float(np.square(place - self.place).sum()))
        reward = near * float(bin_ == self.bin) * (0.5 + 0.5 * float(lit[0] == (self.place[0] > 0)))
        shown, info = self._shown()
        return shown, reward, False, self.time >= 10, info
