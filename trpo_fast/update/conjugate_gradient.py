"""Preconditioned conjugate gradients on the damped Fisher matrix."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from trpo_fast.base.tensors import dot, plus
from trpo_fast.update.result import Solution, Status


def conjugate_gradient(
    product: Callable[[Tensor], Tensor],
    g: Tensor,
    *,
    damping: float,
    iters: int,
    tol: float,
    progress_tol: float = 0.0,
    precondition: Callable[[Tensor], Tensor] | None = None,
    agreed: Callable[[float], float] = float,
) -> Solution:
    """Preconditioned conjugate gradients on ``(F + damping I) x = g`` from ``x = 0``.

    Hestenes & Stiefel 1952, as in Nocedal & Wright 2006, algorithms 5.2 and 5.3. Departures: a
    stop on the relative residual ``|r| / |g|``, which no preconditioner changes the meaning of; a
    stop on the quadratic model's relative progress (Martens 2010, section 4.4) over one iteration
    instead of ten or more, because here there are hardly ten; dots in float64; a stop at the last
    good iterate when ``p'Ap`` or ``r'M^-1 r`` is not positive, when anything is not finite, or when
    the residual reaches rounding level.

    Args:
        product: ``v -> F v`` ``[P]``, the same matrix at every call.
        g: ``[P]``.
        damping: Added to the diagonal.
        iters: Most iterations.
        tol: Stop once the residual is below ``tol |g|``; 0 runs all iterations.
        progress_tol: Stop once an iteration's share of what the quadratic model has fallen so far
            is below this; 0 never does.
        precondition: ``r -> M^-1 r`` ``[P]``, the same positive definite matrix at every call.
        agreed: A dot product -> what whoever else does the same solve takes for it.
    """

    def inner(a: Tensor, b: Tensor) -> float:
        return agreed(dot(a, b))

    x, r = torch.zeros_like(g), g.clone()
    rr = rr_start = inner(r, r)
    floor = max(tol, 4 * torch.finfo(g.dtype).eps) ** 2 * rr_start
    status, done, progress = None, 0, 0.0  # progress: twice what the quadratic model has fallen
    p, rz_old = torch.zeros_like(g), math.inf
    while done < iters and rr > floor:
        z = r if precondition is None else precondition(r)  # z = M^-1 r
        rz = rr if precondition is None else inner(r, z)
        if not (math.isfinite(rz) and rz > 0):
            status = Status.breakdown
            break
        p = plus(z, p, rz / rz_old)  # p = z + (r'z / r_old'z_old) p
        Ap = plus(product(p), p, damping)
        pAp = inner(p, Ap)
        if not math.isfinite(pAp):
            status = Status.non_finite
            break
        if pAp <= 0:
            status = Status.negative_curvature
            break
        alpha = rz / pAp  # alpha = r'z / p'Ap
        r_next = plus(r, Ap, -alpha)  # r = r - alpha A p
        rr_next = inner(r_next, r_next)
        if not math.isfinite(rr_next):
            status = Status.breakdown
            break
        x, r, rr, rz_old, done = plus(x, p, alpha), r_next, rr_next, rz, done + 1
        gain = alpha * rz  # q(x_old) - q(x) = alpha r'z / 2, with q(x) = x'Ax / 2 - g'x
        progress += gain
        if gain < progress_tol * progress:
            break
    residual = math.sqrt(rr / rr_start) if rr_start > 0 else 0.0
    # x'Ax = x'(g - r)
    return Solution(x, inner(x, g) - inner(x, r), done, residual, status)
