"""Orthogonal initial weights whose bits depend on the seed alone.

``torch.nn.init.orthogonal_`` hands its QR to LAPACK, whose sums are cut among the threads there
are: the same seed gave other weights on a machine with other cores, and a forked child waited for
threads that it does not have. The same factor, to rounding, is made here in float64 on this thread,
in an order of its own.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TILE = 64  # columns that stay in the cache while others are taken off them


@torch.no_grad()
def orthogonal_(weight: Tensor, gain: float, generator: torch.Generator | None = None) -> None:
    """Fill ``weight`` ``[out, in]`` with orthonormal rows or columns, times ``gain``.

    Args:
        weight: A floating tensor; it stays as it is on the meta device.
        gain: Factor.
        generator: Source of the random numbers; None is torch's global one.
    """
    drawn = torch.empty_like(weight).normal_(generator=generator)
    if weight.is_meta:
        return
    matrix = drawn.cpu().numpy().astype(np.float64)
    wide = matrix.shape[0] < matrix.shape[1]
    found = gain * orthonormal_columns(matrix.T if wide else matrix)
    found = found.T if wide else found
    if weight.is_cpu:  # copy_ would ask for threads
        weight.numpy()[...] = found
    else:
        weight.copy_(torch.from_numpy(found))


def orthonormal_columns(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Q of ``matrix = Q R`` ``[m, n]``, m >= n, R with a positive diagonal.

    Modified Gram-Schmidt (Golub & Van Loan 2013, section 5.2.8), by ``einsum``: without BLAS, whose
    products are cut among threads too.
    """
    q = matrix.copy(order="C")
    for start in range(0, q.shape[1], TILE):
        panel = q[:, start : start + TILE].copy()
        for j in range(panel.shape[1]):
            column = np.ascontiguousarray(panel[:, j])
            column /= np.sqrt(np.einsum("i,i->", column, column))
            panel[:, j] = column
            _take(column, panel[:, j + 1 :])
        q[:, start : start + TILE] = panel
        columns = np.ascontiguousarray(panel.T)
        for at in range(start + TILE, q.shape[1], TILE):
            tile = q[:, at : at + TILE].copy()
            for column in columns:
                _take(column, tile)
            q[:, at : at + TILE] = tile
    return q


def _take(column: npt.NDArray[np.float64], rest: npt.NDArray[np.float64]) -> None:
    rest -= column[:, None] * np.einsum("i,ij->j", column, rest)
