"""TorchRL's environments, collector and advantages, with our optimizer for the policy.

``python examples/torchrl_loop.py`` learns CartPole in a minute; it needs ``pip install torchrl``.
"""

from __future__ import annotations

import argparse

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.distributions import Categorical
from torchrl.collectors import Collector
from torchrl.envs import GymEnv, RewardSum, SerialEnv, TransformedEnv
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives.value import GAE

from trpo_fast import TRPOOptimizer

ENVS, EPOCHS, MINIBATCH = 8, 10, 256


def perceptron(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of 64."""
    return nn.Sequential(
        *(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))
    )


class Policy(nn.Module):
    """Observations ``[N, 4]`` to a categorical over the two pushes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron(4, 2)

    def forward(self, obs: Tensor) -> Categorical:
        """The distribution of the actions, batch_shape ``[N]``."""
        return Categorical(logits=self.net(obs))


def environment() -> TransformedEnv:
    """One CartPole that counts its rewards."""
    return TransformedEnv(GymEnv("CartPole-v1", categorical_action_encoding=True), RewardSum())


def train(updates: int, rows: int, seed: int = 0) -> float:
    """The mean return of the last update's finished episodes."""
    torch.manual_seed(seed)
    policy, value = Policy(), perceptron(4, 1)
    # TorchRL's actor acts with the same network that the optimizer steps.
    actor = ProbabilisticActor(
        TensorDictModule(policy.net, in_keys=["observation"], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=Categorical,
        return_log_prob=True,
    )
    critic = ValueOperator(value, in_keys=["observation"])
    estimate = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    optimizer = TRPOOptimizer(policy, max_kl=0.01)
    adam = torch.optim.Adam(value.parameters(), lr=1e-3)
    env = SerialEnv(ENVS, environment)
    env.set_seed(seed)
    collector = Collector(
        env,
        actor,
        frames_per_batch=rows,
        total_frames=rows * updates,
        auto_register_policy_transforms=False,
    )
    score = float("nan")
    for update, data in enumerate(collector):
        with torch.no_grad():
            estimate(data)
        data = data.flatten()
        advantages = data["advantage"].flatten()
        optimizer.step(
            obs=data["observation"],
            actions=data["action"],
            advantages=(advantages - advantages.mean()) / (advantages.std() + 1e-8),
            old_log_prob=data["action_log_prob"],
        )
        for _ in range(EPOCHS):
            for chosen in torch.randperm(len(data)).split(MINIBATCH):
                error = value(data["observation"][chosen]) - data["value_target"][chosen]
                adam.zero_grad()
                error.square().mean().backward()
                adam.step()
        ended = data["next", "episode_reward"][data["next", "done"]]
        score = float(ended.mean()) if len(ended) else score
        result = optimizer.last_result
        if update % 5 == 0 and result is not None:
            print(f"update {update:3d}  return {score:6.1f}  KL {result.kl:.4f}  {optimizer.path}")
    collector.shutdown()
    return score


def main() -> None:
    """Read the options, train, print the score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--rows", type=int, default=4096)
    options = parser.parse_args()
    print(f"return in the end: {train(options.updates, options.rows):.1f}")


if __name__ == "__main__":
    main()
