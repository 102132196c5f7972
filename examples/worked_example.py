"""One state, two actions, one sample: the trust region small enough to check by hand.

The good action has probability 0.20 and advantage +10. ``python examples/worked_example.py`` prints
how far it may go, and what the hard constraint, the KL penalty and the plain natural gradient make
of it. docs/worked-example.md explains each line.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from trpo_fast import FallbackWarning, TRPOOptimizer

START, WANTED, ADVANTAGE, MAX_KL = 0.20, 0.60, 10.0, 0.01
# exp(change of the log-odds) takes 0.20 to 0.60. The natural gradient A F^-1 grad log p changes
# the two logits' difference by A / p = 50 times its step size.
STEP_TO_WANTED = math.log((WANTED / (1 - WANTED)) / (START / (1 - START))) / (ADVANTAGE / START)


class TwoActions(nn.Module):
    """A policy of two logits for the only state."""

    def __init__(self) -> None:
        super().__init__()
        start = torch.tensor([START, 1 - START], dtype=torch.float64)
        self.logits = nn.Parameter(start.log())

    def forward(self, obs: Tensor) -> Categorical:
        """The same distribution for every row of ``obs`` ``[N, ...]``."""
        return Categorical(logits=self.logits.expand(len(obs), 2))


@dataclass(frozen=True)
class Outcome:
    """The good action's probability after one step, and the KL(old, new) that it took."""

    probability: float
    kl: float
    backtracks: int


def kl_two(p: float, q: float) -> float:
    """KL of two actions with probabilities (p, 1 - p) from (q, 1 - q), in nats."""
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def reach(p: float, max_kl: float) -> float:
    """The greatest q with KL((p, 1 - p), (q, 1 - q)) <= max_kl, by bisection."""
    low, high = p, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if kl_two(p, middle) <= max_kl else (low, middle)
    return low


def step(**options: float | str | bool) -> Outcome:
    """One step from 0.20 on the one sample, with the exact Fisher matrix (``damping=0``)."""
    policy, obs = TwoActions(), torch.zeros(1, 1)
    optimizer = TRPOOptimizer(policy, damping=0.0, max_kl=MAX_KL, **options)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)  # two bare logits are no perceptron
        optimizer.step(obs=obs, actions=torch.tensor([0]), advantages=torch.tensor([ADVANTAGE]))
    result = optimizer.last_result
    if result is None:
        raise RuntimeError("step left no result")
    return Outcome(float(policy(obs).probs[0, 0].detach()), result.kl, result.backtracks)


def outcomes() -> dict[str, Outcome]:
    """What each form of the update does."""
    scale = math.sqrt(2 * MAX_KL / (ADVANTAGE**2 * (1 - START) / START))  # 2 max_kl = s^2 x'Fx
    return {
        "natural gradient, sized for 0.60": step(constraint="none", lr=STEP_TO_WANTED),
        "hard": step(step_size="boundary"),
        "hard, damped": step(step_size="damped"),
        "hard, damped, first at 0.60": step(step_size="damped", lr=STEP_TO_WANTED / scale),
        "penalty, beta 100": step(constraint="penalty", beta=100.0, adaptive_beta=False),
        "penalty, beta 1": step(constraint="penalty", beta=1.0, adaptive_beta=False),
    }


def main() -> None:
    """Print the figures."""
    print(f"KL(0.20 -> 0.60)         {kl_two(START, WANTED):.4f}, the bound is {MAX_KL}")
    print(f"0.20 log(0.20 / 0.60)   {START * math.log(START / WANTED):.4f}, which is not a KL")
    print(f"KL(0.20 -> 0.25)         {kl_two(START, 0.25):.4f}")
    print(f"furthest within {MAX_KL}     {reach(START, MAX_KL):.4f}\n")
    for name, found in outcomes().items():
        print(
            f"{name:34s} 0.20 -> {found.probability:.4f}  KL {found.kl:8.4f}  "
            f"candidates after the first: {found.backtracks}"
        )


if __name__ == "__main__":
    main()
