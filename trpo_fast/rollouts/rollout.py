"""What a rollout holds, and the buffers it is written to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trpo_fast.base.tensors import finite_rows
from trpo_fast.base.trees import first_leaf, tree_leaves, tree_map, tree_rows
from trpo_fast.environments.interface import Environments, Transition

Bool = npt.NDArray[np.bool_]

# Rows per call of the value function, and numbers in them: bounds the memory of its hidden layers.
_VALUE_ROWS = 1 << 16
_VALUE_NUMBERS = 1 << 24
# Of rows with axes, such as images, whose features are as many numbers: what a core's cache holds.
_IMAGE_NUMBERS = 1 << 20


@dataclass
class Rollout:
    """T steps of B environments, time first, on the CPU.

    Rows that are not ``valid`` hold no transition (autoreset rows, dropped episodes) and are to
    be left out of every mean and every count.
    """

    # [T, B, O] as the environment gave them, rows; or a nesting of [T, B, ...], as networks see it
    observations: Any
    actions: Tensor  # [T, B] or [T, B, A], as distribution.sample() gave them
    log_probs: Tensor  # [T, B]
    rewards: Tensor  # [T, B] float64
    terminated: Tensor  # [T, B] bool
    truncated: Tensor  # [T, B] bool
    valid: Tensor  # [T, B] bool
    final_index: tuple[Tensor, Tensor]  # ([K], [K]): steps, environments
    final_observations: Any  # [K, O], where episodes were truncated and not terminated
    last_observations: Any  # [B, O], after the last row
    action_masks: Tensor | None  # [T, B, n] bool
    starts: Tensor  # [T, B] bool, where the observation is the first of an episode
    memory: Tensor | None  # [B, M], of a recurrent policy before the first row; None for others
    episode_returns: list[float]  # of the episodes that ended here, in order
    episode_lengths: list[int]
    dropped_episodes: int = 0

    @property
    def num_valid(self) -> int:
        """Number of transitions."""
        return int(self.valid.sum())

    def select(self, rows: Any) -> Any:
        """The valid rows of a nesting of [T, B, ...] as [N, ...]; views when all are valid."""
        flat = tree_map(lambda leaf: leaf.flatten(0, 1), rows)
        return flat if bool(self.valid.all()) else tree_rows(flat, self.valid.flatten())


def bootstrap_values(
    rollout: Rollout, value_fn: Callable[[Any], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """All values that advantage estimation needs, in one evaluation after the rollout.

    Args:
        rollout: T steps of B environments.
        value_fn: observations [N, ...] to values [N].

    Returns:
        ``values`` [T, B], ``last_values`` [B] and ``final_values`` [T, B], the latter 0 but where
        an episode was truncated without being terminated.
    """
    steps, envs = rollout.rewards.shape
    flat = tree_map(lambda leaf: leaf.flatten(0, 1), rollout.observations)
    values = _in_chunks(value_fn, flat).reshape(steps, envs)
    last_values = _in_chunks(value_fn, rollout.last_observations)
    final_values = torch.zeros_like(values)
    if len(first_leaf(rollout.final_observations)):
        final_values[rollout.final_index] = _in_chunks(value_fn, rollout.final_observations)
    return values, last_values, final_values


def _in_chunks(value_fn: Callable[[Any], Tensor], rows: Any) -> Tensor:
    count = len(first_leaf(rows))
    leaves = tree_leaves(rows)
    numbers = max(sum(leaf[:1].numel() for leaf in leaves), 1)
    most = _IMAGE_NUMBERS if any(leaf.ndim > 2 for leaf in leaves) else _VALUE_NUMBERS
    size = min(_VALUE_ROWS, -(-most // numbers))
    with torch.no_grad():
        parts = [
            value_fn(tree_rows(rows, slice(start, start + size)))
            for start in range(0, max(count, 1), size)
        ]
    values = torch.cat(parts) if len(parts) > 1 else parts[0]
    if values.shape != (count,):
        raise ValueError(
            f"the value function must give [N] values for [N, ...] observations; for N = "
            f"{count} it gave shape {tuple(values.shape)}."
        )
    return values


class Recording:
    """The buffers of one rollout, allocated once.

    Args:
        env: whose.
        steps: T.
        of: number of its first environment and how many there are in all, where ``env`` is one
            rank's share of them; a policy's noise is then drawn for all.
    """

    def __init__(self, env: Environments, steps: int, of: tuple[int, int] | None = None) -> None:
        self.first, self.all_envs = of or (0, env.num_envs)
        shape = (steps, env.num_envs)
        self._dtype = env.observation_dtype
        self._bad_rows = env.row_format.bad_rows
        rows = (steps + 1, env.num_envs, env.observation_width)
        self.observations: npt.NDArray[Any] = np.empty(rows, self._dtype)
        self.rewards = np.empty(shape)
        # As most steps leave them; the others are written.
        self.terminated = np.zeros(shape, bool)
        self.truncated = np.zeros(shape, bool)
        self.valid = np.ones(shape, bool)
        self.starts = np.zeros(shape, bool)
        self.memory: npt.NDArray[Any] | None = None
        self.masks: Bool | None = None
        self.actions: Tensor | None = None
        self.finals: list[tuple[int, npt.NDArray[np.int64], npt.NDArray[Any]]] = []
        self.episode_returns: list[float] = []
        self.episode_lengths: list[int] = []
        self.dropped = 0
        self._rewards_finite = finite_rows(self.rewards)
        self._observations_finite = env.row_format.finite_rows(self.observations)

    def keep_masks(self, t: int, masks: Bool) -> None:
        """Note the action masks [B, n] that step t was taken under."""
        if self.masks is None:
            self.masks = np.empty((*self.rewards.shape, masks.shape[1]), bool)
        self.masks[t] = masks

    def keep_actions(self, t: int, actions: Tensor) -> None:
        """Note the actions [B, ...] of step t, as sampled."""
        if self.actions is None:
            shape = (*self.rewards.shape, *actions.shape[1:])
            self.actions = torch.empty(shape, dtype=actions.dtype, device="cpu")
        self.actions[t] = actions

    def keep(self, t: int, transition: Transition) -> None:
        """Note what the environments answered at step t."""
        self.rewards[t] = transition.rewards
        if transition.quiet:
            return
        self.rewards[t, transition.resetting] = 0  # of no action, whatever is written there
        self.terminated[t] = transition.terminated
        self.truncated[t] = transition.truncated
        np.logical_not(transition.resetting, out=self.valid[t])
        if len(transition.final_envs):
            self.finals.append((t, transition.final_envs, transition.final_observations))

    def finite(self, t: int, transition: Transition) -> bool:
        """Whether all that step t brought is finite."""
        return (
            self._rewards_finite(t)
            and self._observations_finite(t + 1)
            and (transition.quiet or not self._bad_rows(transition.final_observations).any())
        )

    def forget_finals(self, t: int, envs: Bool) -> None:
        """Drop the final observations that ``envs`` [B] gave at step t."""
        if self.finals and self.finals[-1][0] == t:
            _, kept, rows = self.finals.pop()
            stay = ~envs[kept]
            self.finals.append((t, kept[stay], rows[stay]))

    def finish(self, last: npt.NDArray[Any], log_probs: Tensor) -> Rollout:
        """The rollout; its last observations are copied to ``last`` [B, O] too."""
        last[:] = self.observations[-1]
        width = self.observations.shape[-1]
        steps = [np.full(len(envs), t, np.int64) for t, envs, _ in self.finals]
        envs = [envs for _, envs, _ in self.finals]
        rows = [rows for _, _, rows in self.finals]
        none = np.empty(0, np.int64)
        observations = torch.from_numpy(self.observations)
        assert self.actions is not None  # noqa: S101
        return Rollout(
            observations=observations[:-1],
            actions=self.actions,
            log_probs=log_probs,
            rewards=torch.from_numpy(self.rewards),
            terminated=torch.from_numpy(self.terminated),
            truncated=torch.from_numpy(self.truncated),
            valid=torch.from_numpy(self.valid),
            final_index=(
                torch.from_numpy(np.concatenate([none, *steps])),
                torch.from_numpy(np.concatenate([none, *envs])),
            ),
            final_observations=torch.from_numpy(
                np.concatenate([np.empty((0, width), self._dtype), *rows])
            ),
            last_observations=observations[-1],
            action_masks=None if self.masks is None else torch.from_numpy(self.masks),
            starts=torch.from_numpy(self.starts),
            memory=None if self.memory is None else torch.from_numpy(self.memory),
            episode_returns=self.episode_returns,
            episode_lengths=self.episode_lengths,
            dropped_episodes=self.dropped,
        )
