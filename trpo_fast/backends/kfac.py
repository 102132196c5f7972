"""K-FAC: each layer's block of the Fisher matrix as a Kronecker product, F_l ~ G (x) A.

Martens & Grosse 2015 (arXiv 1503.05671): A = E[a a'] over the layer's inputs (with a 1 for the
bias), G = E[e e'] over draws of the true Fisher's output gradients e; blocks between layers are
left out. Departures: e is backpropagated from one random-sign draw B s of the head's metric
M = B B' instead of a sampled action, because E[B s s' B'] = M has no sampling of actions in it, and
the signs are the same at every call. The inverse adds the damping in the eigenbases, where it is
exact (George et al. 2018, arXiv 1806.03884, without their corrected eigenvalues); layers too wide
for eigendecompositions take factored damping (Martens & Grosse, section 6.3).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from trpo_fast.backends.reference import linearise, probabilities
from trpo_fast.batch import Batch
from trpo_fast.network import Network

# Widest factor that is eigendecomposed: beyond, two Cholesky inverses are several times cheaper.
EIGEN_WIDTH = 256


class LayerRows(NamedTuple):
    """What a layer's block is made of, each row times the root of its share of the mean."""

    inputs: Tensor  # a, [n, in]
    ones: Tensor  # the bias's input, [n, 1]
    gradients: Tensor  # e, [n, out]


class Factors(NamedTuple):
    """Of one layer's stepped parameters."""

    A: Tensor  # [m, m]: in, in + 1 with the bias, or 1 for the bias alone
    G: Tensor  # [out, out]


class EigenBases(NamedTuple):
    """``A = U_A diag(l_A) U_A'`` and ``G`` likewise."""

    U_A: Tensor
    U_G: Tensor
    curvature: Tensor  # l_G l_A', [out, m]


class Block(NamedTuple):
    """A layer's ``M^-1``. With ``scale`` None, left and right are inverses themselves."""

    left: Tensor  # U_G or (G + c I)^-1, [out, out]
    right: Tensor  # U_A or (A + c I)^-1, [m, m]
    scale: Tensor | None  # 1 / (l_G l_A' + damping), [out, m]

    def apply(self, R: Tensor) -> Tensor:
        """``M^-1 R`` for ``R`` ``[out, m]``."""
        if self.scale is None:
            return self.left @ R @ self.right
        # U_G [(U_G' R U_A) / (l_G l_A' + damping)] U_A'
        return self.left @ (self.scale * (self.left.T @ R @ self.right)) @ self.right.T


@lru_cache(maxsize=4)
def signs_of(rows: int, outputs: int, dtype: torch.dtype) -> Tensor:
    """Random signs ``[rows, outputs]``, the same at every call; torch's own generator rests."""
    generator = torch.Generator().manual_seed(0)
    return (2 * torch.randint(0, 2, (rows, outputs), generator=generator) - 1).to(dtype)


def layer_rows(network: Network, batch: Batch) -> list[LayerRows]:
    """One draw of every layer's inputs and output gradients at theta_old, over the batch's rows."""
    point = linearise(network.layers, batch.obs)
    outputs = point.outputs
    signs = signs_of(batch.rows, outputs.shape[1], outputs.dtype).to(outputs.device)
    delta = output_draw(network, outputs, signs, batch.action_mask)
    if batch.weights is None:
        root = outputs.new_full((batch.rows, 1), 1 / math.sqrt(batch.rows))
    else:
        root = (batch.weights / batch.weights.sum()).sqrt().unsqueeze(1)
    delta = delta * root
    found = []
    for index in reversed(range(len(network.layers))):
        delta = delta * point.slopes[index]
        found.append(LayerRows(point.inputs[index] * root, root, delta))
        if index > 0:
            delta = delta @ network.layers[index].weight
    return found[::-1]


def output_draw(network: Network, outputs: Tensor, signs: Tensor, mask: Tensor | None) -> Tensor:
    """``B s`` ``[n, outputs]`` with ``B B' = M``, the head's Fisher matrix, and ``s`` of +-1."""
    head = network.head
    if head.nvec:  # B = diag(sqrt p) - p sqrt(p)', block by block
        p = probabilities(head, outputs, mask)
        root = p.sqrt() * signs
        blocks = zip(root.split(list(head.nvec), 1), p.split(list(head.nvec), 1), strict=True)
        return torch.cat(
            [
                r - q * (q.sqrt() * s).sum(1, keepdim=True)
                for (r, q), s in zip(blocks, signs.split(list(head.nvec), 1), strict=True)
            ],
            1,
        )
    if head.kind == "bernoulli":
        s = torch.sigmoid(outputs)
        return (s * (1 - s)).sqrt() * signs
    if head.kind == "gaussian":
        assert network.log_std_row is not None  # noqa: S101
        return torch.exp(-network.log_std_row) * signs
    inverse = torch.exp(-outputs.chunk(2, dim=1)[1])
    return torch.cat([inverse, torch.full_like(inverse, math.sqrt(2.0))], 1) * signs


def factors_of(rows: LayerRows, *, weight: bool, bias: bool) -> Factors:
    """The factors of the parameters that are stepped, the weight's columns before the bias's."""
    parts = [rows.inputs] if weight else []
    parts += [rows.ones] if bias else []
    a = torch.cat(parts, 1)
    return Factors(a.T @ a, rows.gradients.T @ rows.gradients)


def eigen_bases(factors: Factors) -> EigenBases | None:
    """The eigendecompositions, or None where the layer is too wide for them to pay."""
    if max(len(factors.A), len(factors.G)) > EIGEN_WIDTH:
        return None
    l_A, U_A = torch.linalg.eigh(factors.A)
    l_G, U_G = torch.linalg.eigh(factors.G)
    return EigenBases(U_A, U_G, torch.outer(l_G.clamp_min(0), l_A.clamp_min(0)))


def eigen_block(bases: EigenBases, damping: float) -> Block:
    """``(G (x) A + damping I)^-1``."""
    return Block(bases.U_G, bases.U_A, damped_inverse(bases.curvature, damping))


def damped_inverse(curvature: Tensor, damping: float) -> Tensor:
    """``1 / (curvature + damping)``, entry by entry, finite without damping too."""
    # What the rows say nothing about must not be divided by 0.
    floor = float(curvature.max()) * 8 * torch.finfo(curvature.dtype).eps
    return 1 / (curvature + (max(damping, floor) or 1.0))


def inverse_block(factors: Factors, damping: float) -> Block:
    """``(G + sqrt(damping) / pi I)^-1 (x) (A + pi sqrt(damping) I)^-1``.

    Raises:
        torch.linalg.LinAlgError: a damped factor is not positive definite.
    """
    mean_A = float(factors.A.trace()) / len(factors.A)
    mean_G = float(factors.G.trace()) / len(factors.G)
    eps = 8 * torch.finfo(factors.A.dtype).eps
    root = math.sqrt(max(damping, eps * mean_A * mean_G) or 1.0)
    # pi^2 = mean eigenvalue of A / mean eigenvalue of G
    pi = math.sqrt(mean_A / mean_G) if mean_A > 0 and mean_G > 0 else 1.0
    return Block(_inverse(factors.G, root / pi), _inverse(factors.A, root * pi), None)


def _inverse(factor: Tensor, damping: float) -> Tensor:
    """``(factor + damping I)^-1``."""
    damped = factor.clone()
    damped.diagonal().add_(damping)
    return torch.cholesky_inverse(torch.linalg.cholesky(damped))
