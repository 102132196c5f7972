"""``learn`` of ``trpo_fast.sb3.TRPO`` and ``sb3_contrib.TRPO``: the import is all that differs.

``python benchmarks/sb3_drop_in.py [ENV_ID] [--envs 8] [--n-steps 1024] [--turns 3]``: each turn
both learn for five rollouts, one after the other, from the same seed; steps a second of each, and
the median of the turns' ratios.
"""

from __future__ import annotations

import argparse
import time
import warnings
from statistics import median
from typing import Any

import sb3_contrib
import torch
from stable_baselines3.common.env_util import make_vec_env

import trpo_fast.sb3

ROLLOUTS = 5


def steps_per_second(kind: Any, env_id: str, envs: int, n_steps: int) -> float:
    """Of ``learn``, after one rollout and update to warm up."""
    env = make_vec_env(env_id, n_envs=envs, seed=0)
    model = kind("MlpPolicy", env, n_steps=n_steps, seed=0, device="cpu")
    model.learn(envs * n_steps)
    start = time.perf_counter()
    model.learn(ROLLOUTS * envs * n_steps)
    seconds = time.perf_counter() - start
    env.close()
    return ROLLOUTS * envs * n_steps / seconds


def main() -> None:
    """Print a row a turn and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env_id", nargs="?", default="HalfCheetah-v5")
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument("--n-steps", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    sizes = options.env_id, options.envs, options.n_steps
    print(
        f"{options.env_id}, {options.envs} x {options.n_steps}, {torch.get_num_threads()} threads"
    )
    ratios = []
    for turn in range(options.turns):
        ours = steps_per_second(trpo_fast.sb3.TRPO, *sizes)
        theirs = steps_per_second(sb3_contrib.TRPO, *sizes)
        ratios.append(ours / theirs)
        print(
            f"turn {turn}: trpo_fast.sb3 {ours:,.0f} steps/s, sb3-contrib {theirs:,.0f} steps/s, "
            f"{ratios[-1]:.2f}x",
            flush=True,
        )
    print(f"median {median(ratios):.2f}x")


if __name__ == "__main__":
    main()
