"""A policy with memory: a GRU over padded sequences, each row of the batch one moment to act.

``python examples/recurrent_policy.py`` learns to repeat a cue that was shown some steps before.
"""

from __future__ import annotations

import argparse
import warnings

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from trpo_fast import FallbackWarning, TRPOOptimizer

CUES, LONGEST = 3, 6


class Memory(nn.Module):
    """``(sequences [N, T, CUES + 1], lengths [N])`` to a categorical at each last valid step."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = nn.GRU(CUES + 1, 16, batch_first=True), nn.Linear(16, CUES)

    def forward(self, obs: tuple[Tensor, Tensor]) -> Categorical:
        """The distribution of the actions, batch_shape ``[N]``."""
        sequences, lengths = obs
        hidden = self.gru(sequences)[0][torch.arange(len(sequences)), lengths - 1]
        return Categorical(logits=self.out(hidden))


def episodes(rows: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """A cue at the first step, noise after it, padding at the end; and the cue."""
    cue, lengths = torch.randint(0, CUES, (rows,)), torch.randint(2, LONGEST + 1, (rows,))
    sequences = torch.zeros(rows, LONGEST, CUES + 1)
    sequences[torch.arange(rows), 0, cue] = 1.0
    sequences[:, 1:, CUES] = torch.randn(rows, LONGEST - 1)
    padding = torch.arange(LONGEST) >= lengths.unsqueeze(1)
    return (sequences.masked_fill(padding.unsqueeze(2), 0.0), lengths), cue


def train(updates: int, rows: int, seed: int = 0) -> float:
    """The share of cues remembered after ``updates`` updates on ``rows`` sequences each."""
    torch.manual_seed(seed)
    policy = Memory()
    optimizer = TRPOOptimizer(policy, max_kl=0.05, damping=0.01)
    for update in range(updates):
        obs, cue = episodes(rows)
        with torch.no_grad():
            actions = policy(obs).sample()
        rewards = (actions == cue).float()
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
        optimizer.step(obs=obs, actions=actions, advantages=advantages)
        if update % 10 == 0:
            print(f"update {update:3d}  remembered {rewards.mean():.2f}")
    obs, cue = episodes(1000)
    with torch.no_grad():
        return float((policy(obs).probs.argmax(1) == cue).float().mean())


def main() -> None:
    """Read the options, train, print the score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--rows", type=int, default=1000)
    options = parser.parse_args()
    warnings.simplefilter("ignore", FallbackWarning)
    print(f"remembered in the end: {train(options.updates, options.rows):.2f}")


if __name__ == "__main__":
    main()
