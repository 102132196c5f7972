"""Arguments of the native module's entry points, right or odd, in memory with guarded edges."""

from __future__ import annotations

import ctypes
import mmap
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
LARGEST = 1 << 26  # bytes of a workspace
_mprotect = ctypes.CDLL(None, use_errno=True).mprotect


class Refused(Exception):  # noqa: N818
    """The case asks for more memory than it may."""


class Case:
    """One case: whether something in it is odd, and the memory that it holds."""

    def __init__(self, seed: int, oddness: float) -> None:
        self.random = random.Random(seed)
        self.oddness = oddness
        self.odd = False
        self.finite = True
        self._kept: list[Any] = []

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def either(self, right: Any, *wrong: Any) -> Any:
        """Mostly what is right."""
        if not self.chance(self.oddness):
            return right
        self.odd = True
        return self.random.choice(wrong)

    def memory(self, count: int, dtype: torch.dtype) -> Tensor:
        """``[count]`` at an edge of memory."""
        size = max(1, count) * dtype.itemsize
        pages = -(-size // PAGE)
        if size > LARGEST:
            raise Refused
        area = mmap.mmap(-1, (pages + 2) * PAGE)
        self._kept.append(area)
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        for page in (0, pages + 1):
            if _mprotect(ctypes.c_void_p(start + page * PAGE), PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        at_end = self.chance(0.8)
        offset = PAGE + (pages * PAGE - size if at_end else 0)
        return torch.frombuffer(area, dtype=dtype, count=max(1, count), offset=offset)[:count]

    def tensor(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        *,
        whole: bool = False,
        written: bool = False,
    ) -> Tensor:
        """Numbers of this shape, mostly in any layout.

        ``whole``: contiguous, as it is required. ``written``: each in a place of its own.
        """
        shape = tuple(shape)
        if self.chance(self.oddness):
            self.odd = True
            shape = self._other(shape)
        strides, step = [0] * len(shape), 1
        order = list(range(len(shape)))
        loose = not whole or self.chance(self.oddness)
        if loose and self.chance(0.5):
            self.random.shuffle(order)
        for d in reversed(order):
            strides[d] = step
            step *= max(1, shape[d])
            if loose and self.chance(0.2):
                step += self.random.randrange(3)
            if loose and not written and self.chance(0.05):
                strides[d] = 0
        extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True) if n)
        memory = self.memory(extent if 0 not in shape else 0, dtype)
        found = memory.as_strided(shape, strides)
        if whole and not found.is_contiguous():
            self.odd = True
        self._fill(memory)
        return found

    def _fill(self, memory: Tensor) -> None:
        if memory.dtype.is_floating_point:
            memory.normal_(generator=torch.Generator().manual_seed(self.random.randrange(1 << 30)))
            if len(memory) and self.chance(self.oddness / 2):
                self.finite = False
                value = self.random.choice([float("nan"), float("inf"), -float("inf"), 1e38])
                memory[self.random.randrange(len(memory))] = value
        else:
            memory.zero_()

    def _other(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        kind = self.random.randrange(4)
        if kind == 0 or not shape:
            return (*shape, self.random.randrange(3))
        if kind == 1:
            return shape[1:]
        sizes = list(shape)
        d = self.random.randrange(len(sizes))
        sizes[d] = max(0, self.random.choice([0, sizes[d] - 1, sizes[d] + 1, 2 * sizes[d]]))
        return tuple(sizes)

    def hold(self, what: Any) -> None:
        """Keep what an address points at."""
        self._kept.append(what)

    def arg(self, shape: Sequence[int], dtype: torch.dtype, *, whole: bool = False) -> Any:
        """A tensor as it crosses, mostly."""
        tensor = self.tensor(shape, dtype, whole=whole)
        self._kept.append(tensor)
        right = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        return self.either(
            right,
            None,
            right[:2],
            (right[0], right[1], right[2][:-1]),
            (right[0], (-1,) * len(shape), right[2]),
            (right[0], tuple(map(str, shape)), right[2]),
            "tensor",
            (right[0], (2**62,) * len(shape), right[2]),
        )

    def bound(self, native: Any, *more: Any) -> Any:
        """The native object on a workspace of its size, or on none."""
        if not self.chance(self.oddness):
            size = native.workspace_bytes()
            native.bind(self.workspace(size), *more)
        else:
            self.odd = True
        return native

    def workspace(self, size: int) -> int:
        if not 0 <= size <= LARGEST:
            raise Refused
        memory = self.memory(-(-max(1, size) // 64) * 64, torch.uint8)
        self._kept.append(memory)
        return memory.data_ptr()

    def number(self, least: int, most: int) -> int:
        right = self.random.randint(least, most)
        return int(self.either(right, 0, -1, most + 1, 2**31 - 1, -(2**31), 2**40))


def shown(tensor: Tensor) -> Any:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def same(found: Tensor, wanted: Tensor) -> None:
    tolerance = 2e-3 if wanted.dtype is torch.float32 else 1e-8
    scale = 1 + float(wanted.abs().max()) if wanted.numel() else 1.0
    assert torch.allclose(found / scale, wanted / scale, atol=tolerance, rtol=0), (found, wanted)
