"""Classic control for thousands of environments at once, in torch alone, on any device.

Pendulum-v1 and CartPole-v1 as gymnasium 1 has them, operation by operation, so that states in
float64 agree with gymnasium's to the last bits. Episodes restart within the step that ends them.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor


class TensorEnvironment:
    """``num_envs`` environments whose observations, rewards and ends are tensors.

    Args:
        num_envs: The number of environments, ``B`` below.
        device: Where all tensors lie; actions must lie there.
        dtype: Of states ``[B, S]`` and rewards ``[B]``. Observations ``[B, O]`` are float32.
        seed: Of the start states.

    Attributes:
        state: The running episodes' states; may be set.
        elapsed: Steps since each episode's start, ``[B]`` of int64; may be set.
        start: Least and greatest start values of each entry of the state.
        limit: The step that truncates an episode.
    """

    single_observation_space: spaces.Box
    single_action_space: spaces.Space[Any]
    start: ClassVar[tuple[list[float], list[float]]]
    limit: ClassVar[int]

    def __init__(
        self,
        num_envs: int,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> None:
        self.num_envs, self.device, self.dtype = num_envs, torch.device(device), dtype
        self._generator = torch.Generator(self.device).manual_seed(seed)
        low, high = torch.tensor(self.start, dtype=dtype, device=self.device)
        self._low, self._span = low, high - low
        self.reset()

    def reset(self, *, seed: int | None = None) -> Tensor:
        """Start every episode anew; the observations ``[B, O]``."""
        if seed is not None:
            self._generator.manual_seed(seed)
        self.state = self.starts()
        self.elapsed = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        return self.observe(self.state)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """One step of every environment.

        Returns:
            Observations (of the next episode where one ended), rewards, terminated and truncated,
            and a dict with ``final_obs`` ``[B, O]``, the observations before the restarts, whose
            rows of ended episodes ``_final_obs`` ``[B]`` marks.

        Raises:
            ValueError: ``actions`` has another shape than ``[B, *single_action_space.shape]``.
        """
        expected = (self.num_envs, *(self.single_action_space.shape or ()))
        if tuple(actions.shape) != expected:
            raise ValueError(f"actions have the shape {tuple(actions.shape)}, not {expected}")
        state, reward, terminated = self.advance(self.state, actions)
        elapsed = self.elapsed + 1
        truncated = elapsed >= self.limit
        ended = terminated | truncated
        info = {"final_obs": self.observe(state), "_final_obs": ended}
        self.state = torch.where(ended[:, None], self.starts(), state)
        self.elapsed = torch.where(ended, 0, elapsed)
        return self.observe(self.state), reward, terminated, truncated, info

    def starts(self) -> Tensor:
        """A start state for every environment, ``[B, S]``, whether it is wanted or not."""
        shape = (self.num_envs, len(self._low))
        drawn = torch.rand(shape, dtype=self.dtype, device=self.device, generator=self._generator)
        return self._low + self._span * drawn

    def observe(self, state: Tensor) -> Tensor:
        """What the policy sees of a state: ``[B, S]`` to ``[B, O]``."""
        raise NotImplementedError

    def advance(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next state, the reward and whether the episode terminates."""
        raise NotImplementedError


class TensorPendulum(TensorEnvironment):
    """Pendulum-v1: state ``[angle, speed]``, actions ``[B, 1]``."""

    single_observation_space = spaces.Box(np.float32([-1, -1, -8]), np.float32([1, 1, 8]))
    single_action_space = spaces.Box(-2.0, 2.0, (1,))
    start = ([-math.pi, -1.0], [math.pi, 1.0])
    limit = 200

    def observe(self, state: Tensor) -> Tensor:
        angle, speed = state.unbind(1)
        return torch.stack([angle.cos(), angle.sin(), speed], 1).float()

    def advance(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        angle, speed = state.unbind(1)
        torque = actions[:, 0].clamp(-2.0, 2.0)
        wrapped = (angle + math.pi) % (2 * math.pi) - math.pi
        cost = wrapped**2 + 0.1 * speed**2 + 0.001 * torque**2
        speed = (speed + (15.0 * angle.sin() + 3.0 * torque) * 0.05).clamp(-8.0, 8.0)
        state = torch.stack([angle + speed * 0.05, speed], 1)
        return state, (-cost).to(self.dtype), torch.zeros_like(cost, dtype=torch.bool)


class TensorCartPole(TensorEnvironment):
    """CartPole-v1: state ``[place, speed, angle, angular speed]``, actions ``[B]``, 0 or 1."""

    single_observation_space = spaces.Box(
        -np.float32([4.8, np.inf, 24 * 2 * math.pi / 360, np.inf]),
        np.float32([4.8, np.inf, 24 * 2 * math.pi / 360, np.inf]),
    )
    single_action_space = spaces.Discrete(2)
    start = ([-0.05] * 4, [0.05] * 4)
    limit = 500

    def observe(self, state: Tensor) -> Tensor:
        return state.float()

    def advance(self, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mass, pole, pole_moment = 0.1 + 1.0, 0.1, 0.1 * 0.5
        place, speed, angle, turning = state.unbind(1)
        force = torch.where(actions == 1, 10.0, -10.0)
        cosine, sine = angle.cos(), angle.sin()
        pushed = (force + pole_moment * turning.square() * sine) / mass
        turned = (9.8 * sine - cosine * pushed) / (0.5 * (4.0 / 3.0 - pole * cosine**2 / mass))
        moved = pushed - pole_moment * turned * cosine / mass
        place, speed = place + 0.02 * speed, speed + 0.02 * moved
        angle, turning = angle + 0.02 * turning, turning + 0.02 * turned
        fallen = (place.abs() > 2.4) | (angle.abs() > 12 * 2 * math.pi / 360)
        return torch.stack([place, speed, angle, turning], 1), torch.ones_like(place), fallen


class VecEnv:
    """One of the environments above as rsl_rl's ``VecEnv`` has it; needs tensordict.

    Observations are a ``TensorDict`` with the group ``"policy"`` and, where asked for,
    ``"privileged"`` with the whole state. Actions are ``[B, num_actions]`` of float; a discrete
    action is 1 where the number is above 0. ``extras["time_outs"]`` marks truncated episodes.
    """

    def __init__(self, env: TensorEnvironment, *, privileged: bool = False) -> None:
        self.env, self.privileged = env, privileged
        self.num_envs, self.device, self.cfg = env.num_envs, env.device, {}
        self.discrete = isinstance(env.single_action_space, spaces.Discrete)
        self.num_actions = 1 if self.discrete else env.single_action_space.shape[0]
        self.max_episode_length = env.limit

    @property
    def episode_length_buf(self) -> Tensor:
        """Steps since each episode's start, ``[B]``; runners set it to spread the ends."""
        return self.env.elapsed

    @episode_length_buf.setter
    def episode_length_buf(self, elapsed: Tensor) -> None:
        self.env.elapsed = elapsed

    def get_observations(self) -> Any:
        """The observations of now, by group."""
        return self._groups(self.env.observe(self.env.state))

    def step(self, actions: Tensor) -> tuple[Any, Tensor, Tensor, dict[str, Any]]:
        """Observations, rewards in float32, dones and extras."""
        taken = (actions[:, 0] > 0).long() if self.discrete else actions
        obs, reward, terminated, truncated, _ = self.env.step(taken)
        extras = {"time_outs": truncated & ~terminated}
        return self._groups(obs), reward.float(), terminated | truncated, extras

    def _groups(self, obs: Tensor) -> Any:
        from tensordict import TensorDict

        groups = {"policy": obs}
        if self.privileged:
            groups["privileged"] = self.env.state.float()
        return TensorDict(groups, batch_size=[self.num_envs], device=self.device)
