"""A rank's share of a data-parallel update's rows, and the problem of all ranks' rows together.

Every mean over all rows is the sum over ranks of share * own mean, with a rank's share its part of
the sum of weights: exact for unequal shares, and for ranks without rows. Parameters, directions and
residuals are the same on every rank, so that a Fisher product is one collective, a candidate
another, and dot products are none. Every decision is made of such sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from trpo_fast.base.errors import RankError
from trpo_fast.base.ranks import Ranks
from trpo_fast.update.conjugate_gradient import conjugate_gradient
from trpo_fast.update.options import Options
from trpo_fast.update.result import Solution
from trpo_fast.update.trust_region import Problem


class Own(NamedTuple):
    """What the others must know of a rank's rows before a step.

    Attributes:
        parameters, settings: checksums of what must be the same everywhere.
        rows: N; 0 where there is nothing to learn from.
        weight_scale: what the weights were divided by.
        weights, fisher_weights: sums over all rows and over the Fisher's, after that.
        greatest: absolute advantage.
    """

    parameters: float
    settings: float
    rows: float
    weight_scale: float
    weights: float
    fisher_weights: float
    greatest: float = 0.0


class Sample(NamedTuple):
    """So many rows of a rank, and the number of the first of them among those of all ranks."""

    rows: int
    first: int


class Share(NamedTuple):
    """A rank's part of the sum of weights: of all rows, and of those of the Fisher matrix.

    Attributes:
        own_rows, rows: of this rank and of all.
        before: rows of the ranks before this one.
        greatest: absolute advantage on any rank.
    """

    ranks: Ranks
    all: float
    fisher: float
    own_rows: int
    rows: int
    before: int = 0
    greatest: float = 0.0

    def sample(self, wanted: int) -> Sample:
        """This rank's part of so many rows over all ranks."""
        if wanted >= self.rows:
            return Sample(max(1, self.own_rows), self.before)
        rows = max(1, math.ceil(wanted * self.own_rows / self.rows))
        return Sample(rows, wanted * self.before // self.rows)


def share_of(ranks: Ranks, compute: Callable[[], Own]) -> Share:
    """This rank's share, once all ranks have told what they have.

    Raises:
        RankError: the ranks' parameters or options differ; another rank could not tell.
        ValueError: no rank has rows.
    """
    found = [Own(*row) for row in ranks.exchange(compute, len(Own._fields))]
    own = found[ranks.rank]
    for rank, other in enumerate(found):
        if other.settings != found[0].settings:
            raise RankError(
                f"rank {rank} would make another step than rank 0: options, parameters' shapes, "
                "backend or the preconditioner's statistics differ. Give every rank the same "
                "options and load the same state_dict"
            )
        if other.parameters != found[0].parameters:
            raise RankError(
                f"rank {rank} has other parameters than rank 0: they must be the same before each "
                "step. Once after making the policy: for p in policy.parameters(): "
                "torch.distributed.broadcast(p.data, 0)"
            )
    scale = max(other.weight_scale for other in found)

    def part(of: Callable[[Own], float]) -> float:
        whole = math.fsum(of(other) * (other.weight_scale / scale) for other in found)
        return of(own) * (own.weight_scale / scale) / whole if whole > 0 else 0.0

    rows = sum(int(other.rows) for other in found)
    if rows == 0:
        raise ValueError("empty batch: no rank has a row of a weight above 0")
    return Share(
        ranks,
        part(lambda other: other.weights),
        part(lambda other: other.fisher_weights),
        int(own.rows),
        rows,
        sum(int(other.rows) for other in found[: ranks.rank]),
        max(other.greatest for other in found),
    )


@contextmanager
def failing_together(ranks: Ranks | None) -> Iterator[None]:
    """Around a step: what ends it before it has told anything is told to the other ranks.

    They wait in ``share_of``, and raise RankError there.
    """
    before = 0 if ranks is None else ranks.collectives
    try:
        yield
    except BaseException as error:
        if ranks is not None and ranks.collectives == before:
            share_of(ranks, partial(_raise, error))
        raise


def _raise(error: BaseException) -> NoReturn:
    raise error


class SharedProblem:
    """A ``trust_region.Problem`` of all ranks' rows.

    Args:
        own: That of this rank's rows.
        ranks: The others.
        share: None where it is known only once the gradient is, from ``tell``.
        tell: What this rank has, after its own gradient.
    """

    def __init__(
        self,
        own: Problem,
        ranks: Ranks,
        share: Share | None,
        tell: Callable[[], Own] | None = None,
    ) -> None:
        self.own, self.ranks, self._tell = own, ranks, tell
        self.share = share
        self.backend, self.parameters = own.backend, own.parameters

    def surrogate_gradient(self) -> tuple[float, Tensor]:
        """The loss at theta_old, and minus its gradient ``[P]``; also which parameters are used."""
        count, parameters = self.parameters.count, self.parameters
        flags = len(parameters.tensors)
        total = self._buffer(count + 1 + flags)

        found: list[tuple[float, Tensor]] = []

        def tell() -> Own:
            assert self._tell is not None  # noqa: S101
            found.append(self.own.surrogate_gradient())
            return self._tell()

        if self.share is None:
            self.share = share_of(self.ranks, tell)
        self.ranks.sum_or_end(
            total, lambda: self._put_gradient(total, *(found or [self.own.surrogate_gradient()])[0])
        )
        parameters.used = (total[count + 1 : count + 1 + flags] > 0).tolist()
        return float(total[count]), total[:count].to(parameters.dtype)

    def _put_gradient(self, total: Tensor, loss: float, g: Tensor) -> None:
        assert self.share is not None  # noqa: S101
        count, part = len(g), self.share.all
        if part > 0:
            torch.mul(g.double(), part, out=total[:count])
            total[count] = part * loss
        total[count + 1 : -1] = torch.tensor(self.parameters.used, dtype=torch.float64)

    def solve(self, g: Tensor, options: Options) -> Solution:
        """Conjugate gradients on ``fisher_product``."""
        o, found = options, getattr(self.own, "preconditioner", None)
        return conjugate_gradient(
            self.fisher_product,
            g,
            damping=o.damping,
            iters=o.cg_iters,
            tol=o.cg_tol,
            progress_tol=0.0 if found is None else o.cg_progress_tol,
            precondition=None if found is None else found.apply,
            agreed=self.ranks.agreed,
        )

    def fisher_product(self, v: Tensor) -> Tensor:
        """``F v`` ``[P]``, without damping."""
        share = self._known()
        total = self._buffer(len(v), v.dtype)

        def add() -> None:
            if share.fisher > 0:
                torch.mul(self.own.fisher_product(v), share.fisher, out=total[: len(v)])

        self.ranks.sum_or_end(total, add)
        return total[:-1]

    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        """Loss and mean KL at ``theta`` ``[P]``, which becomes rank 0's."""
        share = self._known()
        if not self.ranks.alike:
            self.ranks.broadcast(theta)
        total = self._buffer(2)

        def add() -> None:
            if share.all > 0:
                loss, kl = self.own.evaluate(theta)
                total[0], total[1] = share.all * loss, share.all * kl

        self.ranks.sum_or_end(total, add)
        return float(total[0]), float(total[1])

    def _known(self) -> Share:
        if self.share is None:
            self.surrogate_gradient()
        assert self.share is not None  # noqa: S101
        return self.share

    def _buffer(self, count: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Zeros for a sum, the last for who failed."""
        return torch.zeros(count + 1, dtype=dtype, device=self.parameters.device)


def sum_together(ranks: Ranks, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sums over all ranks of some tensors, by one collective."""
    flat = torch.cat([t.reshape(-1) for t in tensors])
    ranks.sum(flat)
    parts = flat.split([t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]
