"""Rollouts of images: steps a second beside Stable-Baselines3's, same network, same environments.

``python benchmarks/image_rollouts.py`` collects rollouts of 8 environments whose frames of 84x84x4
cost next to nothing, with the network of Mnih et al., one for the policy and one for the values.
Turns alternate; medians count, the ratio's that of the turns' ratios. Stable-Baselines3's PPO
computes its values step by step, this agent all together after the rollout, which is timed too.
"""

from __future__ import annotations

import argparse
import warnings
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from trpo_fast import TRPO
from trpo_fast.rollouts.rollout import bootstrap_values

ENVS = 8


class Frames(gym.Env[Any, Any]):
    """Random frames, made once."""

    observation_space = spaces.Box(0, 255, (84, 84, 4), np.uint8)
    action_space = spaces.Discrete(6)
    made = np.random.default_rng(0).integers(0, 256, (16, 84, 84, 4), np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """The first frame."""
        del options
        super().reset(seed=seed)
        self.time = 0
        return self.made[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The next frame."""
        self.time += 1
        return self.made[self.time % 16], float(action == 0), False, self.time >= 1000, {}


def ours(steps: int) -> Any:
    """A function that collects a rollout and values it."""
    agent = TRPO(Frames, policy="cnn", num_envs=ENVS, rollout_steps=steps, seed=0)
    learner = agent.learner

    def collect() -> None:
        rollout = agent.collector.collect(agent.policy, learner.normalizer, steps, agent.rng)
        bootstrap_values(learner.as_shown(rollout), learner._values)

    return collect


def theirs(steps: int) -> Any:
    """The same by Stable-Baselines3's PPO."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    vector = DummyVecEnv([Frames] * ENVS)
    kwargs = {"share_features_extractor": False}
    model = PPO("CnnPolicy", vector, n_steps=steps, policy_kwargs=kwargs, device="cpu", seed=0)
    model._setup_learn(steps * ENVS)
    callback = model._init_callback(None)

    def collect() -> None:
        model.collect_rollouts(model.env, callback, model.rollout_buffer, steps)

    return collect


def main() -> None:
    """Read the options, measure, print a row for each and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    collectors = {"trpo_fast": ours(options.steps), "Stable-Baselines3": theirs(options.steps)}
    seconds: dict[str, list[float]] = {name: [] for name in collectors}
    for turn in range(options.turns + 1):  # the first warms up
        for name, collect in collectors.items():
            began = perf_counter()
            collect()
            if turn:
                seconds[name].append(perf_counter() - began)
    for name, taken in seconds.items():
        print(f"{name:<20}{options.steps * ENVS / median(taken):>8.0f} steps/s")
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    low, _, high = quantiles(ratios, n=4)
    print(f"ratio {median(ratios):.2f} (half of the turns {low:.2f} to {high:.2f})", end=" ")
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")


if __name__ == "__main__":
    main()
