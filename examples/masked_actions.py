"""Actions that are not always allowed: the mask goes to the policy and to ``step``.

``python examples/masked_actions.py`` learns to pick the best of the allowed ones of five levers.
A forbidden lever has probability exactly 0, in sampling, in the ratio, in the KL and in the Fisher
matrix.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from trpo_fast import MlpPolicy, TRPOOptimizer

LEVERS = 5


def situations(rows: int) -> tuple[Tensor, Tensor]:
    """What each lever pays ``[rows, LEVERS]``, and which are allowed, at least one."""
    pay, mask = torch.randn(rows, LEVERS), torch.rand(rows, LEVERS) > 0.5
    mask[torch.arange(rows), torch.randint(0, LEVERS, (rows,))] = True
    return pay, mask


def train(updates: int, rows: int, seed: int = 0) -> float:
    """How often the best allowed lever is the likeliest, after ``updates`` updates."""
    torch.manual_seed(seed)
    policy = MlpPolicy(spaces.Box(-np.inf, np.inf, (LEVERS,)), spaces.Discrete(LEVERS))
    optimizer = TRPOOptimizer(policy, max_kl=0.05)
    for update in range(updates):
        obs, mask = situations(rows)
        with torch.no_grad():
            actions = policy(obs, action_mask=mask).sample()
        if not bool(mask[torch.arange(rows), actions].all()):
            raise RuntimeError("a forbidden lever was pulled")
        pay = obs[torch.arange(rows), actions]
        advantages = (pay - pay.mean()) / pay.std()
        optimizer.step(obs=obs, actions=actions, advantages=advantages, action_mask=mask)
        if update % 10 == 0:
            print(f"update {update:3d}  mean pay {pay.mean():.3f}")
    obs, mask = situations(1000)
    with torch.no_grad():
        chosen = policy(obs, action_mask=mask).probs.argmax(1)
    best = obs.masked_fill(~mask, -torch.inf).argmax(1)
    return float((chosen == best).float().mean())


def main() -> None:
    """Read the options, train, print the score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--rows", type=int, default=1000)
    options = parser.parse_args()
    print(f"best lever: {train(options.updates, options.rows):.2f}")


if __name__ == "__main__":
    main()
