"""One rule for action masks, in training, evaluation and predict.

They count where actions are choices (Discrete, MultiDiscrete) and are ignored beside others. An
observation's own entry comes before infos, infos before an ``action_masks()`` method. What an
environment does not forbid, by giving no mask or None, is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from trpo_fast.base.spaces import Space, logit_blocks
from trpo_fast.base.trees import aligned, is_nested, leaves, tree_map
from trpo_fast.environments.nested_actions import is_nested_space, nesting_of

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


def mask_rows(masks: Any, count: int) -> list[Any]:
    """The masks of ``count`` environments one by one, from a batch as gymnasium stacks them.

    Args:
        masks: [count, ...], or a nesting of such parts; None for a part that allows all.
        count: number of environments.

    Raises ValueError where a part is not of so many rows.
    """

    def row(part: Any, index: int) -> Any:
        if part is None:
            return None
        rows = np.asarray(part)
        if not rows.ndim or len(rows) != count:
            held = f"{len(rows)} rows" if rows.ndim else "no rows"
            raise ValueError(f"action_masks of {held} for {count} observations")
        return rows[index]

    return [tree_map(lambda part: row(part, index), masks) for index in range(count)]  # noqa: B023


class MaskReader:
    """Reads one environment's masks.

    Args:
        action_space: of one action.
    """

    def __init__(self, action_space: Space) -> None:
        self._space = action_space
        self._blocks = logit_blocks(action_space)
        self.width = sum(self._blocks)

    def sized(self, mask: Any) -> npt.NDArray[np.bool_]:
        """A mask as [n]; all true for None. ValueError where it does not fit."""
        if mask is None:
            return np.ones(self.width, bool)
        if is_nested(mask) and is_nested_space(self._space):
            return self._of_parts(mask)
        row = np.asarray(mask, bool).ravel()
        if row.shape != (self.width,):
            raise ValueError(
                f"the action mask has {row.size} entries; {self._space} has {self.width}"
            )
        return row

    def _of_parts(self, mask: Any) -> npt.NDArray[np.bool_]:
        """A mask for each part, nested as the space; None where all is allowed."""
        nesting = nesting_of(self._space)
        found = aligned("the action mask", mask, nesting, leaf=lambda part: part is None)
        readers = [MaskReader(part) for _, part in leaves(nesting)]
        pairs = zip(readers, found, strict=True)
        return np.concatenate([reader.sized(own) for reader, own in pairs])

    def row(self, mask: Any) -> npt.NDArray[np.bool_]:
        """`sized`; ValueError as well where a mask forbids all."""
        row = self.sized(mask)
        first = 0
        for block, choices in enumerate(self._blocks):
            if not row[first : first + choices].any():
                raise ValueError(f"the action mask allows no choice for action {block}")
            first += choices
        return row

    def find(
        self, observation: Any, info: Mapping[str, Any], method: Callable[[], Any] | None = None
    ) -> npt.NDArray[np.bool_] | None:
        """The mask [n] that came with an observation, or None where there is none."""
        if not self._blocks:
            return None
        if isinstance(observation, Mapping) and MASK_KEY in observation:
            return self.row(observation[MASK_KEY])
        if MASK_KEY in info:
            return self.row(info[MASK_KEY])
        return None if method is None else self.row(method())
