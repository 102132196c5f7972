"""Whole episodes of a policy in the training's own environments, where no others may be made.

They are seeded apart from the training's. What the training was at is entered again afterwards, see
`RolloutCollector.lend`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from trpo_fast.agent.config import Config
from trpo_fast.agent.evaluation import (
    EVALUATION_KEY,
    LARGEST,
    REPORT_SECONDS,
    Episode,
    Evaluation,
    check_episodes,
    result_of,
)
from trpo_fast.base.errors import EnvironmentFault, users_level
from trpo_fast.base.spaces import logit_blocks
from trpo_fast.environments.interface import Bool, Environments, Rows

# (rows of observations [B, O], action masks [B, n] or None, the state that it returned, where an
# episode begins [B]) -> actions [B, ...] for env.step, and the next state.
ActRows = Callable[[Rows, Bool | None, Any, Bool], tuple[npt.NDArray[np.generic], Any]]
# Evaluation's episodes are numbered from here on: training does not come so far.
FIRST_EPISODE = 10**9


def run_in(
    env: Environments,
    act: ActRows,
    episodes: int,
    config: Config,
    report: Callable[[str], None] | None = None,
) -> Evaluation:
    """Play so many episodes in environments that exist, a fixed share in each.

    Args:
        env: the environments; afterwards they are amid other episodes than before.
        act: the policy.
        episodes: how many.
        config: `eval_max_steps` and `on_fault`, as for `run_episodes`.
        report: gets a line every ten seconds.

    Raises:
        ValueError: `episodes` is below 1.
        EnvironmentFault: an environment raised or (on_fault="stop") gave NaN or infinity, or
            `eval_max_steps` was reached in one that cannot be reset by itself.
    """
    check_episodes(episodes)
    play = _Play(env, episodes, config.eval_max_steps, config.on_fault)
    due = time.monotonic() + REPORT_SECONDS
    try:
        play.begin()
        while play.left.any():
            play.step(act)
            if report is not None and time.monotonic() >= due:
                due = time.monotonic() + REPORT_SECONDS
                longest = int(play.lengths[play.left > 0].max(initial=0))
                report(
                    f"evaluating: {len(play.done)} of {episodes} episodes, the longest running at "
                    f"step {longest}"
                )
    except EnvironmentFault as fault:
        fault.add_note("This was in an evaluation in the training's environments (eval_envs=0).")
        raise
    return result_of(play.done, config.eval_max_steps)


class _Play:
    """B environments, and how many episodes each has yet to finish."""

    def __init__(self, env: Environments, episodes: int, max_steps: int, on_fault: str) -> None:
        self.env = env
        self.done: list[Episode] = []
        count = env.num_envs
        self.left = episodes // count + (np.arange(count) < episodes % count)
        self._played = np.zeros(count, np.int64)
        self.lengths = np.zeros(count, np.int64)
        self._rows = np.zeros((count, env.observation_width), env.observation_dtype)
        self._masks: Bool | None = None
        self._returns = np.zeros(count)
        self._state: Any = None  # of the policy
        self._max_steps, self._on_fault = max_steps, on_fault

    def begin(self) -> None:
        """Begin an episode everywhere."""
        env = self.env
        if env.resumable:
            before = [(FIRST_EPISODE - 1, np.empty(0))] * env.num_envs
            env.replay(before, self._rows)
            everywhere = np.ones(env.num_envs, bool)
            width = sum(logit_blocks(env.action_space))
            masks = np.ones((env.num_envs, width), bool) if env.mask_source else None
            self._masks = env.reset_where(everywhere, self._rows, masks)
        else:
            self._masks = env.reset(self._rows, EVALUATION_KEY)

    def step(self, act: ActRows) -> None:
        """Act everywhere; in those that have played their share, for company."""
        bad = self.env.row_format.bad_rows(self._rows)
        self._rows[bad & (self.left == 0)] = 0
        self._drop(bad & (self.left > 0), "a NaN or infinite observation")
        actions, self._state = act(self._rows, self._masks, self._state, self.lengths == 0)
        done = self.env.step(actions, self._rows)
        self._masks = done.action_masks
        # NEXT_STEP shows what an episode ended with, which nobody acts on.
        self._rows[done.ended & ~done.fresh] = 0
        counted = ~done.resetting & (self.left > 0)
        self.lengths += counted
        self._returns[counted] += done.rewards[counted]
        bad = counted & ~(np.abs(done.rewards) <= LARGEST)  # NaN is not, either
        self._finish(done.ended & counted & ~bad)
        self._drop(bad, "a reward that is NaN, infinite or beyond float32", done.ended)
        cut = counted & ~bad & ~done.ended & (self.lengths >= self._max_steps)
        if cut.any():
            self._finish(cut, cut=True)
            self._masks = self.env.reset_where(cut, self._rows, self._masks)

    def _finish(self, where: Bool, *, cut: bool = False, dropped: bool = False) -> None:
        for i in np.flatnonzero(where):
            number = int(self._played[i] * self.env.num_envs + i)
            total, length = float(self._returns[i]), int(self.lengths[i])
            self.done.append(Episode(number, total, length, cut, dropped))
        self._played[where] += 1
        self.left[where] -= 1
        self._returns[where], self.lengths[where] = 0, 0

    def _drop(self, bad: Bool, what: str, ended: Bool | bool = False) -> None:
        """Give up the episodes of ``bad`` [B]; a fault where they may not be."""
        if not bad.any():
            return
        index = int(np.flatnonzero(bad)[0])
        step = int(self.lengths[index])
        text = (
            f"environment {index} of {self.env.name} returned {what} at step {step} of an "
            "evaluation episode."
        )
        if self._on_fault != "drop":
            raise EnvironmentFault(text, env_index=index, step=step)
        warnings.warn(f"{text} The episode is left out.", RuntimeWarning, stacklevel=users_level())
        self._finish(bad, dropped=True)
        running = bad & ~np.asarray(ended)
        if running.any():
            self._masks = self.env.reset_where(running, self._rows, self._masks)
