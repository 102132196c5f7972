"""The agent on environments in torch: what its loop costs beside their steps, and what it learns.

    python benchmarks/tensor_rollouts.py CartPole Pendulum --envs 4096 --seconds 60

Both are those of ``tests/tensor_environments.py``, stepped on the CPU. First the environments
alone, with actions drawn beforehand; then the agent from scratch, for --seconds of its own time,
which ends with an evaluation. The loop is all that `learn` spends outside of `step`: policy,
buffers, advantages, update, critic, statistics. Training begins amid episodes, as rsl_rl's
`init_at_random_ep_len` has it: otherwise all of Pendulum's end at once, and a short rollout shows
one phase of theirs.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from trpo_fast import TRPO

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
# What differs from the defaults, which are for a few environments and long rollouts.
OPTIONS: dict[str, dict[str, Any]] = {
    "CartPole": {"rollout_steps": 24, "critic_epochs": 2, "critic_batch_size": 2048},
    "Pendulum": {
        "rollout_steps": 8,
        "max_kl": 0.03,
        "critic_epochs": 4,
        "critic_batch_size": 2048,
        "gamma": 0.95,
        "critic_lr": 3e-3,
    },
}


def environment(name: str) -> Any:
    """The class of an environment."""
    return getattr(import_module("tensor_environments"), f"Tensor{name}")


def spread(kind: Any) -> Any:
    """The class, its episodes begun at steps of their own."""

    class Spread(kind):  # type: ignore[misc]
        def reset(self, *, seed: int | None = None) -> Any:
            shown = super().reset(seed=seed)
            shape, device = (self.num_envs,), self.device
            self.elapsed = torch.randint(
                self.limit, shape, device=device, generator=self._generator
            )
            return shown

    return Spread


def alone(kind: Any, envs: int, seconds: float) -> float:
    """Environment steps per second without a policy."""
    env = kind(envs)
    space = env.single_action_space
    shape = (64, envs, *space.shape)
    actions = torch.rand(shape) * 4 - 2 if space.shape else torch.randint(0, 2, shape)
    steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for row in actions:
            env.step(row)
        steps += len(actions)
    return steps * envs / (time.perf_counter() - began)


def learn(name: str, envs: int, seconds: float, options: dict[str, Any]) -> None:
    """Train for so long and print what it came to."""
    kind = environment(name)
    chosen = {**OPTIONS[name], **options}
    agent = TRPO(spread(kind), vectorization="tensor", num_envs=envs, seed=0, **chosen)
    began = time.monotonic()
    agent.learn(
        10**12,
        lambda *_: time.monotonic() - began < seconds,
        progress_bar=False,
    )
    spent = dict(agent.time_budget)
    stepping, total = spent["env"], sum(spent.values())
    mean, std = agent.evaluate(100, env=kind, progress_bar=False)
    print(
        f"{name}: {agent.num_timesteps:,} steps, {agent.progress.num_updates} updates in "
        f"{total:.1f} s, {agent.num_timesteps / total:,.0f} steps/s; environments "
        f"{stepping:.1f} s, loop {total - stepping:.1f} s, "
        f"{(total - stepping) / stepping:.2f} times as long"
    )
    print("  " + ", ".join(f"{phase} {s:.2f} s" for phase, s in spent.items()))
    print(f"  return {mean:.1f} +- {std:.1f} over 100 episodes")


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(OPTIONS), choices=OPTIONS)
    parser.add_argument("--envs", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rollout-steps", type=int)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    given = {"rollout_steps": options.rollout_steps} if options.rollout_steps else {}
    for name in options.names:
        speed = alone(environment(name), options.envs, min(5.0, options.seconds / 4))
        print(f"{name}: {options.envs} environments alone, {speed:,.0f} steps/s")
        learn(name, options.envs, options.seconds, given)


if __name__ == "__main__":
    main()
