"""What the critic learns from, on one rank or on several."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from trpo_fast.agent.shared_training import SharedTraining
from trpo_fast.rollouts.rollout import Rollout


class CriticRows(NamedTuple):
    """What the critic learns from, of all environments, rows in the order of one process."""

    observations: Any
    values: Tensor
    returns: Tensor

    @classmethod
    def of(
        cls,
        shown: Rollout,
        observations: Any,
        values: Tensor,
        returns: Tensor,
        shared: SharedTraining | None,
    ) -> CriticRows:
        """The valid rows.

        Args:
            shown: as the networks see it.
            observations: its valid rows on this rank.
            values: [T, B].
            returns: [T, B].
            shared: the ranks that share the rows; None where all are here.
        """
        if shared is None:
            return cls(observations, shown.select(values), shown.select(returns))
        numbers = torch.stack((values, returns, shown.valid.to(values.dtype)), -1)
        of_all = shared.columns(numbers).flatten(0, 1)
        valid = of_all[:, 2] > 0
        rows = shared.columns(shown.observations).flatten(0, 1)
        return cls(rows[valid.to(rows.device)], of_all[valid, 0], of_all[valid, 1])
