"""What rounding may change: how far Fisher products may be off, and that nothing else moves."""

from __future__ import annotations

from typing import Any

import torch

# Largest relative error (2-norm) of F v. Rounding moves an operand by at most 2^-8 of itself, or
# 2^-17 as a pair; several operands meet in a product, and their errors mostly cancel in its sums.
BOUNDS = {"bf16": 2**-7, "bf16x3": 2**-15}


def assert_only_products_are_rounded(plain: Any, rounded: Any) -> None:
    """Two problems of one batch have the bits of gradient and candidates in common."""
    (loss, g), (other_loss, other_g) = plain.surrogate_gradient(), rounded.surrogate_gradient()
    assert loss == other_loss
    assert torch.equal(g, other_g)
    theta = plain.parameters.read() + 0.01 * g / g.norm()
    assert plain.evaluate(theta) == rounded.evaluate(theta)
    v = torch.randn(len(g), generator=torch.Generator().manual_seed(1))
    assert not torch.equal(plain.fisher_product(v), rounded.fisher_product(v))
