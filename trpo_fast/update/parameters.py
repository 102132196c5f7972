"""Parameters as one flat vector [P], in the order of ``parameters()``, whatever their strides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.autograd.graph import increment_version

from trpo_fast import _native
from trpo_fast.base.tensors import PLAIN_TENSORS, all_finite


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
        offsets: Where each parameter starts in the flat vector.
        count: P.
    """

    def __init__(self, tensors: Sequence[Tensor], names: Sequence[str]) -> None:
        self.tensors = list(tensors)
        self.names = list(names)
        self.used = [True] * len(self.tensors)
        self.sizes = [t.numel() for t in self.tensors]
        *self.offsets, self.count = accumulate(self.sizes, initial=0)
        self.place = {id(t): index for index, t in enumerate(self.tensors)}
        self.dtype = self.tensors[0].dtype
        self.device = self.tensors[0].device
        if self.device.type == "meta":
            raise ValueError(
                f"{self.names[0]} is on the meta device and has no values yet: give the module "
                "memory with .to_empty(device=...) and load its weights first"
            )
        self.start = self.read()

    def offset_of(self, tensor: Tensor | None) -> int | None:
        """Where a parameter starts in the flat vector; None of a tensor that is none of them."""
        index = self.place.get(id(tensor))
        return None if index is None else self.offsets[index]

    def use(self, tensors: Iterable[Tensor]) -> None:
        """Have ``write`` touch the parameters among these tensors, and no others."""
        indices = {self.place.get(id(t)) for t in tensors}
        self.used = [index in indices for index in range(len(self.tensors))]

    def held(self, tensor: Tensor) -> Tensor:
        """The memory of a parameter, or of another tensor, for native code to read.

        It lives as long as what is returned, whatever another thread puts into the parameter.

        Raises:
            ValueError: a parameter has another number of entries than at construction.
        """
        alias = tensor.detach()
        index = self.place.get(id(tensor))
        if index is not None and alias.numel() != self.sizes[index]:
            raise ValueError(
                f"{self.names[index]} was given another shape, {tuple(alias.shape)}, during the "
                "step; change a policy between steps"
            )
        return alias

    def read(self) -> Tensor:
        """A copy of the parameters ``[P]``, bit for bit."""
        if _native.core is not None and _plain(self.tensors):
            found = torch.empty(self.count, dtype=self.dtype, device="cpu")
            held = [self.held(t) for t in self.tensors]
            places = [(t.data_ptr(), size) for t, size in zip(held, self.sizes, strict=True)]
            _native.core.copy_blocks(found.data_ptr(), places, found.itemsize, True)
            return found
        with torch.no_grad():
            flat: Tensor = _flatten_dense_tensors(self.tensors)
            return flat.clone() if len(self.tensors) == 1 else flat  # one may come back as itself

    def write(self, theta: Tensor) -> None:
        """Copy ``theta`` ``[P]`` into the used parameters, bit for bit, in place."""
        written = [t for t, used in zip(self.tensors, self.used, strict=True) if used]
        whole = theta.dtype is self.dtype and theta.numel() == self.count
        if _native.core is not None and whole and _plain([theta, *written]):
            held = [self.held(t) for t in self.tensors]
            places = [
                (t.data_ptr() if used else 0, size)
                for t, used, size in zip(held, self.used, self.sizes, strict=True)
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
