"""Batches of real training runs, early and late: what an update is given, and the policy it is for.

Training our own agent with plain conjugate gradients makes them; they are kept under
``benchmarks/.rollouts/`` (not in version control), one file a run, and made again where missing:

    OMP_NUM_THREADS=1 python benchmarks/rollouts.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trpo_fast import MlpPolicy
from trpo_fast.agent.agent import TRPO

CACHE = Path(__file__).resolve().parent / ".rollouts"


@dataclass(frozen=True)
class Run:
    """A training run and the updates (counted from 1) whose batches are kept."""

    env: str
    rollout_steps: int
    updates: tuple[int, ...]
    hidden: tuple[int, ...] = (64, 64)
    num_envs: int = 8

    @property
    def rows(self) -> int:
        return self.rollout_steps * self.num_envs

    @property
    def path(self) -> Path:
        widths = "x".join(map(str, self.hidden))
        return CACHE / f"{self.env}-{self.rows}-{widths}.pt"


RUNS = (
    Run("HalfCheetah-v5", 1024, (3, 60)),
    Run("Hopper-v5", 1024, (3, 40)),
    Run("Ant-v5", 1024, (3, 40)),
    Run("HalfCheetah-v5", 3125, (3, 20)),
    Run("Ant-v5", 512, (3, 25), hidden=(1024, 1024)),
)


@dataclass(frozen=True)
class Sample:
    """One update's input. Flat vectors follow ``policy.parameters()``."""

    run: Run
    update: int
    policy: MlpPolicy  # at theta_old, float32
    obs: Tensor  # [N, O], normalised
    actions: Tensor  # [N, A] or [N]
    advantages: Tensor  # [N]


def samples_of(run: Run) -> list[Sample]:
    """The run's batches, from the cache or by training."""
    if not run.path.exists():
        _train(run)
    kept: list[dict[str, Any]] = torch.load(run.path, weights_only=False)
    return [Sample(run=run, **item) for item in kept]


def _train(run: Run) -> None:
    kept: list[dict[str, Any]] = []
    with TRPO(
        run.env,
        num_envs=run.num_envs,
        rollout_steps=run.rollout_steps,
        hidden_sizes=run.hidden,
        preconditioner="none",
        step_size="damped",
        max_kl_per="action",
        distribution="gaussian",
        seed=0,
    ) as agent:
        optimizer = agent.learner.optimizer
        step = optimizer.step

        def keep(**inputs: Any) -> Tensor:
            if agent.progress.num_updates + 1 in run.updates:
                names = ("obs", "actions", "advantages")
                batch = {name: inputs[name].clone() for name in names}
                policy = MlpPolicy(
                    agent.observation_space, agent.action_space, run.hidden, agent.config.activation
                )
                policy.load_state_dict(agent.policy.state_dict())
                kept.append({"update": agent.progress.num_updates + 1, "policy": policy, **batch})
            return step(**inputs)

        optimizer.step = keep  # type: ignore[method-assign,assignment]
        agent.learn(run.rows * max(run.updates), progress_bar=False)
    run.path.parent.mkdir(exist_ok=True)
    torch.save(kept, run.path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make every batch that is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args(arguments)
    for run in RUNS:
        for sample in samples_of(run):
            print(f"{run.path.name:<32}update {sample.update:>3}  obs {tuple(sample.obs.shape)}")


if __name__ == "__main__":
    main()
