"""TRPO in one file, in the manner of CleanRL: everything between reset and update is on this page.

``python examples/cleanrl_style.py --env-id CartPole-v1 --total-timesteps 100000``, after
``pip install tyro``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

from trpo_fast import TRPOOptimizer, compute_gae


@dataclass
class Args:
    """What can be set; ``--help`` lists it."""

    env_id: str = "CartPole-v1"
    total_timesteps: int = 100_000
    num_envs: int = 8
    num_steps: int = 256  # of each environment in a rollout
    seed: int = 1
    gamma: float = 0.99
    gae_lambda: float = 0.95
    max_kl: float = 0.01  # bound on the mean KL of one update, in nats
    damping: float = 0.1  # added to the Fisher matrix's diagonal
    critic_lr: float = 1e-3
    critic_epochs: int = 10
    critic_batch: int = 256


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of 64."""
    layers = nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()
    return nn.Sequential(*layers, nn.Linear(64, outputs))


class Policy(nn.Module):
    """Observations ``[N, O]`` to a distribution of the environment's actions."""

    def __init__(self, envs: gymnasium.vector.VectorEnv) -> None:
        super().__init__()
        space = envs.single_action_space
        self.discrete = isinstance(space, gymnasium.spaces.Discrete)
        outputs = int(space.n) if self.discrete else int(np.prod(space.shape))
        self.body = perceptron(int(np.prod(envs.single_observation_space.shape)), outputs)
        self.log_std = nn.Parameter(torch.zeros(0 if self.discrete else outputs))

    def forward(self, obs: Tensor) -> Distribution:
        """Batch_shape ``[N]``."""
        outputs = self.body(obs)
        if self.discrete:
            return Categorical(logits=outputs)
        return Independent(Normal(outputs, self.log_std.exp().expand_as(outputs)), 1)


def train(args: Args) -> list[float]:
    """Train; returns the episodes' returns in the order of their ends."""
    torch.manual_seed(args.seed)
    envs = gymnasium.make_vec(
        args.env_id,
        args.num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP},
    )
    space, kinds = envs.single_action_space, gymnasium.spaces
    if not isinstance(envs.single_observation_space, kinds.Box) or not isinstance(
        space, kinds.Box | kinds.Discrete
    ):
        raise SystemExit(f"{args.env_id}: this serves Box observations, Box or Discrete actions")
    policy = Policy(envs)
    critic = perceptron(int(np.prod(envs.single_observation_space.shape)), 1)
    policy_optimizer = TRPOOptimizer(policy, max_kl=args.max_kl, damping=args.damping)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=args.critic_lr)

    def value(obs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return critic(torch.as_tensor(obs, dtype=torch.float32)).squeeze(-1).numpy()

    shape = args.num_steps, args.num_envs
    rewards, values, final_values = (np.zeros(shape, np.float32) for _ in range(3))
    terminated, truncated = (np.zeros(shape, bool) for _ in range(2))
    returns, running = [], np.zeros(args.num_envs)
    obs, _ = envs.reset(seed=args.seed)
    start, steps = time.time(), 0
    while steps < args.total_timesteps:
        seen, taken = [], []
        for t in range(args.num_steps):
            row = torch.as_tensor(obs, dtype=torch.float32).flatten(1)
            with torch.no_grad():
                actions = policy(row).sample()
            seen.append(row)
            taken.append(actions)
            values[t] = value(row.numpy())
            given = actions.numpy()
            if not policy.discrete:
                given = np.clip(given, space.low, space.high)
            obs, rewards[t], terminated[t], truncated[t], info = envs.step(given)
            running += rewards[t]
            for i in np.flatnonzero(terminated[t] | truncated[t]):
                returns.append(float(running[i]))
                running[i] = 0.0
                final_values[t, i] = value(np.ravel(info["final_obs"][i]))
        steps += args.num_steps * args.num_envs
        advantages, targets = compute_gae(
            rewards, values, terminated, truncated, value(obs.reshape(args.num_envs, -1)),
            final_values=final_values, gamma=args.gamma, lam=args.gae_lambda,
        )  # fmt: skip

        batch = torch.cat(seen)
        flat = torch.as_tensor(advantages).flatten()
        policy_optimizer.step(
            obs=batch,
            actions=torch.cat(taken),
            advantages=(flat - flat.mean()) / (flat.std() + 1e-8),
        )
        targets = torch.as_tensor(targets).flatten()
        for _ in range(args.critic_epochs):
            for rows in torch.randperm(len(batch)).split(args.critic_batch):
                loss = (critic(batch[rows]).squeeze(-1) - targets[rows]).square().mean()
                critic_optimizer.zero_grad()
                loss.backward()
                critic_optimizer.step()
        result = policy_optimizer.last_result
        recent = np.mean(returns[-20:]) if returns else float("nan")
        print(
            f"{steps:8d} steps  {steps / (time.time() - start):6.0f}/s  return {recent:8.1f}  "
            f"KL {result.kl:.4f}  {result.status.name}"
        )
    envs.close()
    return returns


if __name__ == "__main__":
    train(tyro.cli(Args))
