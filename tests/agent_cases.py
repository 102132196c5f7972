"""Small agents that the tests of the agent share."""

from __future__ import annotations

import torch

from trpo_fast.agent.agent import TRPO

SMALL = {
    "num_envs": 2,
    "rollout_steps": 32,
    "hidden_sizes": (8,),
    "value_hidden_sizes": (8,),
    "critic_epochs": 2,
    "seed": 1,
}


def small(env="CartPole-v1", **options):
    return TRPO(env, **(SMALL | options))


def weights(agent):
    tensors = [*agent.policy.parameters(), *agent.value_function.parameters()]
    return torch.cat([t.detach().flatten() for t in tensors])
