"""From what an environment shows to what it is given, outside training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor, nn

from trpo_fast.base.errors import BadObservationError
from trpo_fast.base.threads import one_thread_if_small
from trpo_fast.environments.action_masks import MASK_KEY, MaskReader, mask_rows
from trpo_fast.environments.flattening import ObservationFlattener, action_converter
from trpo_fast.environments.gymnasium_api import refuse_whole_results
from trpo_fast.environments.interface import Rows
from trpo_fast.environments.nested_actions import ActionNesting, is_nested_space
from trpo_fast.environments.observation_check import entry
from trpo_fast.environments.row_format import RowFormat
from trpo_fast.environments.tensor_flattening import (
    TensorFlattener,
    each_leaf,
    first_leaf,
    tensor_action_converter,
)
from trpo_fast.networks.distributions import mode
from trpo_fast.rollouts.observations import Shown, StructuredObservations, as_networks_see


class Actor:
    """A policy with its observation normaliser, acting on raw observations.

    Args:
        policy: module whose forward(obs [N, O]) gives a distribution.
        observation_space: of one raw observation (an action-mask entry is not part of it).
        action_space: of one action.
        normalizer: what makes of rows what the policy sees; None for flattened rows as they are.
    """

    def __init__(
        self,
        policy: nn.Module,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        normalizer: Shown | None,
    ) -> None:
        self.policy = policy
        self.observation_space = observation_space
        self._normalizer = normalizer
        self._flatten: RowFormat = ObservationFlattener(observation_space)
        if isinstance(normalizer, StructuredObservations):
            self._flatten = normalizer.rows
        # What makes the memory of a recurrent policy, of which others have none.
        self._memory: Any = getattr(policy, "initial_memory", None)
        self._to_env = action_converter(policy, action_space)
        self._nesting = ActionNesting(action_space) if is_nested_space(action_space) else None
        self._action_space = action_space
        self._masks = MaskReader(action_space)
        self._device = next((p.device for p in policy.parameters()), torch.device("cpu"))

    @property
    def remembers(self) -> bool:
        """Whether the policy has a memory."""
        return self._memory is not None

    def is_single(self, observation: Any) -> bool:
        """Whether this is one observation (not a batch); ValueError when it is neither."""
        leaf, space = observation, self.observation_space
        if not (isinstance(space, spaces.Tuple) and isinstance(space[-1], spaces.Dict)):
            refuse_whole_results(observation)
        while isinstance(space, spaces.Dict | spaces.Tuple):
            key: Any = next(iter(space.spaces)) if isinstance(space, spaces.Dict) else 0
            leaf, space = entry(leaf, key), space[key]
        shape, wanted = np.shape(leaf), tuple(space.shape or ())
        if shape == wanted:
            return True
        if shape[1:] == wanted and len(shape) == len(wanted) + 1:
            return False
        raise ValueError(f"observation of shape {shape}: expected {wanted}, or (n, *{wanted})")

    def act(
        self,
        observations: Any,
        *,
        deterministic: bool,
        masks: npt.ArrayLike | None = None,
        state: Any = None,
        episode_start: Any = None,
    ) -> tuple[Any, Any]:
        """Actions [n, ...] for env.step from a batch of raw observations, and the next state.

        Actions are nested as their space is.

        Args:
            observations: a batch, as gymnasium's vector environments stack it.
            deterministic: act by the mode, a Beta by its mean.
            masks: of the actions.
            state: what the last call returned, or None; see `_memory_of`.
            episode_start: [n], where an episode begins.

        Raises ValueError where one of them does not fit the space or is not finite.
        """
        rows = self._flatten(observations)
        whole = self._masks_of(masks, observations, len(rows))
        chosen, after = self.act_on(deterministic, rows, whole, state, episode_start)
        return chosen if self._nesting is None else self._nesting.batch(chosen), after

    def act_each(
        self,
        observations: Sequence[Any],
        masks: Sequence[npt.ArrayLike | None],
        states: Sequence[Any] = (),
        *,
        deterministic: bool,
    ) -> tuple[Any, Sequence[Any]]:
        """The n actions, each for env.step, for n single observations; and the next states.

        An observation's own mask counts where none is given beside it. A state of None is that at
        the beginning of an episode.
        """
        rows = np.stack([self._flatten.one(observation) for observation in observations])
        found = [self._mask_of(o, mask) for o, mask in zip(observations, masks, strict=True)]
        some = any(mask is not None for mask in found)
        whole = np.stack([self._masks.sized(mask) for mask in found]) if some else None
        if self._memory is None:
            return self._each(self._act(rows, deterministic, whole, None)[0]), states
        given = [self._memory_of(state, 1, None) for state in states or [None] * len(rows)]
        memory = tuple(torch.cat(parts) for parts in zip(*given, strict=True))
        actions, after = self._act(rows, deterministic, whole, memory)
        kept = _arrays(after)
        states = [tuple(part[:, i : i + 1] for part in kept) for i in range(len(rows))]
        return self._each(actions), states

    def _each(self, chosen: npt.NDArray[Any]) -> Any:
        """Each of n actions as the environment has it."""
        return chosen if self._nesting is None else [self._nesting.one(row) for row in chosen]

    def act_tensors(
        self, observations: Any, *, deterministic: bool, masks: Tensor | None = None
    ) -> Tensor:
        """Actions for a tensor environment's ``step``, from raw observations in tensors.

        Args:
            observations: one, or a batch of n, in the space's nesting; on any one device.
            deterministic: the distribution's mode (a Beta's mean), not a sample.
            masks: bool, [n, choices] (or [choices]).

        Returns:
            A tensor [n, ...] (or [...]) of the action space, where the observations are. Raises
            ValueError where they do not fit the space or are not finite.
        """
        single = self.is_single(observations)
        if single:
            observations = each_leaf(observations, lambda leaf: leaf[None])
            masks = None if masks is None else masks[None]
        leaf = first_leaf(observations)
        flatten = TensorFlattener(self.observation_space, leaf.device)
        rows = torch.empty((len(leaf), flatten.width), dtype=flatten.dtype, device=leaf.device)
        flatten(observations, rows)
        bad = ~torch.isfinite(rows.float()).all(1)
        if bool(bad.any()):
            env = int(bad.nonzero()[0])
            raise BadObservationError(env, self._flatten.bad_number(rows[env].numpy(force=True)))
        actions, _ = self._choose(rows.to(self._device), deterministic, masks, None)
        given = self.to_tensor_env(actions).to(leaf.device)
        return given[0] if single else given

    def to_tensor_env(self, actions: Tensor) -> Tensor:
        """What a tensor environment's ``step`` takes, from the policy's own actions."""
        return tensor_action_converter(self.policy, self._action_space, self._device)(actions)

    def act_on(
        self,
        deterministic: bool,
        rows: Rows,
        masks: npt.ArrayLike | None,
        state: Any = None,
        episode_start: Any = None,
    ) -> tuple[npt.NDArray[Any], Any]:
        """As `act`, from rows of observations [n, O] and their masks.

        Nested actions come as rows, which ``Environments.step`` takes.
        """
        memory = self._memory_of(state, len(rows), episode_start)
        found, after = self._act(rows, deterministic, masks, memory)
        return found, state if after is None else _arrays(after)

    def _memory_of(self, state: Any, count: int, episode_start: Any) -> tuple[Tensor, ...]:
        """The memory of a recurrent policy, () of others.

        `state` is Stable-Baselines3's: a tuple of arrays [1, n, size], those of an LSTM (h, c), or
        None for zeros. ValueError for anything else.
        """
        if self._memory is None:
            return ()
        memory: tuple[Tensor, ...] = self._memory(count)
        if state is not None:
            shape = (1, *memory[0].shape)
            given = state if isinstance(state, tuple | list) else (state,)
            shapes = [np.shape(part) for part in given]
            if shapes != [shape] * len(memory):
                raise ValueError(
                    f"state has arrays of shapes {shapes}, expected {len(memory)} of {shape}: what "
                    "predict returned for as many observations, or None"
                )
            memory = tuple(
                torch.as_tensor(np.asarray(part[0])).to(zeros)
                for part, zeros in zip(given, memory, strict=True)
            )
        if episode_start is None:
            return memory
        starts = np.asarray(episode_start, bool).reshape(-1)
        if len(starts) != count:
            raise ValueError(f"episode_start of {len(starts)} entries for {count} observations")
        fresh = torch.from_numpy(starts).to(memory[0].device)[:, None]
        return tuple(torch.where(fresh, 0.0, part) for part in memory)

    def _act(
        self,
        rows: Rows,
        deterministic: bool,
        masks: npt.ArrayLike | None,
        memory: tuple[Tensor, ...] | None,
    ) -> tuple[npt.NDArray[Any], Any]:
        """Actions, and the memory after them; None of a policy that has none."""
        bad = self._flatten.bad_rows(rows)
        if bad.any():
            env = int(np.flatnonzero(bad)[0])
            raise BadObservationError(env, self._flatten.bad_number(rows[env]))
        shown = torch.from_numpy(rows).to(self._device)
        actions, after = self._choose(shown, deterministic, masks, memory)
        return self._to_env(actions), after

    def act_rows(self, rows: Tensor, *, deterministic: bool) -> Tensor:
        """The policy's own actions [n, ...] on flattened raw observations [n, O]."""
        return self._choose(rows, deterministic, None, None)[0]

    def _choose(
        self, rows: Tensor, deterministic: bool, masks: Any, memory: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Any]:
        """The policy's own actions, and the memory after them."""
        obs = as_networks_see(rows, self._normalizer)
        training = self.policy.training
        self.policy.eval()
        try:
            with torch.no_grad(), one_thread_if_small(self.policy, len(rows)):
                distribution, after = self._distribution(obs, masks, memory)
                return mode(distribution) if deterministic else distribution.sample(), after
        finally:
            self.policy.train(training)

    def _distribution(
        self, obs: Any, masks: Any, memory: tuple[Tensor, ...] | None
    ) -> tuple[Any, Any]:
        given: dict[str, Any] = {}
        if masks is not None:
            own = isinstance(masks, Tensor)
            mask = masks if own else torch.from_numpy(np.asarray(masks, bool))
            given["action_mask"] = mask.to(self._device)
        if self._memory is None:
            return self.policy(obs, **given), None
        policy: Any = self.policy
        chosen, after = policy.step(obs, memory, **given)
        return chosen, after

    def _masks_of(
        self, masks: npt.ArrayLike | None, observations: Any, count: int
    ) -> npt.NDArray[Any] | None:
        """The masks [n, ...] of a batch, given or in its observations."""
        if masks is None:
            own = self._own_mask(observations)
            each = [] if own is None else mask_rows(own, count)
            return None if own is None else np.stack([self._masks.row(mask) for mask in each])
        self._require_choices()
        rows: list[Any]
        if is_nested_space(self._action_space) and isinstance(masks, Mapping | tuple):
            rows = mask_rows(masks, count)  # nested as a batch of actions is
        else:
            rows = list(masks) if isinstance(masks, Sequence) else list(np.asarray(masks))
        if len(rows) != count:
            raise ValueError(f"action_masks of {len(rows)} rows for {count} observations")
        return np.stack([self._masks.row(mask) for mask in rows])

    def _mask_of(
        self, observation: Any, mask: npt.ArrayLike | None
    ) -> npt.NDArray[np.bool_] | None:
        if mask is not None:
            self._require_choices()
            return self._masks.row(mask)
        own = self._own_mask(observation)
        return None if own is None else self._masks.row(own)

    def _own_mask(self, observation: Any) -> Any:
        """The mask in an observation whose space has no such entry of its own, or None."""
        space = self.observation_space
        own = isinstance(space, spaces.Dict) and MASK_KEY in space.spaces
        if not self._masks.width or own or not isinstance(observation, Mapping):
            return None
        return observation.get(MASK_KEY)

    def _require_choices(self) -> None:
        if not self._masks.width:
            raise ValueError(
                f"action masks are for discrete choices; actions here are {self._action_space}"
            )


def _arrays(memory: Sequence[Tensor]) -> tuple[npt.NDArray[Any], ...]:
    """A memory as Stable-Baselines3 hands it on: arrays [1, n, size]."""
    return tuple(part.numpy(force=True)[None] for part in memory)
