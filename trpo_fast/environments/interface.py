"""What a rollout needs of B environments stepped together, wherever they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from trpo_fast.environments.action_masks import MaskSource
from trpo_fast.environments.row_format import RowFormat

Bool = npt.NDArray[np.bool_]
Rows = npt.NDArray[Any]  # of observations, see RowFormat
# Number of a running episode and its actions so far [n, ...].
Episode = tuple[int, npt.NDArray[Any]]


class Transition(NamedTuple):
    """One step of B environments; the next observations go where the caller says."""

    rewards: npt.NDArray[np.float64]  # [B]
    terminated: Bool  # [B]
    truncated: Bool  # [B]
    ended: Bool  # [B], either of the two
    quiet: bool  # none ended and none is resetting, as at most steps
    resetting: Bool  # [B], rows that only reset (NEXT_STEP): no transitions
    fresh: Bool  # [B], the observation that follows is the first of an episode
    final_envs: npt.NDArray[np.int64]  # [K], environments truncated without being terminated
    final_observations: Rows  # [K, O], where their episodes stopped
    action_masks: Bool | None  # [B, n], for the next action


class Environments(Protocol):
    """B environments stepped together; `VectorEnvironment` says what each method does.

    Attributes:
        name: what to call them in messages.
        num_envs: B.
        action_space: of one environment.
        observation_space: of one environment, without an action mask.
        row_format: of what it shows.
    """

    name: str
    num_envs: int
    action_space: spaces.Space[Any]
    observation_space: spaces.Space[Any]
    row_format: RowFormat

    @property
    def observation_dtype(self) -> type[np.generic]:
        """Of a row of observations, see `RowFormat`."""
        ...

    @property
    def choice(self) -> str:
        """How they are stepped and why, in words; "" where nobody chose."""
        ...

    @property
    def observation_width(self) -> int:
        """O, the width of a row of observations."""
        ...

    @property
    def resumable(self) -> bool:
        """Whether running episodes can be replayed."""
        ...

    @property
    def ended(self) -> bool:
        """Whether processes were ended, so that episodes must be entered anew before a step."""
        ...

    @property
    def mask_source(self) -> MaskSource | None:
        """Where action masks come from; None without masks. Known after a reset."""
        ...

    def reset(self, out: Rows, restarts: int = 0) -> Bool | None:
        """Begin an episode everywhere; observations go to ``out`` [B, O]."""
        ...

    def step(self, actions: npt.NDArray[Any], out: Rows) -> Transition:
        """Act everywhere; what the policy acts on next goes to ``out`` [B, O]."""
        ...

    def reset_where(self, where: Bool, out: Rows, masks: Bool | None) -> Bool | None:
        """Abandon the running episodes of ``where`` [B] and begin new ones."""
        ...

    def running_episodes(self) -> list[Episode]:
        """Number and actions so far of each running episode; [] where not resumable."""
        ...

    def replay(self, episodes: Sequence[Episode], out: Rows) -> None:
        """Enter the episodes that `running_episodes` gave; their observations go to ``out``."""
        ...

    def close(self) -> None:
        """Release the environments."""
        ...
