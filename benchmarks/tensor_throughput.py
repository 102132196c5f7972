"""Steps a second of a tensor environment: alone, with the policy, with training; on any device.

``python benchmarks/tensor_throughput.py [--device cuda] [--envs 4096] [--brax ant] [--out
FILE.json]`` steps the torch Pendulum of ``tests/tensor_environments.py``, or one of Brax's
environments by ``examples/brax_tensors.py``, in rollouts of 24 steps, and prints the three
columns in which Isaac Lab reports its tasks: environment steps alone, steps with the policy's and
the value function's forward pass, and both with the update: advantages, one TRPO step and five
epochs of four minibatches of Adam for the critic, in plain torch. Nothing leaves the device within
a rollout. Every figure is the median over the rollouts of a column.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from trpo_fast import MlpPolicy, TRPOOptimizer, ValueFunction, compute_gae

STEPS, EPOCHS, MINIBATCHES = 24, 5, 4
SECONDS = 2.0  # of one column
COLUMNS = ("environment", "+ inference", "+ training")
sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("tests", "examples")]


def environment(envs: int, device: torch.device, brax: str | None = None) -> Any:
    """The torch Pendulum, or Brax's environment of this name, where JAX puts it."""
    if brax is None:
        made: Any = import_module("tensor_environments")
        return made.TensorPendulum(envs, device=device, dtype=torch.float32)
    made = import_module("brax_tensors")
    env = made.BraxTensors(brax, envs)
    found = env.reset().device
    if found.type != device.type:
        raise SystemExit(f"JAX steps {brax} on {found}, not on {device}: install JAX for it")
    return env


class Loop:
    """The three ways of spending a rollout.

    Args:
        env: Environments stepped at once.
        hidden: Widths of the hidden layers of policy and value function.
        device: Where everything lies.
    """

    def __init__(self, env: Any, hidden: tuple[int, ...], device: torch.device) -> None:
        torch.manual_seed(0)
        self.env = env
        spaces = self.env.single_observation_space, self.env.single_action_space
        network: Any = {"hidden_sizes": hidden, "activation": "elu"}
        self.policy = MlpPolicy(*spaces, **network).to(device)
        self.values = ValueFunction(spaces[0], **network).to(device)
        self.optimizer = TRPOOptimizer(self.policy)
        self.adam = torch.optim.Adam(self.values.parameters(), lr=1e-3, fused=True)
        shape = env.num_envs, *env.single_action_space.shape
        self.actions = torch.zeros(shape, device=device)
        self.obs: Tensor = self.env.reset()
        self.ways: dict[str, Callable[[], object]] = dict(
            zip(COLUMNS, (self.step, self.act, self.train), strict=True)
        )

    @torch.no_grad()
    def step(self) -> None:
        """Environment steps with one and the same action."""
        for _ in range(STEPS):
            self.env.step(self.actions)

    @torch.no_grad()
    def act(self) -> dict[str, Tensor]:
        """Environment steps with the policy's actions; what an update needs of them."""
        rows: list[dict[str, Tensor]] = []
        for _ in range(STEPS):
            distribution = self.policy(self.obs)
            actions = distribution.sample()
            row = {
                "obs": self.obs,
                "actions": actions,
                "log_prob": distribution.log_prob(actions),
                "values": self.values(self.obs),
            }
            self.obs, reward, terminated, truncated, info = self.env.step(actions)
            ends = {"terminated": terminated.bool(), "truncated": truncated.bool()}
            ends["rewards"] = 0.1 * reward
            rows.append({**row, **ends, "final_obs": info["final_obs"]})
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def train(self) -> None:
        """A rollout and the update on it."""
        kept = self.act()
        with torch.no_grad():
            advantages, returns = compute_gae(
                kept["rewards"],
                kept["values"],
                kept["terminated"],
                kept["truncated"],
                self.values(self.obs),
                final_values=self.values(kept["final_obs"].flatten(0, 1)).view_as(kept["values"]),
            )
        flat = advantages.flatten()
        self.optimizer.step(
            obs=kept["obs"].flatten(0, 1),
            actions=kept["actions"].flatten(0, 1),
            advantages=(flat - flat.mean()) / (flat.std() + 1e-8),
            old_log_prob=kept["log_prob"].flatten(),
        )
        obs, wanted = kept["obs"].flatten(0, 1), returns.flatten()
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(obs), device=obs.device).chunk(MINIBATCHES):
                self.adam.zero_grad()
                (self.values(obs[rows]) - wanted[rows]).square().mean().backward()
                self.adam.step()


def rate(way: Callable[[], object], steps: int, device: torch.device) -> float:
    """Steps a second: the median over rollouts, of which there are three at least."""
    way()
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < SECONDS:
        start = time.perf_counter()
        way()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return steps / median(seconds)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--envs", default=4096, type=int)
    parser.add_argument("--hidden", default=[512, 256, 128], type=int, nargs="+")
    parser.add_argument("--brax", metavar="NAME", help="one of Brax's environments, ant say")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args(arguments)
    env = environment(args.envs, args.device, args.brax)
    loop = Loop(env, tuple(args.hidden), args.device)
    found = {name: rate(way, args.envs * STEPS, args.device) for name, way in loop.ways.items()}
    result = loop.optimizer.last_result
    facts = {
        "environment": args.brax or "torch Pendulum",
        "device": str(args.device),
        "envs": args.envs,
        "hidden": args.hidden,
        "path": loop.optimizer.path,
        "backend": None if result is None else result.backend,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print("| steps a second | " + " | ".join(COLUMNS) + " |\n|---|---:|---:|---:|")
    print(
        f"| {facts['environment']} | "
        + " | ".join(f"{found[name]:,.0f}" for name in COLUMNS)
        + " |"
    )
    if args.out is not None:
        args.out.write_text(json.dumps({**facts, "steps_per_second": found}))


if __name__ == "__main__":
    main()
