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
from trpo_fast.environments.action_masks import MASK_KEY, MaskReader
from trpo_fast.environments.flattening import ObservationFlattener, action_converter
from trpo_fast.environments.gymnasium_api import refuse_whole_results
from trpo_fast.environments.interface import Rows
from trpo_fast.environments.observation_check import entry
from trpo_fast.environments.row_format import RowFormat
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
        self._to_env = action_converter(policy, action_space)
        self._action_space = action_space
        self._masks = MaskReader(action_space)
        self._device = next((p.device for p in policy.parameters()), torch.device("cpu"))

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
        self, observations: Any, *, deterministic: bool, masks: npt.ArrayLike | None = None
    ) -> npt.NDArray[Any]:
        """Actions [n, ...] for env.step from a batch of raw observations.

        Raises ValueError where one of them does not fit the space or is not finite.
        """
        rows = self._flatten(observations)
        return self.act_on(deterministic, rows, self._masks_of(masks, observations, len(rows)))

    def act_each(
        self,
        observations: Sequence[Any],
        masks: Sequence[npt.ArrayLike | None],
        *,
        deterministic: bool,
    ) -> npt.NDArray[Any]:
        """Actions [n, ...] for a list of n single observations and their masks.

        An observation's own mask counts where none is given beside it.
        """
        rows = np.stack([self._flatten.one(observation) for observation in observations])
        found = [self._mask_of(o, mask) for o, mask in zip(observations, masks, strict=True)]
        some = any(mask is not None for mask in found)
        whole = np.stack([self._masks.sized(mask) for mask in found]) if some else None
        return self.act_on(deterministic, rows, whole)

    def act_on(
        self, deterministic: bool, rows: Rows, masks: npt.ArrayLike | None
    ) -> npt.NDArray[Any]:
        """Actions [n, ...] for env.step from rows of observations [n, O] and their masks."""
        bad = self._flatten.bad_rows(rows)
        if bad.any():
            env = int(np.flatnonzero(bad)[0])
            raise BadObservationError(env, self._flatten.bad_number(rows[env]))
        obs = as_networks_see(torch.from_numpy(rows).to(self._device), self._normalizer)
        training = self.policy.training
        self.policy.eval()
        try:
            with torch.no_grad(), one_thread_if_small(self.policy, len(rows)):
                distribution = self._distribution(obs, masks)
                actions: Tensor = mode(distribution) if deterministic else distribution.sample()
        finally:
            self.policy.train(training)
        return self._to_env(actions)

    def _distribution(self, obs: Any, masks: npt.ArrayLike | None) -> Any:
        if masks is None:
            return self.policy(obs)
        return self.policy(
            obs, action_mask=torch.from_numpy(np.asarray(masks, bool)).to(self._device)
        )

    def _masks_of(
        self, masks: npt.ArrayLike | None, observations: Any, count: int
    ) -> npt.NDArray[Any] | None:
        """The masks [n, ...] of a batch, given or in its observations."""
        if masks is None:
            own = self._own_mask(observations)
            return None if own is None else np.stack([self._masks.row(mask) for mask in own])
        self._require_choices()
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
