"""Brax's environments, which are JAX, with rollouts and training in torch.

``python examples/brax_tensors.py`` learns the inverted pendulum, after
``pip install '.[brax]'``.
Observations, rewards and actions cross by dlpack: the same memory on both sides, on the CPU as on
a GPU that both libraries use.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import torch
from brax import envs
from gymnasium import spaces
from torch import Tensor

from trpo_fast import TRPO


class BraxTensors:
    """``num_envs`` of Brax's environments as gymnasium's vector interface has them, in tensors.

    An episode that ends begins anew within the step, from the state that its environment began
    with, as behind Brax's ``AutoResetWrapper``; unlike there its last observation is told, so that
    a truncated one is continued with its value.

    Args:
        name: Of the environment, as ``brax.envs`` registers it.
        num_envs: B.
        seed: Of the first states.
        episode_length: The step that truncates an episode.
        backend: Of Brax's physics.
    """

    def __init__(
        self,
        name: str = "inverted_pendulum",
        num_envs: int = 256,
        seed: int = 0,
        episode_length: int = 1000,
        backend: str = "generalized",
    ) -> None:
        self.num_envs, self.seed = num_envs, seed
        env = envs.create(
            name,
            episode_length=episode_length,
            auto_reset=False,
            batch_size=num_envs,
            backend=backend,
        )
        low, high = jax.device_get(env.sys.actuator.ctrl_range).T
        self.single_observation_space = spaces.Box(
            -float("inf"), float("inf"), (env.observation_size,)
        )
        self.single_action_space = spaces.Box(low, high)
        self._reset = jax.jit(env.reset)
        self._step = jax.jit(_restarting(env))

    def reset(self, *, seed: int | None = None) -> Tensor:
        """Begin all episodes; observations ``[B, O]``."""
        key = jax.random.PRNGKey(self.seed if seed is None else seed % 2**32)
        self._first = self._state = self._reset(key)
        return torch.from_dlpack(self._state.obs)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Act by ``[B, A]``: observations, rewards, ends and, in ``final_obs``, the last ones."""
        self._state, last = self._step(self._state, jax.numpy.from_dlpack(actions), self._first)
        truncated = torch.from_dlpack(last.info["truncation"])
        terminated = torch.from_dlpack(last.done) - truncated
        reward, final = torch.from_dlpack(last.reward), torch.from_dlpack(last.obs)
        return (
            torch.from_dlpack(self._state.obs),
            reward,
            terminated,
            truncated,
            {"final_obs": final},
        )


def _restarting(env: Any) -> Any:
    """A step, and its result with the first state wherever an episode ended."""

    def step(state: Any, actions: Any, first: Any) -> tuple[Any, Any]:
        last = env.step(state, actions)

        def chosen(begun: Any, gone_on: Any) -> Any:
            ended = last.done.reshape(-1, *[1] * (gone_on.ndim - 1))
            return jax.numpy.where(ended, begun, gone_on)

        return jax.tree.map(chosen, first, last), last

    return step


def main() -> None:
    """Read the options, train, print the score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", default="inverted_pendulum")
    parser.add_argument("--envs", type=int, default=128)
    parser.add_argument("--rollout-steps", type=int, default=32)
    parser.add_argument("--steps", type=int, default=400_000)
    parser.add_argument("--episode-length", type=int, default=1000)
    parser.add_argument("--episodes", type=int, default=16, help="of the evaluation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    env = BraxTensors(options.env, options.envs, options.seed, options.episode_length)
    agent = TRPO(
        env,
        vectorization="tensor",
        rollout_steps=options.rollout_steps,
        critic_epochs=4,
        critic_batch_size=256,
        seed=options.seed,
    )
    began = time.perf_counter()
    agent.learn(options.steps, progress_bar=False)
    spent = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in agent.time_budget.items())
    print(f"{agent.num_timesteps:,} steps in {time.perf_counter() - began:.0f} s: {spent}")
    others = BraxTensors(options.env, options.episodes, options.seed + 1, options.episode_length)
    mean, std = agent.evaluate(options.episodes, env=others, progress_bar=False)
    print(f"return {mean:.1f} +- {std:.1f} over {options.episodes} episodes")


if __name__ == "__main__":
    main()
