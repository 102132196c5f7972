"""Collectors, policies and comparisons that the tests of rollouts share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution
from toy_environments import BOTH, TERMINATED, TRUNCATED, Poisoned, Scripted, Walk

from trpo_fast.environments.make import make_vector_env
from trpo_fast.networks.mlp import MlpPolicy
from trpo_fast.rollouts.collector import RolloutCollector
from trpo_fast.rollouts.gae import compute_gae
from trpo_fast.rollouts.rollout import Rollout, bootstrap_values

SCRIPTS = [
    ((2, TERMINATED), (1, TRUNCATED), (3, BOTH), (4, TRUNCATED)),
    ((3, TRUNCATED), (2, TRUNCATED), (1, TERMINATED)),
    ((50, TERMINATED),),
]


FACTORIES = [lambda i=i: Scripted(SCRIPTS[i], i) for i in range(3)]


class Alternating(nn.Module):
    """Action step % 2, with certainty: what is collected then depends on no random number."""

    def forward(self, obs: Tensor) -> Distribution:
        one = obs[:, 2].long() % 2
        return Categorical(logits=torch.stack([1e9 * (1 - one), 1e9 * one], dim=1).float())


def philox(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def collect(collector: RolloutCollector, steps: int, policy: nn.Module | None = None) -> Rollout:
    return collector.collect(policy or Alternating(), None, steps, philox())


def value_fn(observations: Tensor) -> Tensor:
    """Any function of the observation will do, as long as no two observations share a value."""
    return (observations * torch.tensor([100.0, 10.0, 1.0])).sum(dim=1).sin()


def transitions(rollout: Rollout) -> list[list[dict[str, Any]]]:
    """For each environment its valid transitions in order, advantages among them."""
    values, last_values, final_values = bootstrap_values(rollout, value_fn)
    advantages, returns = compute_gae(
        rollout.rewards,
        values,
        rollout.terminated,
        rollout.truncated,
        last_values,
        final_values=final_values,
    )
    finals = {
        (int(t), int(b)): row.tolist()
        for t, b, row in zip(*rollout.final_index, rollout.final_observations, strict=True)
    }
    steps, envs = rollout.rewards.shape
    return [
        [
            {
                "observation": rollout.observations[t, b].tolist(),
                "action": int(rollout.actions[t, b]),
                "reward": float(rollout.rewards[t, b]),
                "terminated": bool(rollout.terminated[t, b]),
                "truncated": bool(rollout.truncated[t, b]),
                "final": finals.get((t, b)),
                "advantage": float(advantages[t, b]),
                "return": float(returns[t, b]),
            }
            for t in range(steps)
            if rollout.valid[t, b]
        ]
        for b in range(envs)
    ]


def in_mode(mode: AutoresetMode) -> RolloutCollector:
    return RolloutCollector(make_vector_env(SyncVectorEnv(FACTORIES, autoreset_mode=mode), seed=0))


def walks(seed: int = 0, **options: Any) -> RolloutCollector:
    env = make_vector_env(Walk, num_envs=3, seed=seed, **options)
    return RolloutCollector(env)


def policy_for(collector: RolloutCollector, **options: Any) -> MlpPolicy:
    generator = torch.Generator().manual_seed(0)
    env = collector.env
    return MlpPolicy(env.observation_space, env.action_space, generator=generator, **options)


def assert_same(one: Rollout, other: Rollout) -> None:
    for name, value in vars(one).items():
        counterpart = getattr(other, name)
        if isinstance(value, Tensor):
            assert torch.equal(value, counterpart), name
        elif name == "final_index":
            assert all(map(torch.equal, value, counterpart))
        else:
            assert value == counterpart, name


def poisoned(where: str, at: tuple[int, int], mode: AutoresetMode | None, **options: Any) -> Any:
    """Three environments, the second of which misbehaves once."""
    script = options.pop("script", ((3, TERMINATED), (2, TRUNCATED)))
    factories = [
        lambda: Scripted(script, 0),
        lambda: Poisoned(where, at, script, 1, **options),
        lambda: Scripted(script, 2),
    ]
    if mode is None:
        made = iter([factory() for factory in factories])
        return make_vector_env(made.__next__, num_envs=3, seed=0)
    return make_vector_env(SyncVectorEnv(factories, autoreset_mode=mode), seed=0)


MODES = [None, *AutoresetMode]
