"""Your own training loop with a convolutional policy: the optimizer is one line of it.

``python examples/user_loop_cnn.py`` learns to say where in a small picture the bright spot is.
"""

from __future__ import annotations

import argparse
import warnings

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from trpo_fast import FallbackWarning, TRPOOptimizer

SIZE = 8  # of a picture; the action is the column of its bright spot


class Policy(nn.Module):
    """Pictures ``[N, 1, SIZE, SIZE]`` to a categorical over columns."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2), nn.ReLU()
        )
        self.out = nn.Linear(4 * 3 * 3, SIZE)

    def forward(self, obs: Tensor) -> Categorical:
        """The distribution of the actions, batch_shape ``[N]``."""
        return Categorical(logits=self.out(self.body(obs).flatten(1)))


def pictures(rows: int) -> tuple[Tensor, Tensor]:
    """Noise with one bright spot, ``[rows, 1, SIZE, SIZE]``, and the spots' columns."""
    obs, spot = 0.3 * torch.randn(rows, 1, SIZE, SIZE), torch.randint(0, SIZE, (rows, 2))
    obs[torch.arange(rows), 0, spot[:, 0], spot[:, 1]] += 2.0
    return obs, spot[:, 1]


def train(updates: int, rows: int, seed: int = 0) -> float:
    """The share of right answers after ``updates`` updates on ``rows`` pictures each."""
    torch.manual_seed(seed)
    policy = Policy()
    optimizer = TRPOOptimizer(policy, max_kl=0.05, damping=0.01)
    for update in range(updates):
        obs, wanted = pictures(rows)
        with torch.no_grad():
            actions = policy(obs).sample()
        rewards = (actions == wanted).float()
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
        optimizer.step(obs=obs, actions=actions, advantages=advantages)
        result = optimizer.last_result
        if update % 10 == 0 and result is not None:
            print(f"update {update:3d}  right {rewards.mean():.2f}  KL {result.kl:.4f}")
    obs, wanted = pictures(1000)
    with torch.no_grad():
        return float((policy(obs).probs.argmax(1) == wanted).float().mean())


def main() -> None:
    """Read the options, train, print the score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--rows", type=int, default=1000)
    options = parser.parse_args()
    warnings.simplefilter("ignore", FallbackWarning)
    print(f"right in the end: {train(options.updates, options.rows):.2f}")


if __name__ == "__main__":
    main()
