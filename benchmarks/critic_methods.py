"""What each way of fitting the critic explains of the next rollout's returns, and its time.

``python benchmarks/critic_methods.py ENV STEPS ITERATIONS``. One agent trains with its defaults;
beside it, a critic of each kind sees the same rollouts, with targets from its own values.
"""

from __future__ import annotations

import copy
import sys
import time
from statistics import mean, median
from typing import Any

import numpy as np
import torch

from trpo_fast import TRPO
from trpo_fast.agent.critic import Critic, explained_variance
from trpo_fast.rollouts.gae import compute_gae
from trpo_fast.rollouts.rollout import Rollout, bootstrap_values

KINDS = {
    "adam, 10 epochs": ("adam", 10),
    "adam, 3 epochs": ("adam", 3),
    "adam, 1 epoch": ("adam", 1),
    "gauss_newton, 1 step": ("gauss_newton", 1),
    "gauss_newton, 3 steps": ("gauss_newton", 3),
}


def targets(agent: TRPO, critic: Critic, rollout: Rollout) -> tuple[torch.Tensor, float]:
    """The returns to fit [N], and what the critic explained of lambda = 1 returns before."""
    learner = agent.learner
    values, last, final = bootstrap_values(learner.as_shown(rollout), critic.value_function)
    rewards = learner.return_scaler(rollout.rewards) if learner.return_scaler else rollout.rewards
    ends = rollout.terminated, rollout.truncated
    same: dict[str, Any] = {"final_values": final, "gamma": agent.config.gamma}
    found = [
        compute_gae(rewards, values, *ends, last, lam=lam, **same)[1]
        for lam in (agent.config.lam, 1.0)
    ]
    return found[0].flatten(), explained_variance(values.flatten(), found[1].flatten()) or 0.0


def main(env: str, steps: int, iterations: int) -> None:
    agent = TRPO(env, rollout_steps=steps, seed=0)
    critics = {
        name: Critic(
            copy.deepcopy(agent.value_function),
            learning_rate=agent.config.critic_lr,
            epochs=epochs,
            batch_size=agent.config.critic_batch_size,
            method=method,
        )
        for name, (method, epochs) in KINDS.items()
    }
    explained: dict[str, list[float]] = {name: [] for name in KINDS}
    seconds: dict[str, list[float]] = {name: [] for name in KINDS}
    for iteration in range(iterations):
        rollout = agent.collector.collect(agent.policy, agent.learner.normalizer, steps, agent.rng)
        observations = agent.learner.as_shown(rollout).observations.flatten(0, 1)
        for name, critic in critics.items():
            returns, share = targets(agent, critic, rollout)
            explained[name].append(share)
            began = time.perf_counter()
            critic.fit(observations, returns, np.random.default_rng(iteration))
            seconds[name].append(time.perf_counter() - began)
        agent.learner.update(rollout, agent.rng)
    for name in KINDS:
        late = mean(explained[name][-iterations // 3 :])
        print(f"{env} {name:22} {late:6.3f} explained, {1e3 * median(seconds[name]):6.1f} ms")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
