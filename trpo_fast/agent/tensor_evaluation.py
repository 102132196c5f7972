"""Whole episodes of a policy in tensor environments, apart from training."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trpo_fast.agent.actor import Actor
from trpo_fast.agent.config import Config
from trpo_fast.agent.evaluation import (
    LARGEST,
    REPORT_SECONDS,
    Evaluation,
    check_episodes,
    episode_seed,
)
from trpo_fast.agent.making import tensor_environments
from trpo_fast.base.errors import EnvironmentFault, EnvironmentSetupError, users_level
from trpo_fast.environments.tensor_environments import TensorEnvironments
from trpo_fast.environments.tensor_source import is_recipe


@dataclass(frozen=True)
class TensorFactory:
    """How to make another tensor environment of the kind an agent trains on.

    Attributes:
        source: What the agent was given.
        env: What stands in for it in evaluations; None for the same.
        config: The agent's options.
    """

    source: Any
    env: Any
    config: Config

    @property
    def lent(self) -> bool:
        """Whether what it gives is the user's own object, not to be closed here."""
        return not is_recipe(self.source if self.env is None else self.env)

    def __call__(self, num_envs: int = 1) -> TensorEnvironments:
        """One with so many environments, where it can be asked for them."""
        if self.env is None and not is_recipe(self.source):
            raise EnvironmentSetupError(
                f"evaluation needs an environment of its own, and this {type(self.source).__name__}"
                " is the training's: pass env=, another one or a function that makes it; or play "
                "in the training's, eval_envs=0, which then begins new episodes"
            )
        source = self.source if self.env is None else self.env
        config = self.config.replace(
            num_envs=num_envs,
            seed=episode_seed(int(self.config.seed or 0), 0),
            env_kwargs=self.config.env_kwargs if is_recipe(source) else {},
        )
        return tensor_environments(source, config)


def run_tensor_episodes(
    actor: Actor,
    env: TensorEnvironments,
    episodes: int,
    config: Config,
    report: Callable[[str], None] | None = None,
) -> Evaluation:
    """Play so many episodes by deterministic actions, and report their returns.

    All environments play at once, each a fixed share of the episodes; see ``run_episodes``. One
    whose episode was stopped or dropped plays no further one: single ones cannot be reset.

    Raises:
        ValueError: `episodes` is below 1.
        EnvironmentFault: the environment raised or (on_fault="stop") gave NaN or infinity.
    """
    check_episodes(episodes)
    players = _Players(env, int(episodes), config.eval_max_steps, config.on_fault)
    due = time.monotonic() + REPORT_SECONDS
    while players.playing():
        players.step(actor)
        if report is not None and time.monotonic() >= due:
            due = time.monotonic() + REPORT_SECONDS
            report(f"evaluating: {len(players.done)} of {episodes} episodes")
    return players.result()


class _Players:
    """The environments of an evaluation, and what is left for each to play."""

    def __init__(
        self, env: TensorEnvironments, episodes: int, max_steps: int, on_fault: str
    ) -> None:
        self._env, self._max_steps, self._on_fault = env, max_steps, on_fault
        count = env.num_envs
        self._left = np.array([len(range(i, episodes, count)) for i in range(count)])
        self._totals, self._lengths = np.zeros(count), np.zeros(count, np.int64)
        self._resetting = np.zeros(count, bool)
        self.done: list[tuple[int, float, int]] = []  # environment, return, length
        self._cut = self._dropped = self._unplayed = 0
        self._rows = env.rows(count)
        env.reset(self._rows)

    def playing(self) -> bool:
        return bool(self._left.any())

    def step(self, actor: Actor) -> None:
        """Act everywhere, and count."""
        env, waiting = self._env, self._left > 0
        bad = ~torch.isfinite(self._rows.float()).all(1)
        seen = bad.numpy(force=True)
        self._give_up(seen & waiting & ~self._resetting, "a NaN or infinite observation")
        shown = torch.where(bad.unsqueeze(1), 0, self._rows)
        with torch.no_grad():
            actions = actor.to_tensor_env(actor.act_rows(shown, deterministic=True))
            transition = env.step(actions, self._rows)
        ends = transition.terminated | transition.truncated
        told = torch.stack([transition.rewards.double(), ends.double()]).numpy(force=True)
        rewards, ended = told[0], told[1] > 0
        counted = (self._left > 0) & ~self._resetting
        self._give_up(counted & ~(np.abs(rewards) <= LARGEST), "a NaN or infinite reward")
        counted &= self._left > 0
        self._totals[counted] += rewards[counted]
        self._lengths[counted] += 1
        long = counted & ~ended & (self._lengths >= self._max_steps)
        for index in np.flatnonzero((counted & ended) | long):
            self.done.append((int(index), float(self._totals[index]), int(self._lengths[index])))
            self._left[index] -= 1
        self._cut += int(long.sum())
        self._leave(long)
        self._totals[ended], self._lengths[ended] = 0.0, 0
        self._resetting = ended & env.resets_late

    def _give_up(self, bad: Any, what: str) -> None:
        if not bad.any():
            return
        index = int(np.flatnonzero(bad)[0])
        step = int(self._lengths[index])
        text = f"evaluation: environment {index} of {self._env.name} returned {what} after step"
        fault = EnvironmentFault(f"{text} {step} of its episode.", env_index=index, step=step)
        if self._on_fault != "drop":
            raise fault
        warnings.warn(f"{fault} The episode is left out.", RuntimeWarning, stacklevel=users_level())
        self._dropped += int(bad.sum())
        self._left[bad] -= 1
        self._leave(bad)

    def _leave(self, some: Any) -> None:
        self._unplayed += int(self._left[some].sum())
        self._left[some] = 0

    def result(self) -> Evaluation:
        """The episodes, in the order of environments."""
        if not self.done:
            raise EnvironmentFault("every episode of the evaluation was dropped: all gave NaN.")
        if self._cut or self._unplayed:
            warnings.warn(
                f"{self._cut} of {len(self.done)} evaluation episodes were stopped after "
                f"{self._max_steps} steps and count with the return they had (eval_max_steps), and "
                f"{self._unplayed} could not be played after one that was stopped or dropped",
                stacklevel=users_level(),
            )
        played = sorted(self.done, key=lambda episode: episode[0])
        returns = tuple(total for _, total, _ in played)
        lengths = tuple(length for _, _, length in played)
        return Evaluation(returns, lengths, self._cut, self._dropped)
