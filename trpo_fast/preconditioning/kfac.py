"""K-FAC: each layer's block of the Fisher matrix as a Kronecker product, F_l ~ G (x) A.

Martens & Grosse 2015 (arXiv 1503.05671): A = E[a a'] over the layer's inputs (with a 1 for the
bias), G = E[e e'] over draws of the true Fisher's output gradients e; blocks between layers are
left out. Departures: e is backpropagated from one random-sign draw B s of the head's metric
M = B B' instead of a sampled action, because E[B s s' B'] = M has no sampling of actions in it, and
the signs are the same at every call. A and G come from rows and updates of their own. The inverse
adds the damping in the eigenbases, where it is exact (George et al. 2018, arXiv 1806.03884, without
their corrected eigenvalues); layers too wide for eigendecompositions take factored damping (Martens
& Grosse, section 6.3).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from trpo_fast.networks.network import Network, forward, linearise
from trpo_fast.update.batch import Batch

# Widest factor that is eigendecomposed: beyond, two Cholesky inverses are several times cheaper.
EIGEN_WIDTH = 256


class InputRows(NamedTuple):
    """What a layer's ``A`` is made of, each row times the root of its share of the mean."""

    inputs: Tensor  # a, [n, in]
    ones: Tensor  # the bias's input, [n, 1]


class LayerRows(NamedTuple):
    """What a layer's block is made of, in the same measure."""

    inputs: Tensor  # a, [n, in]
    ones: Tensor  # the bias's input, [n, 1]
    gradients: Tensor  # e, [n, out]


class Factors(NamedTuple):
    """The Kronecker factors of one layer's stepped parameters."""

    A: Tensor  # [m, m]: in, in + 1 with the bias, or 1 for the bias alone
    G: Tensor  # [out, out]


class EigenBasis(NamedTuple):
    """A symmetric matrix as ``U diag(values) U'``."""

    U: Tensor
    values: Tensor


class Block(NamedTuple):
    """A layer's ``M^-1``. With ``scale`` None, left and right are inverses themselves."""

    left: Tensor  # U_G or (G + c I)^-1, [out, out]; inverses perhaps in slabs
    right: Tensor  # U_A or (A + c I)^-1, [m, m]; likewise
    scale: Tensor | None  # 1 / (l_G l_A' + damping), [out, m]

    def apply(self, R: Tensor) -> Tensor:
        """``M^-1 R`` for ``R`` ``[out, m]``."""
        if self.scale is None:
            return plain(self.left) @ R @ plain(self.right)
        # U_G [(U_G' R U_A) / (l_G l_A' + damping)] U_A'
        return self.left @ (self.scale * (self.left.T @ R @ self.right)) @ self.right.T


def plain(matrix: Tensor) -> Tensor:
    """``[n, n]`` of that or of slabs of columns ``[slabs, n, width]``, the last one padded."""
    if matrix.ndim == 2:
        return matrix
    n = matrix.shape[1]
    return matrix.transpose(0, 1).reshape(n, -1)[:, :n]


@lru_cache(maxsize=4)
def signs_of(rows: int, outputs: int, dtype: torch.dtype, first: int = 0) -> Tensor:
    """Random signs ``[rows, outputs]``, the same at every call; torch's own generator rests.

    They are those of the rows ``first`` and following of a longer draw.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    bits = torch.randint(0, 2, (first + rows, outputs), generator=generator, device="cpu")
    return (2 * bits[first:] - 1).to(dtype)


def _share_roots(network: Network, batch: Batch) -> Tensor:
    """``[n, 1]``: the root of each row's share of a mean."""
    if batch.weights is None:
        weight = network.layers[0].weight
        return weight.new_full((batch.rows, 1), 1 / math.sqrt(batch.rows))
    return (batch.weights / batch.weights.sum()).sqrt().unsqueeze(1)


def input_rows(network: Network, batch: Batch) -> list[InputRows]:
    """Every layer's inputs at theta_old, over the batch's rows: a forward pass alone."""
    root, x = _share_roots(network, batch), batch.obs
    found = [InputRows(x * root, root)]
    for layer in network.layers[:-1]:
        x = forward((layer,), x)
        found.append(InputRows(x * root, root))
    return found


def layer_rows(network: Network, batch: Batch, first: int = 0) -> list[LayerRows]:
    """One draw of every layer's inputs and output gradients at theta_old, over the batch's rows.

    ``first``: of the draw's rows, as ``signs_of`` takes it.
    """
    point = linearise(network.layers, batch.obs)
    outputs = point.outputs
    signs = signs_of(batch.rows, outputs.shape[1], outputs.dtype, first).to(outputs.device)
    delta = network.head.metric_root(network.at(outputs, batch.action_mask), signs)
    root = _share_roots(network, batch)
    delta = delta * root
    found = []
    for index in reversed(range(len(network.layers))):
        delta = delta * point.slopes[index]
        found.append(LayerRows(point.inputs[index] * root, root, delta))
        if index > 0:
            delta = delta @ network.layers[index].weight
    return found[::-1]


def input_moment(rows: InputRows, *, weight: bool, bias: bool) -> Tensor:
    """``A``, of the parameters that are stepped, the weight's columns before the bias's."""
    parts = [rows.inputs] if weight else []
    parts += [rows.ones] if bias else []
    a = torch.cat(parts, 1)
    return a.T @ a


def output_moment(rows: LayerRows) -> Tensor:
    """The factor ``G`` ``[out, out]``: the mean of ``e e'`` over the rows."""
    return rows.gradients.T @ rows.gradients


def too_wide(factors: Factors) -> bool:
    """Whether the layer is too wide for eigendecompositions to pay."""
    return max(len(factors.A), len(factors.G)) > EIGEN_WIDTH


def eigen_basis(factor: Tensor) -> EigenBasis:
    """The eigendecomposition of a factor."""
    values, U = torch.linalg.eigh(factor)
    return EigenBasis(U, values.clamp_min(0))


def eigen_block(G: EigenBasis, A: EigenBasis, damping: float) -> Block:
    """``(G (x) A + damping I)^-1``."""
    return Block(G.U, A.U, damped_inverse(torch.outer(G.values, A.values), damping))


def damped_inverse(curvature: Tensor, damping: float) -> Tensor:
    """``1 / (curvature + damping)``, entry by entry, finite without damping too."""
    # What the rows say nothing about must not be divided by 0.
    floor = float(curvature.max()) * 8 * torch.finfo(curvature.dtype).eps
    return 1 / (curvature + (max(damping, floor) or 1.0))


def balance(factors: Factors) -> Tensor:
    """``pi`` ``[]``: pi^2 = mean eigenvalue of A / mean eigenvalue of G; 1 where there is none.

    1 as well where eigenbases, which need none, will add the damping.
    """
    if not too_wide(factors):
        return factors.A.new_ones(())
    mean_A = factors.A.trace() / len(factors.A)
    mean_G = factors.G.trace() / len(factors.G)
    pi = (mean_A / mean_G).sqrt()
    return torch.where((mean_A > 0) & (mean_G > 0), pi, torch.ones_like(pi))


def factored_damping(factors: Factors, pi: Tensor, damping: float) -> tuple[float, float]:
    """What is added to A's diagonal and to G's, ``pi sqrt(damping)`` and ``sqrt(damping) / pi``.

    Finite inverses are wanted without damping too, hence a floor.
    """
    mean_A = float(factors.A.trace()) / len(factors.A)
    eps = 8 * torch.finfo(factors.A.dtype).eps
    # mean_A / pi is the root of mean_A mean_G
    root = max(math.sqrt(damping), math.sqrt(eps) * mean_A / float(pi)) or 1.0
    return root * float(pi), root / float(pi)


def cholesky_inverse(factor: Tensor, damping: float) -> Tensor:
    """``(factor + damping I)^-1``.

    Raises:
        torch.linalg.LinAlgError: it is not positive definite.
    """
    damped = factor.clone()
    damped.diagonal().add_(damping)
    return torch.cholesky_inverse(torch.linalg.cholesky(damped))
