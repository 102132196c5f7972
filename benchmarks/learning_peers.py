"""sb3-contrib's TRPO and Stable-Baselines3's PPO, trained with rl-zoo3's settings for the task.

``hyperparams/trpo.yml`` and ``ppo.yml`` name v3 and v4 environments; the same settings are run on
v5. Where the zoo has none for a task, TRPO takes those of its MuJoCo tasks and PPO the class's
defaults, as the zoo does for Ant. Networks are the zoo's: two tanh layers of 64, and for PPO on its
tuned tasks two ReLU layers of 256.
"""

from __future__ import annotations

import time
from math import inf
from typing import Any

import numpy as np
from peer_ppo import ZOO
from training_runs import EPISODES, Run, shown

# Of sb3-contrib's TRPO: MuJoCo's common settings, and what tasks change of them.
TRPO_ZOO: dict[str, Any] = {
    "batch_size": 128,
    "n_steps": 1024,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "cg_max_steps": 25,
    "cg_damping": 0.1,
    "n_critic_updates": 20,
    "learning_rate": 1e-3,
}
TRPO_TASKS: dict[str, dict[str, Any]] = {
    "HalfCheetah": {"target_kl": 0.04},
    "Swimmer": {"gamma": 0.9999},
}
TRPO_ENVS = 2
PPO_ENVS = {"CartPole": 8}  # elsewhere 1
# Of PPO on the tasks that the zoo tuned with them.
PPO_NETWORKS = {"log_std_init": -2, "ortho_init": False, "net_arch": [256, 256]}
PPO_WIDE = ("HalfCheetah", "Hopper", "Walker2d")


def make_peer(agent: str, env: str, seed: int) -> Any:
    """An untrained peer: "sb3-contrib TRPO" or "SB3 PPO"."""
    import torch
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    task = env.partition("-")[0]
    made: Any
    if agent == "sb3-contrib TRPO":
        from sb3_contrib import TRPO

        made = TRPO
        count, keywords = TRPO_ENVS, {**TRPO_ZOO, **TRPO_TASKS.get(task, {})}
    else:
        from stable_baselines3 import PPO

        made = PPO
        count, keywords = PPO_ENVS.get(task, 1), dict(ZOO.get(task, {}))
        if task in PPO_WIDE:
            network = {**PPO_NETWORKS, "activation_fn": torch.nn.ReLU}
            keywords["policy_kwargs"] = network
    gamma = keywords.get("gamma", 0.99)
    vector = VecNormalize(make_vec_env(env, count, seed=seed), gamma=gamma)
    return made("MlpPolicy", vector, seed=seed, device="cpu", **keywords)


def train_peer(agent: str, env: str, steps: int, seed: int, until: float = inf) -> Run:
    """Train a peer once; the score is by the mode, as ours.

    Args:
        agent: "sb3-contrib TRPO" or "SB3 PPO".
        env: an id.
        steps: for which it is set up, schedules included.
        seed: of everything random.
        until: mean return of the last 100 training episodes at which it is stopped.
    """
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.evaluation import evaluate_policy

    curve: list[tuple[int, float]] = []

    class Note(BaseCallback):  # type: ignore[misc]
        def _on_step(self) -> bool:
            return not curve or curve[-1][1] < until

        def _on_rollout_end(self) -> None:
            returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]
            if returns:
                curve.append((self.num_timesteps, float(np.mean(returns))))

    model = make_peer(agent, env, seed)
    vector = model.get_env()
    began = time.perf_counter()
    model.learn(steps, callback=Note())
    seconds = time.perf_counter() - began
    vector.training, vector.norm_reward = False, False
    returns, _ = evaluate_policy(model, vector, EPISODES, return_episode_rewards=True)
    vector.close()
    return Run(
        env=env,
        steps=steps,
        seed=seed,
        arm=agent,
        score=float(np.mean(returns)),
        deviation=float(np.std(returns)),
        area=float(np.mean([value for _, value in curve])),
        seconds=seconds,
        share=float("nan"),
        greatest_share=float("nan"),
        accepted=float("nan"),
        curve=shown(curve),
    )
