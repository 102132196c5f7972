"""Parameters as one flat vector [P], in the order of ``parameters()``, whatever their strides."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.autograd.graph import increment_version

from trpo_fast import _native

_CHECKS: dict[torch.dtype, Callable[[int, int], bool]] = {}
if _native.core is not None:
    _CHECKS[torch.float32] = _native.core.all_finite_f32
    _CHECKS[torch.float64] = _native.core.all_finite_f64
LEAST_NORM = 2.0**-500  # squares of less begin to underflow
PLAIN_TENSORS = (nn.Parameter, nn.Buffer, Tensor)  # types without a behaviour of their own


class FlatParameters:
    """The stepped parameters and their places in the flat vector.

    Every parameter keeps its place, used or not. ``write`` touches only the used ones, so that the
    others keep their very bits.

    Args:
        tensors: Distinct dense parameters of one dtype and device.
        names: What error messages call them.

    Raises:
        ValueError: they are on the meta device.

    Attributes:
        start: ``read()`` at construction.
    """

    def __init__(self, tensors: Sequence[Tensor], names: Sequence[str]) -> None:
        self.tensors = list(tensors)
        self.names = list(names)
        self.used = [True] * len(self.tensors)
        self.sizes = [t.numel() for t in self.tensors]
        self.place = {id(t): index for index, t in enumerate(self.tensors)}
        self.dtype = self.tensors[0].dtype
        self.device = self.tensors[0].device
        if self.device.type == "meta":
            raise ValueError(
                f"{self.names[0]} is on the meta device and has no values yet: give the module "
                "memory with .to_empty(device=...) and load its weights first"
            )
        self.start = self.read()

    def read(self) -> Tensor:
        """A copy of the parameters ``[P]``, bit for bit."""
        if _native.core is not None and _plain(self.tensors):
            found = torch.empty(sum(self.sizes), dtype=self.dtype, device="cpu")
            places = [
                (t.data_ptr(), size) for t, size in zip(self.tensors, self.sizes, strict=True)
            ]
            _native.core.copy_blocks(found.data_ptr(), places, found.itemsize, True)
            return found
        with torch.no_grad():
            flat: Tensor = _flatten_dense_tensors(self.tensors)
            return flat.clone() if len(self.tensors) == 1 else flat  # one may come back as itself

    def write(self, theta: Tensor) -> None:
        """Copy ``theta`` ``[P]`` into the used parameters, bit for bit, in place."""
        written = [t for t, used in zip(self.tensors, self.used, strict=True) if used]
        whole = theta.dtype is self.dtype and theta.numel() == sum(self.sizes)
        if _native.core is not None and whole and _plain([theta, *written]):
            places = [
                (t.data_ptr() if used else 0, size)
                for t, used, size in zip(self.tensors, self.used, self.sizes, strict=True)
            ]
            _native.core.copy_blocks(theta.data_ptr(), places, theta.itemsize, False)
            increment_version(written)  # autograd then refuses a graph from before
            return
        views = zip(self.split(theta), self.used, strict=True)
        with torch.no_grad():
            torch._foreach_copy_(written, [view for view, used in views if used])

    def replace(self, theta: Tensor, candidate: Tensor) -> None:
        """``write(candidate)``, or ``theta`` put back where that is interrupted half-way."""
        try:
            self.write(candidate)
        except BaseException:
            self.write(theta)
            raise

    def split(self, vector: Tensor) -> list[Tensor]:
        """Views of ``vector`` ``[P]`` in the parameters' shapes."""
        # DistributedDataParallel's helper: a third of the time of split and view.
        return list(_unflatten_dense_tensors(vector, self.tensors))

    def flatten(self, pieces: Sequence[Tensor | None]) -> Tensor:
        """One vector ``[P]`` of pieces shaped as the parameters; None is a block of zeros."""
        zeros = torch.zeros(1, dtype=self.dtype, device=self.device)
        return torch.cat(
            [
                zeros.expand(size) if piece is None else piece.detach().reshape(-1)
                for piece, size in zip(pieces, self.sizes, strict=True)
            ]
        )

    def first_non_finite(self) -> str | None:
        """Name of the first parameter that holds a NaN or an infinity."""
        for name, t in zip(self.names, self.tensors, strict=True):
            if not all_finite(t.detach()):
                return name
        return None


def _plain(tensors: Sequence[Tensor]) -> bool:
    """Whether they can be copied as they lie in memory."""
    return all(
        type(t) in PLAIN_TENSORS and t.is_cpu and t.is_contiguous() and not t.is_neg()
        for t in tensors
    )


def all_finite(x: Tensor) -> bool:
    """Whether every entry is finite; one pass."""
    if x.is_cpu and x.layout is torch.strided:
        # On this thread alone: torch would wake its OpenMP threads for a large batch, and those
        # then spin for milliseconds on the cores that the native update wants.
        check = _CHECKS.get(x.dtype)
        if check is not None and x.is_contiguous():
            return check(x.data_ptr(), x.numel())
        if x.dtype in (torch.float32, torch.float64):
            with np.errstate(all="ignore"):
                total = float(x.detach().resolve_neg().numpy().sum())
            return math.isfinite(total) or bool(torch.isfinite(x).all())
    if not x.is_floating_point():
        return True
    return math.isfinite(float(x.sum())) or bool(torch.isfinite(x).all())


def finite_rows(array: npt.NDArray[np.float32]) -> Callable[[int], bool]:
    """Whether ``array[i]`` is finite, as a function of i: for asking row by row while it is filled.

    Args:
        array: C-contiguous, alive while the function is.
    """
    if _native.core is None or not array.flags.c_contiguous:
        return lambda index: bool(np.isfinite(array[index]).all())
    check = _native.core.all_finite_f32
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
