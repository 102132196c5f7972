"""Agents that tests train on several ranks, and as one process."""

from __future__ import annotations

import contextlib
import copy
import io
import math
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from trpo_fast import TRPO, ValueFunction, cli
from trpo_fast.agent.config import ConfigError
from trpo_fast.agent.critic import Critic
from trpo_fast.agent.learner import Learner
from trpo_fast.agent.shared_critic import CriticFit, fit_critic
from trpo_fast.agent.shared_training import SharedTraining
from trpo_fast.base.errors import RankError
from trpo_fast.base.ranks import Ranks
from trpo_fast.rollouts.rollout import Rollout


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


def trained(training: Training, group: Any, shares: tuple[int, ...] = ()) -> dict[str, Any]:
    """What the training ended with.

    With ``shares`` in one process, whose critic is fitted as by ranks with so many environments.
    """
    with pytest.MonkeyPatch.context() as patch:
        if shares:
            update, valid = Learner.update, list[torch.Tensor]()

            def noting(learner: Learner, rollout: Rollout, *more: Any) -> Any:
                valid[:] = [rollout.valid]
                return update(learner, rollout, *more)

            patch.setattr(Learner, "update", noting)
            in_turn = partial(fit_in_turn, shares, valid)
            patch.setattr("trpo_fast.agent.learner.fit_critic", in_turn)
        return _trained(training, group)


def _trained(training: Training, group: Any) -> dict[str, Any]:
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

        if training.updates:
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
        assert learner.return_scaler is not None
        normalizer = learner.normalizer
        found["observations"] = {} if normalizer is None else normalizer.state_dict()
        scaler = learner.return_scaler.state_dict()
        found["scale"] = {name: scaler[name] for name in ("mean", "var", "count")}
        found["curvature"] = learner.state_dict()["curvature"]
    return found


def fit_in_turn(
    envs: tuple[int, ...],
    valid: list[torch.Tensor],
    critic: Any,
    observations: torch.Tensor,
    returns: torch.Tensor,
    rng: np.random.Generator,
    _: Any,
) -> CriticFit:
    """``fit_critic`` of ranks with so many environments each, in one process that has all rows."""
    total, draw = sum(envs), int(rng.integers(1 << 63))
    number = valid[0].nonzero()[:, 1]  # the environment of each row
    ends = np.cumsum(envs)
    noises = [np.random.Generator(np.random.Philox([draw, rank])) for rank in range(len(envs))]
    for _ in range(critic.epochs):
        own, errors = [], 0.0
        for noise, count, end in zip(noises, envs, ends, strict=True):
            rows = (number >= end - count) & (number < end)
            each = copy.deepcopy(critic)
            share = math.ceil(critic.batch_size * count / total)
            each.batch_size = min(max(share, 32), critic.batch_size)
            fit = each.fit(observations[rows], returns[rows], noise, epochs=1)
            part = float(rows.double().mean())
            errors += fit.loss * part
            own.append((part, each))
        become_mean(critic, own)
    return CriticFit(errors, 0)


def become_mean(critic: Any, own: list[tuple[float, Any]]) -> None:
    """Make the critic the mean of others, each with its part."""
    with torch.no_grad():
        for place, parameter in enumerate(critic.parameters):
            parameter.copy_(sum(part * each.parameters[place].double() for part, each in own))
    states = [(part, each.state_dict()) for part, each in own]
    mean = {
        number: {k: sum(part * state[number][k].double() for part, state in states) for k in entry}
        for number, entry in states[0][1].items()
    }
    for entry in mean.values():
        entry["step"] = entry["step"].round().float()
    critic.load_state_dict(mean)


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


def a_critic() -> Critic:
    noise = torch.Generator().manual_seed(0)
    value = ValueFunction(gym.spaces.Box(-1, 1, (3,)), (4,), generator=noise)
    value.register_buffer("mask", torch.tensor([0.0, -torch.inf]))  # as attention's
    return Critic(value, learning_rate=1e-2, epochs=3, batch_size=8)


def uneven_fits(_: Any) -> dict[str, Any]:
    """On a rank: a critic fitted where rank 1 has no rows, then where its second pass fails."""
    ranks = Ranks(torch.distributed.group.WORLD)
    shared = SharedTraining(ranks, replicated=False)
    critic = a_critic()
    rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    own = rows[: 20 * (ranks.rank == 0)]
    rng = np.random.default_rng(4)

    def fit() -> CriticFit:
        return fit_critic(critic, own, own.sum(-1), rng, shared)

    before = ranks.collectives
    found = {"loss": fit().loss, "collectives": ranks.collectives - before}
    found["fitted"], found["mask"] = state_of(critic), critic.value_function.mask.tolist()
    alone, rng_alone = a_critic(), np.random.default_rng(4)
    noise = np.random.Generator(np.random.Philox([int(rng_alone.integers(1 << 63)), 0]))
    found["loss alone"] = alone.fit(rows, rows.sum(-1), noise).loss
    found["alone"] = state_of(alone)
    fit_natively, passes = critic.fit, 0

    def failing(*given: Any, **more: Any) -> Any:
        nonlocal passes
        passes += 1
        if ranks.rank == 1 and passes == 2:
            raise KeyError("the second pass")
        return fit_natively(*given, **more)

    critic.fit = failing  # type: ignore[method-assign]
    try:
        fit()
    except (RankError, KeyError) as error:
        found["said"] = f"{type(error).__name__}: {error}"
    found["passes"], found["left"] = passes, state_of(critic)
    return found


def state_of(critic: Critic) -> list[torch.Tensor]:
    """Parameters, and Adam's moments and steps."""
    found = [flat(critic.value_function)]
    for entry in critic.state_dict().values():
        found += [entry[name].clone() for name in ("exp_avg", "exp_avg_sq", "step")]
    return found
