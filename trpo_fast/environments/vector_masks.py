"""The action masks of B environments: where they come from, and what they allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.base.spaces import Space, logit_blocks
from trpo_fast.environments.action_masks import MASK_KEY, MaskReader, MaskSource, mask_rows
from trpo_fast.environments.interface import Bool


class VectorMasks:
    """Reads the action masks of a vector environment.

    Args:
        observation_space: of one environment.
        action_space: of one environment.
        num_envs: B.
        name: what to call the vector in messages.
        first: number of its first environment in messages.
        guard: calls the vector environment, and makes faults of what it raises.

    Attributes:
        observation_space: that of one environment without its mask.
        source: where masks come from; None without masks. Known after `find`.
    """

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        *,
        num_envs: int,
        name: str,
        first: int,
        guard: Callable[..., Any],
    ) -> None:
        self._blocks = logit_blocks(action_space)
        self._offsets = np.concatenate([[0], np.cumsum(self._blocks, dtype=np.int64)[:-1]])
        self._reader = MaskReader(action_space)
        self.observation_space = without_mask(observation_space, action_space)
        self._in_observation = self.observation_space is not observation_space
        self._num_envs = num_envs
        self._name = name
        self._first = first
        self._guard = guard
        self.source: MaskSource | None = None

    def find(self, vector: Any, infos: Mapping[str, Any], *, seeded: bool) -> None:
        """Learn from what came with a reset where masks come from.

        Args:
            vector: the vector environment.
            infos: of the reset.
            seeded: whether its members are `SeededEpisodes`.
        """
        if not self._blocks:
            return
        inner = vector.unwrapped
        if self._in_observation:
            self.source = MaskSource.OBSERVATION
        elif seeded and any(self._guard(vector.call, "has_mask_method")):
            self.source = MaskSource.SEEDED_EPISODES
        elif MASK_KEY in infos:
            self.source = MaskSource.INFOS
        elif isinstance(inner, SyncVectorEnv) and all(
            env.has_wrapper_attr("action_masks") for env in inner.envs
        ):
            self.source = MaskSource.ENVIRONMENTS
        elif callable(getattr(vector, "action_masks", None)):
            self.source = MaskSource.VECTOR

    def read(self, vector: Any, batch: Any, infos: Mapping[str, Any], ignore: Bool) -> Bool | None:
        """The masks [B, n] of the next actions, all true in the rows of ``ignore`` [B]."""
        if self.source is None:
            self._refuse_late(infos)
            return None
        masks = self._given(vector, batch, infos)
        masks[ignore] = True  # that action is not taken, and the old episode may allow none
        return self._checked(masks)

    def replace(
        self, masks: Bool | None, where: Bool, vector: Any, batch: Any, infos: Mapping[str, Any]
    ) -> Bool | None:
        """``masks`` [B, n] with the rows of ``where`` [B] from a reset of those environments."""
        if self.source is None or masks is None:
            return None
        fresh = self._given(vector, batch, infos)
        return self._checked(np.where(where[:, None], fresh, masks))

    def _given(self, vector: Any, batch: Any, infos: Mapping[str, Any]) -> Bool:
        """[B, n], which may forbid all."""
        given: Any
        if self.source is MaskSource.OBSERVATION:
            given = mask_rows(batch[MASK_KEY], self._num_envs)
        elif self.source is MaskSource.ENVIRONMENTS:
            given = self._guard(vector.call, "action_masks")
        elif self.source is MaskSource.VECTOR:
            given = self._guard(vector.action_masks)
        else:  # what an environment does not forbid is allowed
            said = infos.get(f"_{MASK_KEY}", [MASK_KEY in infos] * self._num_envs)
            given = [infos[MASK_KEY][env] if said[env] else None for env in range(self._num_envs)]
        masks = np.ones((self._num_envs, self._reader.width), bool)
        for env, mask in enumerate(given):
            if mask is None:
                continue
            try:
                masks[env] = self._reader.sized(mask)
            except ValueError as error:
                number = self._first + env
                raise EnvironmentFault(
                    f"environment {number}: {error}", env_index=number
                ) from error
        return masks

    def _checked(self, masks: Bool) -> Bool:
        some = np.logical_or.reduceat(masks, self._offsets, axis=1)
        if not some.all():
            env, block = (int(i) for i in np.argwhere(~some)[0])
            raise EnvironmentFault(
                f"environment {self._first + env} allows no choice for action {block} "
                f"({self.source} is all False there), yet its episode goes on.",
                env_index=self._first + env,
            )
        return masks

    def _refuse_late(self, infos: Mapping[str, Any]) -> None:
        if self._blocks and MASK_KEY in infos:
            raise EnvironmentFault(
                f"{self._name} gives infos[{MASK_KEY!r}] at a step but gave none at reset, where "
                "the first actions are chosen; give it at both."
            )


def without_mask(observation_space: Space, action_space: Space) -> Space:
    """The observation proper: a Dict space less its action mask, any other space as it is."""
    if not logit_blocks(action_space) or not isinstance(observation_space, spaces.Dict):
        return observation_space
    rest = {key: part for key, part in observation_space.spaces.items() if key != MASK_KEY}
    return observation_space if len(rest) == len(observation_space) else spaces.Dict(rest)


def merged_masks(infos: Mapping[str, Any], fresh: Mapping[str, Any], where: Bool) -> dict[str, Any]:
    """``infos``, whose masks come from ``fresh`` for the environments of ``where`` [B]."""
    merged = dict(infos)
    if MASK_KEY in fresh and MASK_KEY in infos:
        merged[MASK_KEY] = np.array(infos[MASK_KEY])
        merged[MASK_KEY][where] = fresh[MASK_KEY][where]
        merged[f"_{MASK_KEY}"] = infos[f"_{MASK_KEY}"] | fresh[f"_{MASK_KEY}"]
    elif MASK_KEY in fresh:
        merged |= {key: fresh[key] for key in (MASK_KEY, f"_{MASK_KEY}")}
    return merged
