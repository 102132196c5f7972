"""What ``precision`` does to the operands of a Fisher product, in torch.

``csrc/cpu/policy/bf16_fisher.h`` is the same in C++; products there are summed in float32.
A bfloat16 has 8 significant bits, so rounding to it moves a number by at most 2^-8 of itself, and
the two parts of the split form leave at most 2^-17. Splitting an operand and leaving out the
product of the low parts follows Henry, Tang & Heinecke 2019, "Leveraging the bfloat16 artificial
intelligence datatype for higher-precision computations". TF32, which only tensor cores have, keeps
11 significant bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rounding:
    """A number becomes the sum of ``parts`` bfloat16 or one TF32; with 0 it stays what it is."""

    parts: int
    tf32: bool = False

    def split(self, x: Tensor) -> list[Tensor]:
        """The parts, in x's dtype: the rounding of x, then that of what is left."""
        if self.parts == 0:
            return [x]
        if self.tf32:
            return [to_tf32(x)]
        found: list[Tensor] = []
        for _ in range(self.parts):
            found.append(x.to(torch.bfloat16).to(x.dtype))
            x = x - found[-1]
        return found

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` rounded: the sum of the parts it is split into."""
        return sum(self.split(x)[1:], self.split(x)[0])

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """``a b`` of rounded operands: hi hi + hi lo + lo hi."""
        left, right = self.split(a), self.split(b)
        total = left[0] @ right[0]
        for other in right[1:]:
            total = total + left[0] @ other
        for other in left[1:]:
            total = total + other @ right[0]
        return total


def to_tf32(x: Tensor) -> Tensor:
    """To the nearest of 11 significant bits, ties away from zero, in x's dtype."""
    bits = x.float().contiguous().view(torch.int32)
    rounded = ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).to(x.dtype)


EXACT = Rounding(0)
ROUNDINGS = {
    "auto": EXACT,
    "fp32": EXACT,
    "tf32": Rounding(1, tf32=True),
    "bf16": Rounding(1),
    "bf16x3": Rounding(2),
}
