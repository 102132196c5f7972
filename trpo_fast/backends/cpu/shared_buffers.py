"""What the native update of a rank's share works on together with the other ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trpo_fast.backends.cpu.arguments import tensor_arg
from trpo_fast.base.errors import RankError
from trpo_fast.update.share import Share

if TYPE_CHECKING:
    from trpo_fast._core import RankShareArg

INTERRUPTED = 7  # of csrc/common/update_options.h's UpdateStatus


class SharedBuffers:
    """The vectors that are summed over the ranks, in place: csrc/cpu/policy/shared_problem.h.

    Args:
        share: This rank's.
        theta: ``[P]``, like which products are.
    """

    def __init__(self, share: Share, theta: Tensor) -> None:
        self._ranks, count = share.ranks, len(theta)
        self._product = theta.new_empty(count + 1)
        wide = torch.float64
        self._gradient = torch.empty(count + 2, dtype=wide, device="cpu")
        self._figures = torch.zeros(3, dtype=wide, device="cpu")
        self.argument: RankShareArg = (
            share.all,
            share.fisher,
            self._ranks.alike,
            tensor_arg(self._product, theta.dtype),
            tensor_arg(self._gradient, wide),
            tensor_arg(self._figures, wide),
            self._collective,
        )

    def check(self, figures: Sequence[float], candidate: Tensor) -> None:
        """Take note of how an update ended; ``candidate`` ``[P]`` becomes rank 0's.

        Raises:
            RankError: another rank was interrupted, so that none made a step.
        """
        if int(figures[0]) == INTERRUPTED:
            raise RankError("another rank was interrupted during the update: no rank made a step")
        if not self._ranks.alike:
            self._ranks.broadcast(candidate)

    def _collective(self, which: int) -> None:
        """As ``Collective`` numbers them."""
        if which < 3:
            self._ranks.sum((self._product, self._gradient, self._figures)[which])
        else:
            self._ranks.broadcast(self._figures if which == 3 else self._product)
