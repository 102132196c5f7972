"""PPO beside us: Stable-Baselines3's, and one as CleanRL writes it, in plain torch.

Of Stable-Baselines3 the class's defaults, and what rl-zoo3's ``hyperparams/ppo.yml`` has for the
MuJoCo tasks ("zoo": epochs, minibatches, clipping, coefficients; its file names v3 environments).
The networks are two tanh layers of 64 each, as ours, unless the zoo's own (256 and ReLU) are asked
for: those cost PPO more.

The plain one follows the description of Huang et al. 2022, "The 37 Implementation Details of
Proximal Policy Optimization", for continuous and discrete actions: orthogonal weights, 10 epochs of
32 minibatches, advantages normalised in each, clipped values, Adam with eps 1e-5, gradients of norm
0.5 at most.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

# By task: what the zoo changes of PPO's defaults. Ant has the defaults there.
ZOO: dict[str, dict[str, Any]] = {
    "HalfCheetah": {
        "n_steps": 512,
        "batch_size": 64,
        "n_epochs": 20,
        "gamma": 0.98,
        "gae_lambda": 0.92,
        "learning_rate": 2.0633e-05,
        "clip_range": 0.1,
        "ent_coef": 0.000401762,
        "vf_coef": 0.58096,
        "max_grad_norm": 0.8,
    },
    "Hopper": {
        "n_steps": 512,
        "batch_size": 32,
        "n_epochs": 5,
        "gamma": 0.999,
        "gae_lambda": 0.99,
        "learning_rate": 9.80828e-05,
        "clip_range": 0.2,
        "ent_coef": 0.00229519,
        "vf_coef": 0.835671,
        "max_grad_norm": 0.7,
    },
    "Walker2d": {
        "n_steps": 512,
        "batch_size": 32,
        "n_epochs": 20,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "learning_rate": 5.05041e-05,
        "clip_range": 0.1,
        "ent_coef": 0.000585045,
        "vf_coef": 0.871923,
        "max_grad_norm": 1.0,
    },
    "Ant": {},
    "CartPole": {
        "n_steps": 32,
        "batch_size": 256,
        "n_epochs": 20,
        "gamma": 0.98,
        "gae_lambda": 0.8,
        "learning_rate": 0.001,
        "clip_range": 0.2,
    },
}


def sb3_ppo(env_id: str, vector: Any, *, zoo: bool, seed: int = 0, **changes: Any) -> Any:
    """Stable-Baselines3's PPO with its defaults, or the zoo's settings, but for ``changes``."""
    from stable_baselines3 import PPO

    settings = dict(ZOO[env_id.partition("-")[0]]) if zoo else {}
    return PPO("MlpPolicy", vector, device="cpu", seed=seed, **{**settings, **changes})


class _ActorCritic(nn.Module):
    """Two perceptrons of 64 x 64."""

    def __init__(self, width: int, space: gymnasium.Space[Any]) -> None:
        super().__init__()
        self.discrete = isinstance(space, spaces.Discrete)
        outputs = spaces.flatdim(space)
        self.critic = _perceptron(width, 1, 1.0)
        self.actor = _perceptron(width, outputs, 0.01)
        self.log_std = None if self.discrete else nn.Parameter(torch.zeros(outputs))

    def distribution(self, observations: Tensor) -> Any:
        outputs = self.actor(observations)
        if self.log_std is None:
            return torch.distributions.Categorical(logits=outputs)
        normal = torch.distributions.Normal(outputs, self.log_std.exp().expand_as(outputs))
        return torch.distributions.Independent(normal, 1)


def _perceptron(inputs: int, outputs: int, gain: float) -> nn.Sequential:
    layers = [nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()]
    layers.append(nn.Linear(64, outputs))
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    for layer, scale in zip(linear, [2**0.5, 2**0.5, gain], strict=True):
        nn.init.orthogonal_(layer.weight, scale)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


class PlainPPO:
    """PPO in one file, on a gymnasium vector of environments [B], rollouts of T steps.

    Args:
        vector: whose reset observations begin the first rollout.
        steps: T.
        seed: of the networks and the actions.
    """

    GAMMA, LAMBDA, CLIP = 0.99, 0.95, 0.2
    EPOCHS, MINIBATCHES = 10, 32

    def __init__(self, vector: Any, steps: int, seed: int = 0) -> None:
        torch.manual_seed(seed)
        width = int(np.prod(vector.single_observation_space.shape))
        self.vector, self.steps, self.envs = vector, steps, vector.num_envs
        self.net = _ActorCritic(width, vector.single_action_space)
        self.adam = torch.optim.Adam(self.net.parameters(), lr=3e-4, eps=1e-5)
        self.now = self._tensor(vector.reset(seed=seed)[0])
        self.done = torch.zeros(self.envs)

    def _tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(np.asarray(array), dtype=torch.float32).reshape(self.envs, -1)

    @torch.no_grad()
    def collect(self) -> dict[str, Tensor]:
        """One rollout, flat [T * B, ...], with advantages and returns."""
        steps: dict[str, list[Tensor]] = {}
        low = getattr(self.vector.single_action_space, "low", None)
        high = getattr(self.vector.single_action_space, "high", None)
        for _ in range(self.steps):
            distribution = self.net.distribution(self.now)
            action = distribution.sample()
            row = {
                "observations": self.now,
                "actions": action,
                "log_probs": distribution.log_prob(action),
                "values": self.net.critic(self.now).flatten(),
                "dones": self.done,
            }
            taken = action.numpy()
            if low is not None:
                taken = np.clip(taken, low, high)
            following, rewards, terminated, truncated, _ = self.vector.step(taken)
            self.now = self._tensor(following)
            self.done = torch.as_tensor(terminated | truncated, dtype=torch.float32)
            row["rewards"] = torch.as_tensor(rewards, dtype=torch.float32)
            for name, value in row.items():
                steps.setdefault(name, []).append(value)
        found = {name: torch.stack(values) for name, values in steps.items()}
        advantages = self._advantages(found)
        found["advantages"], found["returns"] = advantages, advantages + found["values"]
        return {name: value.flatten(0, 1) for name, value in found.items()}

    def _advantages(self, found: dict[str, Tensor]) -> Tensor:
        advantages = torch.zeros_like(found["rewards"])
        following, done = self.net.critic(self.now).flatten(), self.done
        running = torch.zeros(self.envs)
        for t in reversed(range(self.steps)):
            error = found["rewards"][t] + self.GAMMA * following * (1 - done) - found["values"][t]
            running = advantages[t] = error + self.GAMMA * self.LAMBDA * (1 - done) * running
            following, done = found["values"][t], found["dones"][t]
        return advantages

    def train(self, batch: dict[str, Tensor], epochs: int = EPOCHS) -> None:
        """Adam on the clipped objective and values."""
        rows = len(batch["returns"])
        for _ in range(epochs):
            order = torch.randperm(rows)
            for minibatch in order.split(rows // self.MINIBATCHES):
                loss = self._loss({name: value[minibatch] for name, value in batch.items()})
                self.adam.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.net.parameters(), 0.5)
                self.adam.step()

    def _loss(self, rows: dict[str, Tensor]) -> Tensor:
        distribution = self.net.distribution(rows["observations"])
        ratio = (distribution.log_prob(rows["actions"]) - rows["log_probs"]).exp()
        advantages = rows["advantages"]
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        clipped = ratio.clamp(1 - self.CLIP, 1 + self.CLIP)
        policy = -torch.minimum(advantages * ratio, advantages * clipped).mean()
        values = self.net.critic(rows["observations"]).flatten()
        near = rows["values"] + (values - rows["values"]).clamp(-self.CLIP, self.CLIP)
        errors = torch.maximum((values - rows["returns"]) ** 2, (near - rows["returns"]) ** 2)
        return policy + 0.5 * 0.5 * errors.mean()
