"""Digests of what the code computes, to hold one commit's against another's, bit for bit.

    git worktree add ../before REVISION    # and build it
    (cd ../before && .venv/bin/python PATH/same_bits.py) > before.txt
    .venv/bin/python benchmarks/same_bits.py > after.txt
    diff before.txt after.txt

A line a case: its name, and the SHA-256 of every parameter after it. The cases are one update of
every head on a synthetic batch, by each backend, plain and by K-FAC, and whole trainings.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from trpo_fast import TRPO, MlpPolicy, TRPOOptimizer

ROWS = 2048
HEADS: dict[str, tuple[spaces.Space[Any], dict[str, Any]]] = {
    "gaussian": (spaces.Box(-1, 1, (6,)), {}),
    "gaussian_state_std": (spaces.Box(-1, 1, (6,)), {"state_dependent_std": True}),
    "squashed": (spaces.Box(-1, 1, (6,)), {"distribution": "squashed"}),
    "categorical": (spaces.Discrete(5), {}),
    "multi_categorical": (spaces.MultiDiscrete([3, 2, 4]), {}),
    "bernoulli": (spaces.MultiBinary(4), {}),
    "beta": (spaces.Box(-1, 1, (6,)), {"distribution": "beta"}),
    "joint": (spaces.Tuple([spaces.Box(-1, 1, (4,)), spaces.Discrete(5)]), {}),
}
BLOCKS = {"categorical": [5], "multi_categorical": [3, 2, 4], "joint": [5]}
TASKS = ("CartPole-v1", "Pendulum-v1", "HalfCheetah-v5")


def digest(*modules: nn.Module) -> str:
    """Of every parameter's bytes."""
    found = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            found.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def updates() -> Iterator[tuple[str, str]]:
    """One update of every head, backend, dtype and preconditioner; masks where there are any."""
    cases = itertools.product(
        HEADS, ("cpu", "reference"), (torch.float32, torch.float64), ("none", "kfac"), (0, 1)
    )
    for head, backend, dtype, preconditioner, masked in cases:
        space, options = HEADS[head]
        blocks = BLOCKS.get(head)
        if masked and blocks is None:
            continue
        torch.manual_seed(7)
        policy = MlpPolicy(spaces.Box(-1, 1, (17,)), space, **options).to(dtype)
        obs = torch.randn(ROWS, 17, dtype=dtype)
        mask = None
        if masked and blocks is not None:
            mask = torch.rand(ROWS, sum(blocks)) < 0.7
            mask[:, np.cumsum([0, *blocks[:-1]])] = True
        with torch.no_grad():
            actions = policy(obs, action_mask=mask).sample()
        optimizer = TRPOOptimizer(policy, backend=backend, preconditioner=preconditioner)
        for _ in range(3):
            advantages = torch.randn(ROWS, dtype=dtype)
            weights = torch.rand(ROWS, dtype=dtype)
            optimizer.step(
                obs=obs, actions=actions, advantages=advantages, weights=weights, action_mask=mask
            )
        name = f"{head}{'+mask' if masked else ''} {backend} {dtype} {preconditioner}"
        yield name, digest(policy)


def trainings(steps: int) -> Iterator[tuple[str, str]]:
    """Whole trainings, policy and value function."""
    for task, seed, preconditioner in itertools.product(TASKS, (0, 1), ("none", "kfac")):
        with TRPO(task, seed=seed, preconditioner=preconditioner) as agent:
            agent.learn(steps, progress_bar=False)
            yield f"{task} seed {seed} {preconditioner}", digest(agent.policy, agent.value_function)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20_000, help="of a training (default 20000)")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    for name, found in itertools.chain(updates(), trainings(steps)):
        print(f"{name}: {found}", flush=True)


if __name__ == "__main__":
    main()
