"""K-FAC's factors over the rows of all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trpo_fast.preconditioning.preconditioner import KroneckerStatistics, Place
from trpo_fast.update.share import Share, sum_together


class SharedStatistics(KroneckerStatistics):
    """The factors over all ranks' rows, of which each rank gives its share; one collective each."""

    def __init__(self, own: KroneckerStatistics, share: Share) -> None:
        self.own, self.share = own, share

    def input_moments(self, places: Mapping[int, Place], rows: int) -> list[Tensor]:
        """A over that many rows of all ranks."""
        share = self.share
        own = self.own.input_moments(places, share.sample(rows).rows)
        return self._summed(own, share.fisher)

    def output_moments(
        self, places: Mapping[int, Place], rows: int, first: int = 0
    ) -> list[Tensor]:
        """G over that many rows of all ranks, which draw as one process would."""
        del first
        share = self.share
        return self._summed(self.own.output_moments(places, *share.sample(rows)), share.all)

    def inverse(self, factor: Tensor, damping: float) -> Tensor:
        """``(factor + damping I)^-1``, on each rank by itself."""
        return self.own.inverse(factor, damping)

    def _summed(self, factors: Sequence[Tensor], part: float) -> list[Tensor]:
        """Symmetric matrices, of which one half goes around."""
        halves = [torch.triu_indices(len(f), len(f), device=f.device) for f in factors]
        mine = [part_of(f[i, j], part) for f, (i, j) in zip(factors, halves, strict=True)]
        whole = sum_together(self.share.ranks, mine)
        found = []
        for factor, (i, j), half in zip(factors, halves, whole, strict=True):
            both = torch.empty_like(factor)
            both[i, j] = both[j, i] = half
            found.append(both)
        return found


def part_of(mean: Tensor, share: float) -> Tensor:
    """What a rank's mean adds to that of all; nothing where it has no rows."""
    return share * mean if share > 0 else torch.zeros_like(mean)
