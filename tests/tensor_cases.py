"""Small tensor environments, and gymnasium's ones in tensors, for the tests of tensor rollouts."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor

from trpo_fast.environments.make import make_vector_env
from trpo_fast.environments.tensor_environments import TensorEnvironments
from trpo_fast.rollouts.tensor_collector import TensorCollector


class InTensors:
    """A vector environment of gymnasium whose arrays are passed on as tensors."""

    def __init__(self, vector: Any) -> None:
        self.vector = vector
        self.num_envs = vector.num_envs
        self.metadata = vector.metadata
        self.single_observation_space = vector.single_observation_space
        self.single_action_space = vector.single_action_space

    def reset(self, **given: Any) -> tuple[Any, dict[str, Any]]:
        return _tensors(self.vector.reset(**given)[0]), {}

    def step(self, actions: Tensor) -> tuple[Any, ...]:
        obs, rewards, terminated, truncated, infos = self.vector.step(actions.numpy())
        info = {}
        if "final_obs" in infos:
            final = [o if f is None else f for f, o in zip(infos["final_obs"], obs, strict=True)]
            info["final_obs"] = torch.from_numpy(np.stack(final))
        told = (_tensors(part) for part in (obs, rewards, terminated, truncated))
        return (*told, info)


def _tensors(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _tensors(value) for key, value in part.items()}
    if isinstance(part, tuple):
        return tuple(_tensors(value) for value in part)
    return torch.from_numpy(np.array(part))


def seeded(env: Any, num_envs: int, seed: int) -> InTensors:
    """The same episodes as ``make_vector_env`` gives, in tensors."""
    return InTensors(make_vector_env(env, num_envs=num_envs, seed=seed).vector)


class Counter:
    """Episodes of a fixed length for each environment; everything it shows can be foreseen.

    The observation is (environment, step of the episode, episode); the reward the step after it.
    Environment 0 is terminated at its ends, the others truncated.
    """

    single_observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    single_action_space = spaces.Discrete(2)

    def __init__(self, num_envs: int = 3, finals: str | None = "final_obs") -> None:
        self.num_envs = num_envs
        self.finals = finals
        self.lengths = torch.arange(num_envs) + 3
        self.resets = 0

    def reset(self) -> Tensor:
        self.resets += 1
        self.at = torch.zeros(self.num_envs, dtype=torch.int64)
        self.episode = torch.zeros(self.num_envs, dtype=torch.int64)
        return self.shown()

    def shown(self) -> Tensor:
        return torch.stack([torch.arange(self.num_envs), self.at, self.episode], 1).float()

    def step(self, actions: Tensor) -> tuple[Any, ...]:
        self.at += 1
        rewards, final, over = self.at.float(), self.shown(), self.at >= self.lengths
        self.episode += over
        self.at[over] = 0
        first = torch.arange(self.num_envs) == 0
        info = {} if self.finals is None else {self.finals: final}
        return self.shown(), rewards, over & first, over & ~first, info


class LateCounter(Counter):
    """The same in gymnasium's convention NEXT_STEP: the step after an end only resets."""

    metadata: ClassVar = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def reset(self) -> Tensor:
        self.over = torch.zeros(self.num_envs, dtype=torch.bool)
        return super().reset()

    def step(self, actions: Tensor) -> tuple[Any, ...]:
        resetting, first = self.over, torch.arange(self.num_envs) == 0
        self.at = torch.where(resetting, 0, self.at + 1)
        self.episode += resetting
        rewards = torch.where(resetting, 0, self.at).float()
        self.over = (self.at >= self.lengths) & ~resetting
        return self.shown(), rewards, self.over & first, self.over & ~first, {}


def collector(env: Any, **options: Any) -> TensorCollector:
    return TensorCollector(TensorEnvironments(env, name=type(env).__name__, seed=0), **options)
