"""Collecting T steps in B environments without leaving their device.

Within the steps nothing waits for the device: what must be known on the host (episodes that ended,
whether anything is not finite) is asked for once, after the last of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trpo_fast.base.errors import EnvironmentFault, users_level
from trpo_fast.base.threads import SMALL_ARRAY, SMALL_STEP, one_thread
from trpo_fast.base.time_budget import TimeBudget
from trpo_fast.environments.tensor_contracts import FINAL_KEYS
from trpo_fast.environments.tensor_environments import TensorEnvironments
from trpo_fast.rollouts.observations import Shown
from trpo_fast.rollouts.rollout import Rollout
from trpo_fast.rollouts.samplers import sampling
from trpo_fast.rollouts.tensor_recording import TensorRecording
from trpo_fast.rollouts.tensor_samplers import tensor_sampler_for

State = dict[str, npt.NDArray[Any]]
NO_FINALS = (
    "{name} ends episodes by truncation without giving their last observations (looked for in "
    "info as {keys}): such an episode is continued with the value of the observation that its last "
    "action was chosen from, one step before its end. That biases the advantages of its last steps "
    "by what the value changes in a step. Said once."
)


class TensorCollector:
    """Steps tensor environments with a policy, episodes running on across rollouts.

    Args:
        env: the environments.
        on_fault: "stop": a NaN from an environment raises EnvironmentFault. "drop": its episode
            is masked out of the rollout, and one warning given.
    """

    def __init__(self, env: TensorEnvironments, on_fault: str = "stop") -> None:
        if on_fault not in ("stop", "drop"):
            raise ValueError(f"on_fault must be 'stop' or 'drop', got {on_fault!r}.")
        self.env = env
        self.on_fault = on_fault
        self.dropped_episodes = 0
        count, device = env.num_envs, env.device
        self._observations = env.rows(count)
        self._resetting = torch.zeros(count, dtype=torch.bool, device=device)
        self._returns = torch.zeros(count, dtype=torch.float64, device=device)
        self._lengths = torch.zeros(count, dtype=torch.int64, device=device)
        self._running = False  # whether the episodes are those that the last rollout left
        self._restarts = 0
        self._warned = False

    def collect(
        self,
        policy: nn.Module,
        normalizer: Shown | None,
        steps: int,
        rng: np.random.Generator,
        budget: TimeBudget | None = None,
    ) -> Rollout:
        """Step every environment ``steps`` times; see ``RolloutCollector.collect``.

        Raises:
            EnvironmentFault: the environment raised, broke its contract, or (on_fault="stop") gave
                a NaN.

        After any exception the next call begins new episodes: these cannot be replayed.
        """
        if steps < 1:
            raise ValueError(f"a rollout needs at least one step, got {steps!r}.")
        budget = budget or TimeBudget()
        with budget.phase("env"):
            if self.env.ended or not self._running:
                self._reset()
        self._running = False
        seed = int(rng.integers(1 << 63))
        recording = TensorRecording(self.env, steps, self._observations, self._resetting)
        # Threads that an operator of the environment wakes spin on the cores that the native
        # sampler wants next, at every step.
        small = self._observations.is_cpu and self._observations.numel() <= SMALL_STEP
        with sampling(policy, seed):
            sampler = tensor_sampler_for(policy, normalizer, recording, self.env.action_space, rng)
            for t in range(steps):
                start = perf_counter()
                actions = sampler(t)
                acted = perf_counter()
                with one_thread(small):
                    transition = self.env.step(actions, recording.observations[t + 1])
                    recording.keep(t, transition)
                budget.add("inference", acted - start)
                budget.add("env", perf_counter() - acted)
            log_probs = sampler.log_probs()
            with one_thread(recording.observations.numel() <= SMALL_ARRAY):
                rollout = self._finish(recording, log_probs)
        if not rollout.num_valid and not rollout.dropped_episodes:
            # NEXT_STEP: one row, in which every environment did nothing but reset.
            return self.collect(policy, normalizer, steps, rng, budget)
        if not rollout.num_valid:
            raise EnvironmentFault(
                f"every episode of this rollout was dropped: {self.env.name} gives NaN at every "
                "turn. Check its observations and rewards."
            )
        return rollout

    def _reset(self) -> None:
        # Out of order: what came before is left, and another seed begins the next.
        self.env.reset(self._observations, self._restarts)
        self._restarts += 1
        for counts in (self._resetting, self._returns, self._lengths):
            counts.zero_()

    def _finish(self, recording: TensorRecording, log_probs: Tensor) -> Rollout:
        """The rollout, and where its episodes stand at its end."""
        valid, starts = recording.valid(), recording.starts(self._lengths)
        recording.rewards.masked_fill_(~valid, 0)  # what a row that only resets gives is nobody's
        rows = torch.arange(len(starts), device=starts.device).unsqueeze(1)
        lengths = rows + 1 - starts
        *cuts, given = recording.cuts()
        if not given:
            self._warn_of_missing_finals()
        dropped, running = 0, True
        steps, envs, finals = cuts
        if not recording.finite(finals):
            bad = recording.bad_rows(valid, (steps, envs), finals)
            if bool(bad.any()):
                if self.on_fault == "stop":
                    raise self._fault(recording, bad, lengths)
                dropped, running = self._drop(recording, bad, valid)
                stay = valid[steps, envs]
                steps, envs, finals = steps[stay], envs[stay], finals[stay]
            recording.blank(valid)
        sums = recording.sums(self._returns)
        ended = recording.ended[-1]
        self._returns = torch.where(ended, 0.0, sums[-1])
        self._lengths = torch.where(ended, 0, lengths[-1])
        self._resetting = ended & self.env.resets_late
        self._observations.copy_(recording.observations[-1])
        self._running = running
        return recording.rollout(log_probs, valid, (steps, envs, finals), (sums, lengths), dropped)

    def _warn_of_missing_finals(self) -> None:
        if not self._warned:
            keys = " or ".join(FINAL_KEYS)
            text = NO_FINALS.format(name=self.env.name, keys=keys)
            warnings.warn(text, RuntimeWarning, stacklevel=users_level())
        self._warned = True

    # NaN from an environment

    def _fault(self, recording: TensorRecording, bad: Tensor, lengths: Tensor) -> EnvironmentFault:
        """What was not finite first, by whose doing."""
        row, env = (int(i) for i in bad.nonzero()[0])
        what, at = recording.what_is_bad(row, env)
        assert recording.actions is not None  # noqa: S101
        begins = at < row and (bool(recording.ended[at, env]) or not bool(lengths[at, env]))
        if at < 0 or begins:
            step, action, when = 0, None, "at its reset"
        else:
            step = int(lengths[at, env])
            action = recording.actions[at, env].numpy(force=True)
            when = f"at step {step} of its episode, after action {action.tolist()}"
        hint = "Check the environment, or use on_fault='drop' to leave such episodes out."
        if action is not None and not np.isfinite(action).all():
            hint = (
                "The policy gave that action: what it was shown, or its parameters, is too large."
            )
        return EnvironmentFault(
            f"environment {env} of {self.env.name} returned {what} {when}. {hint}",
            env_index=env,
            step=step,
            action=action,
        )

    def _drop(self, recording: TensorRecording, bad: Tensor, valid: Tensor) -> tuple[int, bool]:
        """Take the episodes of ``bad`` [T + 1, B] out of ``valid`` [T, B].

        Returns:
            How many they are, and whether the others can go on: single environments cannot be
            reset here, so where one of them still runs, all begin anew.
        """
        number = torch.zeros_like(bad, dtype=torch.int64)  # [T + 1, B], which episode a row is of
        number[1:] = recording.ended.cumsum(0)
        of_episode = torch.zeros_like(number).scatter_add_(0, number, bad.long())
        dropped = of_episode.gather(0, number) > 0
        count = int((of_episode > 0).sum())
        valid &= ~dropped[:-1]
        recording.rewards[dropped[:-1]] = 0
        if not self.dropped_episodes:
            warnings.warn(
                f"environment {int(bad.nonzero()[0, 1])} of {self.env.name} returned NaN or "
                "infinity; its episode is dropped. Further ones are counted, not announced.",
                RuntimeWarning,
                stacklevel=users_level(),
            )
        self.dropped_episodes += count
        return count, not bool(dropped[-1].any())

    # State

    def lend(self) -> TensorEnvironments:
        """The environments, for episodes that are not the rollout's; which begins anew."""
        self._running = False
        return self.env

    def state(self) -> State:
        """What is kept of the environments between runs; {} before the first rollout.

        Their episodes cannot be replayed: they begin anew, with other seeds than those of before.
        """
        if not self._restarts:
            return {}
        return {
            "restarts": np.array(self._restarts),
            "returns": self._returns.numpy(force=True).copy(),
        }

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Begin new episodes at the next rollout: the same ones each time from the same state."""
        self._restarts = int(state.get("restarts", 0))
        self._running = False
