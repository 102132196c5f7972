"""Sums, norms and checks of tensors and arrays that every layer uses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trpo_fast import _native

_CHECKS: dict[torch.dtype, Callable[[int, int], bool]] = {}
if _native.core is not None:
    _CHECKS[torch.float32] = _native.core.all_finite_f32
    _CHECKS[torch.float64] = _native.core.all_finite_f64


LEAST_NORM = 2.0**-500  # squares of less begin to underflow
PLAIN_TENSORS = (nn.Parameter, nn.Buffer, Tensor)  # types without a behaviour of their own


def all_finite(x: Tensor) -> bool:
    """Whether every entry is finite; one pass."""
    if x.is_cpu and x.layout is torch.strided:
        # On this thread alone: torch would wake its OpenMP threads for a large batch, and those
        # then spin for milliseconds on the cores that the native update wants.
        check = _CHECKS.get(x.dtype)
        if check is not None and x.is_contiguous():
            held = x.detach()  # whose memory stays, whatever another thread puts into x
            return check(held.data_ptr(), held.numel())
        if x.dtype in (torch.float32, torch.float64):
            with np.errstate(all="ignore"):
                total = float(x.detach().resolve_neg().numpy().sum())
            return math.isfinite(total) or bool(torch.isfinite(x).all())
    if not x.is_floating_point():
        return True
    if x.dtype.itemsize == 1:  # torch neither adds nor looks at those
        x = x.float()
    return math.isfinite(float(x.sum())) or bool(torch.isfinite(x).all())


def bad_rows(rows: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
    """Which rows [N, O] hold NaN, infinity, or a number that float32 does not reach."""
    with np.errstate(over="ignore"):
        narrow = rows.astype(np.float32, copy=False)
    return np.asarray(np.logical_not(np.isfinite(narrow)).any(axis=1))


def finite_rows(array: npt.NDArray[np.floating[Any]]) -> Callable[[int], bool]:
    """Whether ``array[i]`` is finite in float32, as a function of i, while the array is filled.

    Args:
        array: C-contiguous, alive while the function is.
    """
    if _native.core is None or not array.flags.c_contiguous:
        return lambda index: not bad_rows(array[index].reshape(1, -1)).any()
    single = array.dtype == np.float32
    check = _native.core.all_finite_f32 if single else _native.core.all_finite_as_f32
    start, stride, count = array.ctypes.data, array.strides[0], math.prod(array.shape[1:])
    # Several times as fast on a few rows as NumPy, which makes an array of the answers.
    return lambda index: bool(check(start + index * stride, count))


def dot(a: Tensor, b: Tensor) -> float:
    """``a . b`` accumulated in float64."""
    return float(torch.dot(a.double(), b.double()))


def norm(a: Tensor) -> float:
    """Euclidean norm accumulated in float64, also where the squares leave its range."""
    found = float(torch.linalg.vector_norm(a, dtype=torch.float64))
    if LEAST_NORM < found < math.inf or math.isnan(found):
        return found
    greatest = float(a.abs().max()) if a.numel() else 0.0
    if greatest == 0 or not math.isfinite(greatest):
        return greatest
    return greatest * float(torch.linalg.vector_norm(a.double() / greatest))


def plus(a: Tensor, b: Tensor, factor: float) -> Tensor:
    """``a + factor b``, also where torch refuses the factor as too large for the dtype."""
    if abs(factor) <= torch.finfo(a.dtype).max:
        return torch.add(a, b, alpha=factor)
    return (a.double() + factor * b.double()).to(a.dtype)


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """``sum(w v) / sum(w)`` in float64; entries of weight 0 may hold anything."""
    values = values.double()
    if weights is None:
        return values.mean()
    w = weights.double()
    return (w * torch.where(w > 0, values, 0.0)).sum() / w.sum()


def strided_rows(count: int, fraction: float, device: torch.device) -> Tensor:
    """Indices of ``ceil(fraction * count)`` evenly spaced rows, without random numbers."""
    kept = min(count, max(1, math.ceil(fraction * count)))
    return torch.arange(kept, device=device) * count // kept
