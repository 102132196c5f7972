"""The buffers of a rollout that stays on its device, and what is made of them at its end."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from trpo_fast.base.tensors import all_finite
from trpo_fast.environments.tensor_environments import TensorEnvironments, TensorTransition
from trpo_fast.rollouts.rollout import Rollout
from trpo_fast.rollouts.running_sums import running_sums


class TensorRecording:
    """T steps of B environments in tensors; writing a step waits for nothing.

    Args:
        env: the environments.
        steps: T.
        first: [B, O], what the policy is shown first.
        resetting: [B] bool, environments whose first step does nothing but reset.
    """

    def __init__(
        self, env: TensorEnvironments, steps: int, first: Tensor, resetting: Tensor
    ) -> None:
        self.env = env
        shape, device = (steps, env.num_envs), env.device
        self.observations = env.rows(steps + 1, env.num_envs)  # [T + 1, B, O]
        self.observations[0] = first
        self.rewards = torch.empty(shape, dtype=torch.float64, device=device)
        self.terminated = torch.empty(shape, dtype=torch.bool, device=device)
        self.truncated = torch.empty(shape, dtype=torch.bool, device=device)
        self.actions: Tensor | None = None  # [T, B, ...], the sampler's
        self._finals: Tensor | None = None  # [T, B, O]
        self._final_given = [env.resets_late] * steps
        self._resetting = resetting

    def keep(self, t: int, transition: TensorTransition) -> None:
        """Note what the environments answered at step t."""
        self.rewards[t] = transition.rewards
        self.terminated[t] = transition.terminated
        self.truncated[t] = transition.truncated
        if transition.final_observations is not None and not self.env.resets_late:
            if self._finals is None:
                self._finals = torch.empty_like(self.observations[:-1])
            self.env.write_final(transition.final_observations, self._finals[t])
            self._final_given[t] = True

    @property
    def ended(self) -> Tensor:
        """[T, B], where an episode ended."""
        return self.terminated | self.truncated

    def valid(self) -> Tensor:
        """[T, B], false in rows that only reset."""
        valid = torch.ones_like(self.terminated)
        if self.env.resets_late:
            valid[0] = ~self._resetting
            valid[1:] = ~self.ended[:-1]
        return valid

    def starts(self, lengths: Tensor) -> Tensor:
        """[T, B], the row at which the episode of each row began, below 0 for one before.

        Args:
            lengths: [B], steps of the running episodes before the first row.
        """
        steps = len(self.rewards)
        late = int(self.env.resets_late)
        rows = torch.arange(steps, device=lengths.device).unsqueeze(1)
        starts = torch.full((steps, self.env.num_envs), -(1 << 62), device=lengths.device)
        starts[0] = torch.where(self._resetting, 1, -lengths)
        # A row that only resets belongs to no episode: the next one begins after it.
        starts[1:] = torch.where(self.ended[:-1], rows[1:] + late, starts[1:])
        return starts.cummax(0).values

    def sums(self, before: Tensor) -> Tensor:
        """[T, B], the return of each row's episode so far, from ``before`` [B] on."""
        return running_sums(self.rewards, self.ended, before, 1.0)

    def cuts(self) -> tuple[Tensor, Tensor, Tensor, bool]:
        """Where episodes were truncated and not terminated, and what was seen there last.

        Returns:
            steps [K], environments [K], observations [K, O], and whether the environment gave all
            of the latter. Where it gave none, the observation that the episode's last action was
            chosen from stands in.
        """
        steps, envs = (self.truncated & ~self.terminated).nonzero(as_tuple=True)
        if self.env.resets_late:
            return steps, envs, self.observations[steps + 1, envs], True
        shown = self.observations[steps, envs]
        if self._finals is None:
            return steps, envs, shown, not len(steps)
        given = torch.tensor(self._final_given, device=steps.device)[steps]
        rows = torch.where(given.unsqueeze(1), self._finals[steps, envs], shown)
        return steps, envs, rows, bool(given.all())

    def finite(self, finals: Tensor) -> bool:
        """Whether all that came from the environment is finite in float32."""
        parts = (self.observations, self.rewards, finals)
        return all(all_finite(part.float()) for part in parts)

    def bad_rows(self, valid: Tensor, index: tuple[Tensor, Tensor], finals: Tensor) -> Tensor:
        """[T + 1, B], where a row's observation, reward or final observation is not finite.

        Of the last row the observation alone.
        """
        bad = ~torch.isfinite(self.observations.float()).all(-1)
        bad[:-1] &= valid
        bad[:-1] |= valid & ~torch.isfinite(self.rewards.float())
        bad[index] |= ~torch.isfinite(finals.float()).all(-1)
        if self.env.resets_late:
            bad[-1] &= ~self.ended[-1]
        return bad

    def what_is_bad(self, row: int, env: int) -> tuple[str, int]:
        """What is not finite in a row of ``bad_rows``, and the step that gave it (-1: a reset)."""
        if not bool(torch.isfinite(self.observations[row, env].float()).all()):
            return "a NaN or infinite observation, or an index outside its space,", row - 1
        reward = float(self.rewards[row, env])
        if math.isfinite(reward) and not math.isfinite(np.float32(reward)):
            limit = np.finfo(np.float32).max
            return f"the reward {reward:g}, beyond float32's {limit:.2g},", row
        if not math.isfinite(reward):
            return "a NaN or infinite reward", row
        return "a NaN or infinite final observation", row

    def blank(self, valid: Tensor) -> None:
        """Write 0 over the observations of rows that are left out, and what else is not finite."""
        self.observations[:-1].masked_fill_(~valid.unsqueeze(-1), 0)
        self.observations[-1].nan_to_num_(0.0, 0.0, 0.0)

    def rollout(
        self,
        log_probs: Tensor,
        valid: Tensor,
        cuts: tuple[Tensor, Tensor, Tensor],
        episodes: tuple[Tensor, Tensor],
        dropped: int,
    ) -> Rollout:
        """The rollout.

        Args:
            log_probs: [T, B].
            valid: [T, B].
            cuts: steps [K], environments [K] and final observations [K, O].
            episodes: returns and lengths so far at each row, [T, B].
            dropped: episodes left out.
        """
        assert self.actions is not None  # noqa: S101
        over = self.ended & valid
        returns, lengths = torch.stack([e[over].double() for e in episodes]).tolist()
        return Rollout(
            observations=self.observations[:-1],
            actions=self.actions,
            log_probs=log_probs,
            rewards=self.rewards,
            terminated=self.terminated,
            truncated=self.truncated,
            valid=valid,
            final_index=cuts[:2],
            final_observations=cuts[2],
            last_observations=self.observations[-1],
            action_masks=None,
            starts=episodes[1] == 1,
            memory=None,
            episode_returns=returns,
            episode_lengths=[int(length) for length in lengths],
            dropped_episodes=dropped,
        )
