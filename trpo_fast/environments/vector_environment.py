"""A vector of environments behind one interface, whatever it was made from.

Three conventions exist for what follows an episode's end (``metadata["autoreset_mode"]``), and
they differ in where the final observation is found:

* SAME_STEP: the step that ends an episode returns the next episode's first observation; the final
  one is in ``infos["final_obs"]``.
* NEXT_STEP: that step returns the final observation. The next step ignores the action and resets:
  a row that is no transition, masked out of everything.
* DISABLED: that step returns the final observation, and resetting is left to the caller.

:class:`VectorEnvironment` gives the same :class:`Transition` for all three.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.base.spaces import check_action_space, logit_blocks
from trpo_fast.environments.flattening import ObservationFlattener, Rows
from trpo_fast.environments.gymnasium_vectors import blamed_environment
from trpo_fast.environments.interface import Bool, Transition
from trpo_fast.environments.observation_check import ObservationCheck
from trpo_fast.environments.seeded_episodes import restart_seed

MASK_KEY = "action_mask"


class MaskSource(Enum):
    """Where action masks come from; its text says so in messages."""

    OBSERVATION = f"the {MASK_KEY!r} entry of the observation"
    INFOS = f"infos[{MASK_KEY!r}]"
    SEEDED_EPISODES = "the environment's action_masks() method"  # which they pass on in infos
    ENVIRONMENTS = "action_masks() of each environment"
    VECTOR = "action_masks() of the vector environment"

    def __str__(self) -> str:
        return self.value


class VectorEnvironment:
    """B environments stepped together, observations flattened to rows.

    Args:
        vector: a gymnasium vector environment.
        name: what to call it in messages.
        seed: of the first reset.
        remake: makes the same vector afresh; given where its members are :class:`SeededEpisodes`,
            whose episodes can be replayed.
        first: number of its first environment in messages, where it is a share of a larger vector.

    Attributes:
        mask_source: Where action masks come from; None without masks. Known after a reset.

    Raises:
        UnsupportedSpaceError: no policy here can serve one of its spaces.
    """

    def __init__(
        self,
        vector: VectorEnv[Any, Any, Any],
        *,
        name: str,
        seed: int,
        remake: Callable[[], VectorEnv[Any, Any, Any]] | None = None,
        first: int = 0,
    ) -> None:
        self.vector: Any = vector
        self.first = first
        self.choice = ""
        self.name = name
        self.seed = seed
        self._closed = False
        self.num_envs = int(vector.num_envs)
        self.action_space = vector.single_action_space
        check_action_space(self.action_space)
        self._blocks = logit_blocks(self.action_space)
        self.observation_space, self._mask_in_observation = without_mask(
            vector.single_observation_space, bool(self._blocks)
        )
        self._flatten = ObservationFlattener(self.observation_space)
        self._check = ObservationCheck(vector.single_observation_space)
        self._no_finals = np.empty((0, self.observation_width), self.observation_dtype)
        self.autoreset_mode = _autoreset_mode(vector)
        self._undeclared = vector.metadata.get("autoreset_mode") is None
        self._remake = remake
        self._seeded = remake is not None
        self.mask_source: MaskSource | None = None
        self._resetting = self._nowhere = np.zeros(self.num_envs, bool)

    @property
    def observation_width(self) -> int:
        """O, the width of a flattened observation."""
        return self._flatten.width

    @property
    def observation_dtype(self) -> type[np.floating[Any]]:
        """Of flattened observations: float32, or float64 where a space is wider."""
        return self._flatten.dtype

    @property
    def ended(self) -> bool:
        """Whether processes were ended, so that episodes must be entered anew before a step."""
        return self._closed and isinstance(self.vector.unwrapped, AsyncVectorEnv)

    @property
    def resumable(self) -> bool:
        """Whether running episodes can be replayed (environments made here, not given whole)."""
        return self._seeded

    def reset(self, out: Rows, restarts: int = 0) -> Bool | None:
        """Begin an episode everywhere, the first one where they are replayable.

        Observations go to ``out`` [B, O].

        Args:
            out: receives the observations.
            restarts: how often the run began again in environments that cannot be replayed: each
                time with other episodes.

        Returns:
            Action masks [B, n], or None for environments that give none.

        Raises:
            EnvironmentFault: an environment raised.
        """
        self._revive()
        if self._seeded:
            self._guard(self.vector.call, "rewind")
        seed = None if self._seeded else restart_seed(self.seed, restarts)
        batch, infos = self._guard(self.vector.reset, seed=seed)
        self._resetting = self._nowhere
        self._find_masks(infos)
        self._write(batch, out)
        return self._masks(batch, infos, self._nowhere)

    def step(self, actions: npt.NDArray[Any], out: Rows) -> Transition:
        """Act everywhere; what the policy acts on next goes to ``out`` [B, O].

        Args:
            actions: [B, ...] of the action space.
            out: receives the observations that follow, of the next episode where one ended (of
                the ended episode in NEXT_STEP, whose next row resets).

        Raises:
            EnvironmentFault: an environment raised or its process died.
        """
        batch, rewards, terminated, truncated, infos = self._guard(self.vector.step, actions)
        if self._undeclared and "final_obs" in infos:  # which no other convention gives
            self.autoreset_mode, self._undeclared = AutoresetMode.SAME_STEP, False
        terminated, truncated = np.asarray(terminated, bool), np.asarray(truncated, bool)
        self._write(batch, out)
        ended = terminated | truncated
        resetting, finals = self._resetting, _NO_ENVS
        final_observations = self._no_finals
        any_ended = bool(np.count_nonzero(ended))
        if any_ended:
            finals = np.flatnonzero(truncated & ~terminated)
            if len(finals):
                final_observations = self._final_observations(finals, out, infos)
            if self.autoreset_mode == AutoresetMode.DISABLED:
                batch, infos = self._reset_some(ended, infos, out)
        next_step = self.autoreset_mode == AutoresetMode.NEXT_STEP
        if next_step:
            self._resetting = ended if any_ended else self._nowhere
        return Transition(
            np.asarray(rewards, np.float64),
            terminated,
            truncated,
            ended,
            not any_ended and resetting is self._nowhere,
            resetting,
            resetting if next_step else ended,
            finals,
            final_observations,
            self._masks(batch, infos, self._resetting),
        )

    def reset_where(self, where: Bool, out: Rows, masks: Bool | None) -> Bool | None:
        """Abandon the running episodes of ``where`` [B] and begin new ones.

        Their rows of ``out`` are replaced; the action masks [B, n] of all environments returned.

        Raises:
            EnvironmentFault: this kind of vector environment cannot reset some of its members.
        """
        inner = self.vector.unwrapped
        can = self.autoreset_mode == AutoresetMode.DISABLED
        if not can and not isinstance(inner, (SyncVectorEnv, AsyncVectorEnv)):
            raise EnvironmentFault(
                f"{type(inner).__name__} cannot reset single environments, so their episodes "
                "cannot be dropped. Stop on faults instead, or use gymnasium's SyncVectorEnv."
            )
        batch, infos = self._reset_some(where, {}, out)
        still = self._resetting & ~where
        self._resetting = still if still.any() else self._nowhere
        if self.mask_source is None or masks is None:
            return None
        fresh = self._raw_masks(batch, infos)
        return self._checked_masks(np.where(where[:, None], fresh, masks))

    def _reset_some(
        self, where: Bool, infos: Mapping[str, Any], out: Rows
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environments of ``where``; their infos replace those in ``infos``."""
        batch, fresh = self._guard(self.vector.reset, options={"reset_mask": where.copy()})
        out[where] = self._write(batch)[where]
        merged = dict(infos)
        if MASK_KEY in fresh and MASK_KEY in infos:
            merged[MASK_KEY] = np.array(infos[MASK_KEY])
            merged[MASK_KEY][where] = fresh[MASK_KEY][where]
            merged[f"_{MASK_KEY}"] = infos[f"_{MASK_KEY}"] | fresh[f"_{MASK_KEY}"]
        elif MASK_KEY in fresh:
            merged |= {key: fresh[key] for key in (MASK_KEY, f"_{MASK_KEY}")}
        return batch, merged

    def _final_observations(
        self, envs: npt.NDArray[np.int64], out: Rows, infos: Mapping[str, Any]
    ) -> Rows:
        if self.autoreset_mode != AutoresetMode.SAME_STEP:
            return out[envs]
        if "final_obs" not in infos:
            raise EnvironmentFault(
                f"{self.name} resets in the step that ends an episode (SAME_STEP) but gave no "
                "infos['final_obs'], without which a truncated episode cannot be bootstrapped. "
                f"infos holds {sorted(infos)}.",
                env_index=int(envs[0]),
            )
        found = infos["final_obs"]
        if isinstance(found, Mapping):  # a batch of a Dict space, not an array of dicts
            rows: Rows = self._guard(self._flatten, found)
            return rows[envs]
        return np.stack([self._guard(self._flatten.one, found[env]) for env in envs])

    def _write(self, batch: Any, out: Rows | None = None) -> Rows:
        """The rows of a batch; EnvironmentFault where it is not what the space says."""
        inner = self.vector.unwrapped
        if not self._seeded and isinstance(inner, SyncVectorEnv):
            # Not the batch: there, numbers have been bent to the space already.
            for env, observation in enumerate(getattr(inner, "_env_obs", ())):
                try:
                    self._check(observation)
                except ValueError as error:
                    raise EnvironmentFault(
                        f"environment {env} of {self.name}: {error}", env_index=env
                    ) from error
        try:
            return self._flatten(batch, out)
        except ValueError as error:
            raise EnvironmentFault(f"{self.name}: {error}") from error

    # Action masks

    def _find_masks(self, infos: Mapping[str, Any]) -> None:
        if not self._blocks:
            return
        inner = self.vector.unwrapped
        if self._mask_in_observation:
            self.mask_source = MaskSource.OBSERVATION
        elif self._seeded and any(self._guard(self.vector.call, "has_mask_method")):
            self.mask_source = MaskSource.SEEDED_EPISODES
        elif MASK_KEY in infos:
            self.mask_source = MaskSource.INFOS
        elif isinstance(inner, SyncVectorEnv) and all(
            env.has_wrapper_attr("action_masks") for env in inner.envs
        ):
            self.mask_source = MaskSource.ENVIRONMENTS
        elif callable(getattr(self.vector, "action_masks", None)):
            self.mask_source = MaskSource.VECTOR

    def _masks(self, batch: Any, infos: Mapping[str, Any], ignore: Bool) -> Bool | None:
        if self.mask_source is None:
            self._refuse_late_masks(infos)
            return None
        return self._checked_masks(self._raw_masks(batch, infos), ignore)

    def _refuse_late_masks(self, infos: Mapping[str, Any]) -> None:
        if self._blocks and MASK_KEY in infos:
            raise EnvironmentFault(
                f"{self.name} gives infos[{MASK_KEY!r}] at a step but gave none at reset, where "
                "the first actions are chosen; give it at both."
            )

    def _raw_masks(self, batch: Any, infos: Mapping[str, Any]) -> Bool:
        """[B, n], unchecked."""
        given: Any
        if self._mask_in_observation:
            given = batch[MASK_KEY]
        elif self.mask_source is MaskSource.ENVIRONMENTS:
            given = self._guard(self.vector.call, "action_masks")
        elif self.mask_source is MaskSource.VECTOR:
            given = self._guard(self.vector.action_masks)
        else:  # what an environment does not forbid is allowed
            said = infos.get(f"_{MASK_KEY}", [MASK_KEY in infos] * self.num_envs)
            given = [infos[MASK_KEY][env] if said[env] else None for env in range(self.num_envs)]
        width = sum(self._blocks)
        masks = np.ones((self.num_envs, width), bool)
        for env, mask in enumerate(given):
            if mask is None:
                continue
            row = np.asarray(mask, bool).ravel()
            if row.shape != (width,):
                raise EnvironmentFault(
                    f"environment {self.first + env} gave an action mask of {row.size} entries; "
                    f"{self.action_space} has {width}.",
                    env_index=self.first + env,
                )
            masks[env] = row
        return masks

    def _checked_masks(self, masks: Bool, ignore: Bool | None = None) -> Bool:
        if ignore is not None:
            masks[ignore] = True  # that action is not taken, and the old episode may allow none
        offsets = np.concatenate([[0], np.cumsum(self._blocks)[:-1]])
        some = np.logical_or.reduceat(masks, offsets, axis=1)
        if not some.all():
            env, block = (int(i) for i in np.argwhere(~some)[0])
            raise EnvironmentFault(
                f"environment {self.first + env} allows no choice for action {block} "
                f"({self.mask_source} is all False there), yet its episode goes on.",
                env_index=self.first + env,
            )
        return masks

    def take_masks(self, source: MaskSource) -> None:
        """Ask for action masks from here on, though this vector has shown none.

        Those that it does not give allow everything: others of the same run do give some.
        """
        self.mask_source = self.mask_source or source

    # Replay

    def running_episodes(self) -> list[tuple[int, npt.NDArray[Any]]]:
        """Number and actions so far of each running episode; [] where not resumable."""
        if not self._seeded:
            return []
        return list(self._guard(self.vector.call, "running_episode"))

    def plain_states(self) -> list[dict[str, Any]]:
        """`SeededEpisodes.plain_state` of each environment."""
        return list(self._guard(self.vector.call, "plain_state"))

    def replay(self, episodes: Sequence[tuple[int, npt.NDArray[Any]]], out: Rows) -> None:
        """Enter the episodes that `running_episodes` gave; their observations go to ``out``.

        Raises:
            EnvironmentFault: an episode ends before its recorded actions do, so the environment
                does not depend on its seed and actions alone.
        """
        self._revive()
        self._resetting = self._nowhere
        numbered = dict(enumerate(episodes, self.first))
        for env, (observation, info, over) in enumerate(
            self._guard(self.vector.call, "replay", numbered)
        ):
            if self.mask_source is None:
                self._find_masks(info)
            if over:
                raise EnvironmentFault(
                    f"environment {self.first + env} ended its episode while it was being "
                    "replayed: it does not repeat itself from the same seed and actions, so it "
                    "cannot be resumed.",
                    env_index=self.first + env,
                )
            out[env] = self._guard(self._flatten.one, observation)

    # Faults and the end

    def _guard(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the vector environment; whatever it raises leaves as EnvironmentFault."""
        try:
            return call(*args, **kwargs)
        except EnvironmentFault as fault:
            if fault.__cause__ is None and fault.traceback:
                fault.add_note(f"In the environment's process:\n{fault.traceback}")
            self._terminate_workers()
            raise
        except Exception as error:
            blamed = blamed_environment(self.vector.unwrapped, error)
            env = None if blamed is None else self.first + blamed
            self._terminate_workers()
            who = self.name if env is None else f"environment {env} of {self.name}"
            text = str(error) or "its process died"
            raise EnvironmentFault(
                f"{who} raised {type(error).__name__}: {text}",
                env_index=env,
                trace="".join(traceback.format_exception(error)),
            ) from error

    def _revive(self) -> None:
        """Replace worker processes that a fault ended, or an interrupt left with answers unread."""
        inner = self.vector.unwrapped
        if self._remake is None or not isinstance(inner, AsyncVectorEnv):
            return
        if inner.closed or inner._state.value != "default":
            self._terminate_workers()
            self.vector = self._remake()
            self._closed = False

    def _terminate_workers(self) -> None:
        inner = self.vector.unwrapped
        if not isinstance(inner, AsyncVectorEnv) or inner.closed:
            return
        for process in inner.processes:
            process.terminate()
        for process in inner.processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in inner.parent_pipes:
            if pipe is not None:
                pipe.close()
        inner.closed = True

    def close(self) -> None:
        """Release the environments; processes end even if one of them is stuck in a call."""
        self._closed = True
        inner = self.vector.unwrapped
        if isinstance(inner, AsyncVectorEnv) and inner._state.value != "default":
            self._terminate_workers()
        self.vector.close()


_NO_ENVS: npt.NDArray[np.int64] = np.empty(0, np.int64)


def _autoreset_mode(vector: Any) -> AutoresetMode:
    mode = vector.metadata.get("autoreset_mode")
    if mode is None:
        warnings.warn(
            f"{type(vector).__name__} does not say in metadata['autoreset_mode'] what follows an "
            "episode's end; taking gymnasium's default, AutoresetMode.NEXT_STEP.",
            stacklevel=4,
        )
        return AutoresetMode.NEXT_STEP
    return mode if isinstance(mode, AutoresetMode) else AutoresetMode(mode)


def without_mask(space: spaces.Space[Any], maskable: bool) -> tuple[spaces.Space[Any], bool]:
    """The observation proper, and whether an action mask came with it."""
    if not maskable or not isinstance(space, spaces.Dict) or MASK_KEY not in space.spaces:
        return space, False
    rest = {key: part for key, part in space.spaces.items() if key != MASK_KEY}
    return spaces.Dict(rest), True
