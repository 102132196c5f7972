"""Sums along episodes that run on from rollout to rollout, in one sweep."""

from __future__ import annotations

import torch
from torch import Tensor

from trpo_fast.rollouts.gae import compute_gae


def running_sums(rewards: Tensor, ended: Tensor, before: Tensor, gamma: float) -> Tensor:
    """``R_t = gamma R_{t-1} + r_t`` within each episode, [T, B].

    Args:
        rewards: [T, B] float64, on any device.
        ended: [T, B] bool, whether an episode ended at that row.
        before: [B] float64, the sums that the first row goes on from.
        gamma: in [0, 1].
    """
    never = torch.zeros_like(ended)
    fresh = never.clone()
    fresh[1:] = ended[:-1]  # row t: whether an episode ended at row t - 1
    # With time reversed this is the sum that advantages are of rewards, at lambda = 1.
    backwards, _ = compute_gae(
        rewards.flip(0),
        torch.zeros_like(rewards),
        fresh.flip(0),
        never,
        before,
        gamma=gamma,
        lam=1.0,
    )
    return backwards.flip(0)
