"""Agents that tests train on several ranks, and as one process."""

from __future__ import annotations

import contextlib
import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from trpo_fast import TRPO, cli
from trpo_fast.agent.config import ConfigError


@dataclass(frozen=True)
class Training:
    """One training, of so many updates."""

    name: str
    env: Any
    updates: int
    options: dict[str, Any] = field(default_factory=dict)
    vector: tuple[int, ...] = ()  # of each rank, where it brings environments of its own
    save: Path | None = None
    load: Path | None = None


SMALL: dict[str, Any] = {
    "num_envs": 5,
    "rollout_steps": 40,
    "hidden_sizes": (8, 8),
    "value_hidden_sizes": (8,),
    "critic_epochs": 2,
    "seed": 3,
}


def trained(training: Training, group: Any) -> dict[str, Any]:
    """What the training ended with."""
    env: Any = training.env
    if training.vector:
        rank = 0 if group is None else torch.distributed.get_rank()
        own = sum(training.vector) if group is None else training.vector[rank]
        env = gym.vector.SyncVectorEnv([lambda: gym.make(training.env)] * own)
    options = {**SMALL, **training.options}
    if training.load is not None:
        agent = TRPO.load(training.load, env, process_group=group)
    else:
        agent = TRPO(env, process_group=group, **options)
    found: dict[str, Any] = {"figures": []}
    with agent:

        def note(scope: dict[str, Any], _: Any) -> bool:
            found["figures"].append(scope["row"])
            return len(found["figures"]) < training.updates

        agent.learn(10**9, callback=note, progress_bar=False)
        if training.save is not None:
            agent.save(training.save)
        found["policy"] = flat(agent.policy)
        found["value"] = flat(agent.value_function)
        found["timesteps"] = agent.num_timesteps
        found["episodes"] = agent.progress.num_episodes
        found["returns"] = list(agent.training.recent_returns)
        found["lengths"] = list(agent.training.recent_lengths)
        learner = agent.learner
        assert learner.normalizer is not None
        assert learner.return_scaler is not None
        found["observations"] = learner.normalizer.state_dict()
        scaler = learner.return_scaler.state_dict()
        found["scale"] = {name: scaler[name] for name in ("mean", "var", "count")}
        found["curvature"] = learner.state_dict()["curvature"]
    return found


def flat(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()]).clone()


def run(trainings: list[Training]) -> list[dict[str, Any]]:
    """On a rank."""
    return [trained(training, torch.distributed.group.WORLD) for training in trainings]


def told(cases: list[tuple[Any, dict[str, Any]]]) -> list[str]:
    """On a rank: what agents on these environments, with these options, are refused with.

    Of those that are not, what they warn of.
    """
    found = []
    for env, options in cases:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                group = torch.distributed.group.WORLD
                TRPO(env, process_group=group, **{**SMALL, **options}).close()
                found.append(" ".join(str(warning.message) for warning in warned))
            except ConfigError as error:
                found.append(str(error))
    return found


def commanded(arguments: list[str]) -> tuple[int, str]:
    """On a rank: the command's exit code and what it said to stderr."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = cli.main(arguments)
    return code, said.getvalue()
