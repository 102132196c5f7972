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

import os
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from trpo_fast.base.errors import EnvironmentFault, users_level
from trpo_fast.base.spaces import Space, check_action_space
from trpo_fast.environments.action_masks import MaskSource
from trpo_fast.environments.flattening import ObservationFlattener
from trpo_fast.environments.gymnasium_vectors import blamed_environment
from trpo_fast.environments.interface import Bool, Rows, Transition
from trpo_fast.environments.nested_actions import ActionNesting, is_nested_space, own_space
from trpo_fast.environments.observation_check import ObservationCheck
from trpo_fast.environments.process_vector import end_processes
from trpo_fast.environments.processes import closed, death, warn_of_closing
from trpo_fast.environments.row_format import RowFormat
from trpo_fast.environments.seeded_episodes import restart_seed
from trpo_fast.environments.vector_masks import VectorMasks, merged_masks


class VectorEnvironment:
    """B environments stepped together, each observation a row.

    Args:
        vector: a gymnasium vector environment.
        name: what to call it in messages.
        seed: of the first reset.
        remake: makes the same vector afresh; given where its members are :class:`SeededEpisodes`,
            whose episodes can be replayed.
        first: number of its first environment in messages, where it is a share of a larger vector.
        rows: makes the format of its observations from their space.

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
        rows: Callable[[Space], RowFormat] = ObservationFlattener,
    ) -> None:
        self.vector: Any = vector
        self.first = first
        self.choice = ""
        self.name = name
        self.seed = seed
        self._closed = False
        self._unanswered = False
        self._maker = os.getpid()
        self.num_envs = int(vector.num_envs)
        self.action_space = own_space(vector.single_action_space)
        check_action_space(self.action_space)
        # A vector that was given whole takes nested actions nested; ours take rows.
        whole = is_nested_space(vector.single_action_space)
        self._nested = ActionNesting(self.action_space).batch if whole else None
        self._masks = VectorMasks(
            vector.single_observation_space,
            self.action_space,
            num_envs=self.num_envs,
            name=name,
            first=first,
            guard=self._guard,
        )
        self.observation_space = self._masks.observation_space
        self._flatten = self.row_format = rows(self.observation_space)
        self._check = ObservationCheck(vector.single_observation_space)
        self._no_finals = np.empty((0, self.observation_width), self.observation_dtype)
        self.autoreset_mode = _autoreset_mode(vector)
        self._undeclared = vector.metadata.get("autoreset_mode") is None
        self._remake = remake
        self._seeded = remake is not None
        self._resetting = self._nowhere = np.zeros(self.num_envs, bool)

    @property
    def observation_width(self) -> int:
        """O, the width of a row of observations."""
        return self._flatten.width

    @property
    def observation_dtype(self) -> type[np.generic]:
        """Of a row of observations, see `RowFormat`."""
        return self._flatten.dtype

    @property
    def mask_source(self) -> MaskSource | None:
        """Where action masks come from; None without masks. Known after a reset."""
        return self._masks.source

    @property
    def ended(self) -> bool:
        """Whether episodes must be entered anew before a step.

        It was closed, or its processes are those of the program that this one was forked from.
        """
        return self._closed or self._elsewhere

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
        self._masks.find(self.vector, infos, seeded=self._seeded)
        self._write(batch, out)
        return self._masks.read(self.vector, batch, infos, self._nowhere)

    def step(self, actions: npt.NDArray[Any], out: Rows) -> Transition:
        """Act everywhere; what the policy acts on next goes to ``out`` [B, O].

        Args:
            actions: [B, ...] of the action space; of a nested one rows, as ``nested_actions`` has
                them.
            out: receives the observations that follow, of the next episode where one ended (of
                the ended episode in NEXT_STEP, whose next row resets).

        Raises:
            EnvironmentFault: an environment raised or its process died.
        """
        given: Any = actions if self._nested is None else self._nested(actions)
        batch, rewards, terminated, truncated, infos = self._guard(self.vector.step, given)
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
            self._masks.read(self.vector, batch, infos, self._resetting),
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
        return self._masks.replace(masks, where, self.vector, batch, infos)

    def _reset_some(
        self, where: Bool, infos: Mapping[str, Any], out: Rows
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environments of ``where``; their infos replace those in ``infos``."""
        batch, fresh = self._guard(self.vector.reset, options={"reset_mask": where.copy()})
        out[where] = self._write(batch)[where]
        return batch, merged_masks(infos, fresh, where)

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
        inner = None if self._seeded else self.vector.unwrapped
        if isinstance(inner, SyncVectorEnv):
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

    def take_masks(self, source: MaskSource) -> None:
        """Ask for action masks from here on, though this vector has shown none.

        Those that it does not give allow everything: others of the same run do give some.
        """
        self._masks.source = self._masks.source or source

    # Replay

    def running_episodes(self) -> list[tuple[int, npt.NDArray[Any]]]:
        """Number and actions so far of each running episode; [] where not resumable."""
        if not self._seeded:
            return []
        if self._lost:
            raise EnvironmentFault(f"the processes of {self.name} were ended or interrupted.")
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
                self._masks.find(self.vector, info, seeded=True)
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
        if self._elsewhere:
            raise self._beyond_reach()
        self._unanswered = True
        try:
            returned = call(*args, **kwargs)
        except EnvironmentFault as fault:
            if fault.__cause__ is None and fault.traceback:
                fault.add_note(f"In the environment's process:\n{fault.traceback}")
            self._end_processes()
            raise
        except Exception as error:
            told = self._fault(error)
            self._end_processes()
            raise told from error
        self._unanswered = False
        return returned

    def _fault(self, error: Exception) -> EnvironmentFault:
        """What an exception of the vector is in words."""
        inner = self.vector.unwrapped
        blamed = blamed_environment(inner, error)
        env = None if blamed is None else self.first + blamed
        who = self.name if env is None else f"environment {env} of {self.name}"
        what = f" raised {type(error).__name__}: {error}"
        if blamed is not None and isinstance(error, (EOFError, ConnectionError)):
            what = f": {death(inner.processes[blamed])}"
        trace = "".join(traceback.format_exception(error))
        return EnvironmentFault(f"{who}{what}", env_index=env, trace=trace)

    @property
    def _lost(self) -> bool:
        """Whether there are processes of which no answer can be had, or none that fits."""
        inner = self.vector.unwrapped
        gone = isinstance(inner, AsyncVectorEnv) and (inner.closed or self._unanswered)
        return gone or self._elsewhere

    @property
    def _elsewhere(self) -> bool:
        """Whether its processes are another program's, of which this one is a fork."""
        return self._maker != os.getpid() and isinstance(self.vector.unwrapped, AsyncVectorEnv)

    def _revive(self) -> None:
        """Make the vector anew where it was closed, or its processes ended or owe answers."""
        if self._remake is not None and (self._lost or self._closed):
            self._end_processes()
            self.vector = self._remake()
            self._maker = os.getpid()
            self._closed = self._unanswered = False
        elif self._lost:
            raise self._beyond_reach()

    def _beyond_reach(self) -> EnvironmentFault:
        what = "are another program's" if self._elsewhere else "were ended or interrupted"
        return EnvironmentFault(
            f"the processes of {self.name} {what}, and a vector environment that was given whole "
            "cannot be made again here: save the agent, and load it with a new one (env=)."
        )

    def _end_processes(self) -> None:
        inner = self.vector.unwrapped
        if self._elsewhere:
            inner.closed = True  # its own __del__ would end them
        elif isinstance(inner, AsyncVectorEnv) and not inner.closed:
            end_processes(inner)

    def close(self) -> None:
        """Release the environments; processes end even if one of them is stuck in a call.

        What an environment raises in close(), or that it does not return, is a warning.
        """
        self._closed = True
        if self._unanswered or self._elsewhere:
            self._end_processes()
        self._unanswered = True  # whatever interrupts it, processes are not asked again
        warn_of_closing(self.name, [closed(self.vector.close)])


_NO_ENVS: npt.NDArray[np.int64] = np.empty(0, np.int64)


def _autoreset_mode(vector: Any) -> AutoresetMode:
    mode = vector.metadata.get("autoreset_mode")
    if mode is None:
        warnings.warn(
            f"{type(vector).__name__} does not say in metadata['autoreset_mode'] what follows an "
            "episode's end; taking gymnasium's default, AutoresetMode.NEXT_STEP.",
            stacklevel=users_level(),
        )
        return AutoresetMode.NEXT_STEP
    return mode if isinstance(mode, AutoresetMode) else AutoresetMode(mode)
