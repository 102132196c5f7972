"""Collecting T steps in B environments with one batched policy call a step."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from trpo_fast.base.errors import EnvironmentFault, users_level
from trpo_fast.base.tensors import bad_rows
from trpo_fast.base.threads import one_thread_if_small
from trpo_fast.base.time_budget import TimeBudget
from trpo_fast.environments.interface import Environments, Transition
from trpo_fast.environments.seeded_episodes import SEED_BITS
from trpo_fast.rollouts.observations import Shown
from trpo_fast.rollouts.rollout import Recording, Rollout
from trpo_fast.rollouts.samplers import RecurrentSampler, Sampler, sampler_for, sampling

Bool = npt.NDArray[np.bool_]
NO_NUMBER = "a NaN or infinite observation"
State = dict[str, npt.NDArray[Any]]


class RolloutCollector:
    """Steps a vector of environments with a policy, episodes running on across rollouts.

    Args:
        env: the environments.
        on_fault: "stop": a NaN from an environment raises EnvironmentFault. "drop": its episode
            is masked out, a new one begun, and one warning given.
        of: as ``Recording`` takes it.
    """

    def __init__(
        self, env: Environments, on_fault: str = "stop", of: tuple[int, int] | None = None
    ) -> None:
        if on_fault not in ("stop", "drop"):
            raise ValueError(f"on_fault must be 'stop' or 'drop', got {on_fault!r}.")
        self.env = env
        self.on_fault = on_fault
        self._of = of
        self.dropped_episodes = 0
        self._bad_rows = env.row_format.bad_rows
        shape = env.num_envs, env.observation_width
        self._observations: npt.NDArray[Any] = np.zeros(shape, env.observation_dtype)
        self._masks: Bool | None = None
        self._memory: npt.NDArray[Any] | None = None  # [B, M], of a recurrent policy
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, np.int64)
        self._started = False
        self._restarts = 0  # of environments that cannot be replayed
        # Where the last whole rollout ended: what is saved, and gone back to from an unfinished
        # one. Environments that were closed or interrupted cannot be asked for it.
        self._boundary: State | None = None
        self._unfinished = False
        self._lent = False

    def collect(
        self,
        policy: nn.Module,
        normalizer: Shown | None,
        steps: int,
        rng: np.random.Generator,
        budget: TimeBudget | None = None,
    ) -> Rollout:
        """Step every environment ``steps`` times.

        Args:
            policy: ``policy(obs)`` or ``policy(obs, action_mask=mask)`` gives a distribution of
                batch_shape [B]; in eval mode meanwhile.
            normalizer: makes of them what the policy sees; the rollout keeps raw observations.
            steps: T. A single step that only resets (NEXT_STEP) is followed by another.
            rng: gives the noise of the whole rollout, and a seed for torch, on which a policy that
                samples for itself draws; torch's own generator is left as it was.
            budget: the times of the environments and of the policy are counted in it.

        Raises:
            EnvironmentFault: an environment raised, died, or (on_fault="stop") gave a NaN.

        After any exception the next call begins again where this one began, if the environments
        can be replayed.
        """
        if steps < 1:
            raise ValueError(f"a rollout needs at least one step, got {steps!r}.")
        budget = budget or TimeBudget()
        with budget.phase("env"):
            self._begin()
        seed = int(rng.integers(1 << 63))
        if self._of is not None:  # a policy that draws for itself draws for these environments
            seed = int(np.random.SeedSequence((seed, self._of[0])).generate_state(1, np.uint64)[0])
            seed >>= 1
        recording = Recording(self.env, steps, self._of)
        with (
            sampling(policy, seed),
            one_thread_if_small(policy, self.env.num_envs),
            np.errstate(over="ignore"),
        ):
            sampler = sampler_for(policy, normalizer, recording, self.env.action_space, rng)
            if isinstance(sampler, RecurrentSampler):
                self._memory = sampler.enter(self._memory, self._lengths == 0)
            for t in range(steps):
                self._step(t, recording, sampler, budget)
            rollout = recording.finish(self._observations, sampler.log_probs())
        if not rollout.num_valid and not rollout.dropped_episodes:
            # NEXT_STEP: one row, in which every environment did nothing but reset.
            return self.collect(policy, normalizer, steps, rng, budget)
        if not rollout.num_valid:
            raise EnvironmentFault(
                f"every episode of this rollout was dropped: {self.env.name} gives NaN at every "
                "turn. Check its observations and rewards."
            )
        self._boundary = self._capture()
        self._unfinished = False
        return rollout

    def _begin(self) -> None:
        boundary, lent = self._boundary, self._lent
        elsewhere = self._unfinished or self.env.ended or lent
        if boundary is not None and elsewhere and self.env.resumable:
            try:
                self._return(boundary) if lent else self.restore(boundary)
            except BaseException:
                self._lent = lent
                raise
            finally:
                self._boundary, self._unfinished = boundary, True
            return
        if boundary is not None and lent:
            self.restore(boundary)  # with new episodes
        if not self._started:
            self._reset()
        if boundary is None or not self.env.resumable:
            self._started = False  # an interrupt here begins anew
            self._boundary = self._capture()
            self._started = True
        self._unfinished = True

    def _reset(self) -> None:
        self._lent = False
        self._masks = self.env.reset(self._observations, self._restarts)
        self._at_first_steps()

    def _at_first_steps(self) -> None:
        """Every environment shows the first observation of an episode."""
        self._returns[:] = 0
        self._lengths[:] = 0
        self._renew(self._bad_rows(self._observations), self._observations)
        self._started = True

    def _step(
        self,
        t: int,
        recording: Recording,
        sampler: Sampler,
        budget: TimeBudget,
    ) -> None:
        now, following = recording.observations[t], recording.observations[t + 1]
        if t == 0:
            now[:] = self._observations
        if self._masks is not None:
            recording.keep_masks(t, self._masks)
        np.equal(self._lengths, 0, out=recording.starts[t])
        start = perf_counter()
        env_actions = sampler(t)
        acted = perf_counter()
        transition = self.env.step(env_actions, following)
        budget.add("inference", acted - start)
        budget.add("env", perf_counter() - acted)
        self._masks = transition.action_masks
        recording.keep(t, transition)
        self._lengths += 1 if transition.quiet else recording.valid[t]
        self._returns += recording.rewards[t]
        finite = recording.finite(t, transition)
        if not finite:
            self._faults(t, recording, transition, env_actions)
        if not (transition.quiet and finite):
            self._end_episodes(t, recording)

    def _end_episodes(self, t: int, recording: Recording) -> None:
        ended = recording.terminated[t] | recording.truncated[t]
        for env in np.flatnonzero(ended):
            if recording.valid[t, env]:
                recording.episode_returns.append(float(self._returns[env]))
                recording.episode_lengths.append(int(self._lengths[env]))
        self._returns[ended] = 0
        self._lengths[ended] = 0

    # NaN from an environment

    def _faults(
        self,
        t: int,
        recording: Recording,
        transition: Transition,
        env_actions: npt.NDArray[Any],
    ) -> None:
        following = recording.observations[t + 1]
        bad_row = self._bad_rows(following)
        # Where an episode was terminated its final observation has no use, and environments do
        # terminate because it is not finite. NEXT_STEP alone shows it here.
        unused = bad_row & transition.terminated & ~transition.fresh
        following[unused] = 0
        bad_reward = bad_rows(recording.rewards[t][:, None])
        bad_episode = bad_reward | (bad_row & ~unused & ~transition.fresh)
        bad_final = self._bad_rows(transition.final_observations)
        bad_episode[transition.final_envs[bad_final]] = True
        if bad_episode.any():
            if self.on_fault == "stop":
                env = int(np.flatnonzero(bad_episode)[0])
                reward = recording.rewards[t, env]
                final = transition.final_observations[transition.final_envs == env]
                what = NO_NUMBER + self._bad_place(*final, following[env])
                what = "a NaN or infinite reward" if bad_reward[env] else what
                if bad_reward[env] and np.isfinite(reward):
                    what = f"the reward {reward:g}, beyond float32's {np.finfo(np.float32).max:.2g}"
                raise self._nan_fault(env, what, env_actions)
            self._drop(t, bad_episode, recording, transition)
        self._renew(bad_row & transition.fresh & ~bad_episode, following)

    def _bad_place(self, *rows: npt.NDArray[Any]) -> str:
        """Where the first bad one of some rows is, in words."""
        bad = [row for row in rows if self._bad_rows(row[None]).any()]
        return self.env.row_format.bad_place(bad[0]) if bad else ""

    def _nan_fault(
        self, env: int, what: str, env_actions: npt.NDArray[Any] | None
    ) -> EnvironmentFault:
        step = int(self._lengths[env])
        action = None if env_actions is None else np.array(env_actions[env])
        after = "at its reset" if action is None else f"at step {step} of its episode"
        given = "" if action is None else f", after action {action.tolist()}"
        hint = "Check the environment, or use on_fault='drop' to leave such episodes out."
        if action is not None and not np.isfinite(action).all():
            hint = "The policy gave that action: its parameters are no longer finite."
        return EnvironmentFault(
            f"environment {env} of {self.env.name} returned {what} {after}{given}. {hint}",
            env_index=env,
            step=step,
            action=action,
        )

    def _drop(self, t: int, bad: Bool, recording: Recording, transition: Transition) -> None:
        """Mask the running episodes of ``bad`` out of this rollout and begin new ones."""
        following = recording.observations[t + 1]
        self._count_dropped(bad, "")
        for env in np.flatnonzero(bad):
            first = max(0, t + 1 - int(self._lengths[env]))
            recording.valid[first : t + 1, env] = False
        recording.rewards[t, bad] = 0
        recording.terminated[t, bad] = True
        recording.truncated[t, bad] = False
        recording.forget_finals(t, bad)
        pending = bad & transition.ended & ~transition.fresh  # NEXT_STEP resets these by itself
        following[pending] = 0
        recording.dropped += int(bad.sum())
        running = bad & ~transition.ended
        if running.any():
            self._masks = self.env.reset_where(running, following, self._masks)
        self._require_finite_start(bad & ~pending, following)

    def _renew(self, bad: Bool, observations: npt.NDArray[Any]) -> None:
        """Reset once more where the first observation of an episode is not finite."""
        if not bad.any():
            return
        if self.on_fault == "stop":
            env = int(np.flatnonzero(bad)[0])
            raise self._nan_fault(env, NO_NUMBER + self._bad_place(observations[env]), None)
        self._count_dropped(bad, " at a reset")
        self._masks = self.env.reset_where(bad, observations, self._masks)
        self._require_finite_start(bad, observations)

    def _require_finite_start(self, where: Bool, observations: npt.NDArray[Any]) -> None:
        bad = where & self._bad_rows(observations)
        if bad.any():
            env = int(np.flatnonzero(bad)[0])
            raise self._nan_fault(env, NO_NUMBER + self._bad_place(observations[env]), None)

    def _count_dropped(self, bad: Bool, when: str) -> None:
        if not self.dropped_episodes:
            warnings.warn(
                f"environment {int(np.flatnonzero(bad)[0])} of {self.env.name} returned NaN or "
                f"infinity{when}; its episode is dropped. Further ones are counted, not announced.",
                RuntimeWarning,
                stacklevel=users_level(),
            )
        self.dropped_episodes += int(bad.sum())

    # State

    def lend(self) -> Environments:
        """The environments, for episodes that are not the training's.

        The running ones are entered again before the next rollout, or new ones begun where they
        cannot be. :meth:`state` stays what it was.
        """
        if self._boundary is None and self._started:
            self._boundary = self._capture()
        self._lent = True
        self._started = self._boundary is not None
        return self.env

    def _return(self, boundary: State) -> None:
        """Enter the running episodes again after the environments were lent."""
        try:
            self.restore(boundary)
        except EnvironmentFault as fault:
            self._begin_next_episodes(
                boundary,
                f"the episodes of {self.env.name} that ran before an evaluation in the same "
                f"environments cannot be entered again ({fault}): new ones begin.",
            )

    def state(self) -> State:
        """Everything needed to go on from the last finished rollout, as plain arrays.

        After an exception in mid-rollout this is the state in which that rollout began. {} before
        the first one. The caller keeps the state of ``rng``.
        """
        if self._boundary is not None:
            return dict(self._boundary)
        return self._capture() if self._started else {}

    def _capture(self) -> State:
        state: State = {
            "observations": self._observations.copy(),
            "returns": self._returns.copy(),
            "lengths": self._lengths.copy(),
            "restarts": np.array(self._restarts),
        }
        if self._masks is not None:
            state["masks"] = self._masks.copy()
        if self._memory is not None:
            state["memory"] = self._memory.copy()
        if self.env.resumable:
            episodes = self.env.running_episodes()
            state["seed_bits"] = np.array(SEED_BITS)
            state["episodes"] = np.array([number for number, _ in episodes], np.int64)
            state["action_counts"] = np.array([len(acts) for _, acts in episodes], np.int64)
            taken = [acts for _, acts in episodes]
            state["actions"] = np.concatenate([acts for acts in taken if len(acts)] or taken)
        return state

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on where :meth:`state` was taken, replaying the running episodes.

        Environments that cannot be replayed begin new episodes, of another seed each time that a
        run goes on: going on twice from one state gives the same ones. A warning is given when a
        replay does not lead to the recorded observation: the environment is then not deterministic.

        Raises:
            ValueError: the state is not one of this collector's shape.
            EnvironmentFault: an environment raised, or ended an episode too early.
        """
        self._boundary, self._unfinished, self._lent = None, False, False
        self._memory = np.array(state["memory"]) if "memory" in state else None
        if not state:
            self._reset()
            return
        _check_state(state, self._observations.shape)
        if not self.env.resumable or "episodes" not in state:
            # The same state leads to the same episodes, and those are not the ones it has seen.
            self._restarts = int(state.get("restarts", 0)) + 1
            self._reset()
            return
        if int(state.get("seed_bits", 32)) != SEED_BITS:
            self._begin_next_episodes(
                state,
                f"this run was saved by a version that seeded episodes with 32 bits, now "
                f"{SEED_BITS}: the running episodes of {self.env.name} are left for new ones, and "
                "it differs from an uninterrupted run from here on.",
            )
            return
        ends = np.cumsum(state["action_counts"])
        actions = np.split(np.asarray(state["actions"]), ends[:-1])
        numbers = [int(number) for number in state["episodes"]]
        self.env.replay(list(zip(numbers, actions, strict=True)), self._observations)
        recorded = np.asarray(state["observations"])  # of float32 in every older checkpoint
        differs = self._observations.astype(recorded.dtype, copy=False) != recorded
        if differs.any():
            env = int(np.argwhere(differs)[0][0])
            warnings.warn(
                f"replaying the episode of environment {env} of {self.env.name} led to another "
                "observation than recorded: the environment does not depend on its seed and "
                "actions alone, so this run will differ from an uninterrupted one.",
                RuntimeWarning,
                stacklevel=users_level(),
            )
        self._masks = np.array(state["masks"], bool) if "masks" in state else None
        self._returns = np.array(state["returns"], np.float64)
        self._lengths = np.array(state["lengths"], np.int64)
        self._started = True

    def _begin_next_episodes(self, state: Mapping[str, npt.NDArray[Any]], why: str) -> None:
        """Of a state whose running episodes cannot be replayed."""
        warnings.warn(why, RuntimeWarning, stacklevel=users_level())
        nothing = np.split(np.asarray(state["actions"])[:0], self.env.num_envs)
        begun = [int(number) for number in state["episodes"]]
        self.env.replay(list(zip(begun, nothing, strict=True)), self._observations)
        masks = np.array(state["masks"], bool) if "masks" in state else None
        everywhere = np.ones(self.env.num_envs, bool)
        self._masks = self.env.reset_where(everywhere, self._observations, masks)
        self._at_first_steps()


def _check_state(state: Mapping[str, npt.NDArray[Any]], shape: tuple[int, ...]) -> None:
    found = np.shape(state["observations"]) if "observations" in state else ()
    if found != shape:
        raise ValueError(
            f"this state is of {found} observations [environments, width]; this run has {shape}. "
            "Resume with the environment and number of environments it was saved with."
        )
    for name in ("returns", "lengths", "episodes", "action_counts"):
        if name in state and np.shape(state[name]) != shape[:1]:
            raise ValueError(
                f"state: {name} must have shape {shape[:1]}, got {np.shape(state[name])}."
            )
    if "episodes" in state and int(np.sum(state["action_counts"])) != len(state["actions"]):
        raise ValueError("state: the number of recorded actions does not match action_counts.")
