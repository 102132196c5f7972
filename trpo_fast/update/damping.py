"""Damping in units of the Fisher matrix's mean diagonal, made absolute for one update."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from trpo_fast.base.tensors import dot
from trpo_fast.update.options import Options

PROBES = 4  # their mean is good to about a third, and a tenfold damping is what one may notice


def absolute(options: Options, mean_diagonal: float) -> Options:
    """The options with ``damping`` times that mean; as it is where it makes no number."""
    damping = options.damping * mean_diagonal
    if not (math.isfinite(damping) and damping >= 0):
        damping = options.damping
    return replace(options, damping=damping, relative_damping=False)


def probed_mean_diagonal(product: Callable[[Tensor], Tensor], like: Tensor) -> float:
    """An estimate of ``tr(F) / P`` from products alone, the same at every call.

    E[v'Fv] = tr(F) for random signs v (Hutchinson 1990).

    Args:
        product: ``v -> F v`` ``[P]``.
        like: ``[P]``, of the vectors' dtype and device.
    """
    probes = probe_signs(len(like)).to(like)
    return sum(dot(v, product(v)) for v in probes) / (len(probes) * len(like))


@lru_cache(maxsize=2)
def probe_signs(count: int) -> Tensor:
    """Random signs ``[PROBES, P]``, the same at every call; torch's own generator rests."""
    generator = torch.Generator("cpu").manual_seed(0)
    bits = torch.randint(0, 2, (PROBES, count), generator=generator, device="cpu")
    return (2 * bits - 1).to(torch.float32)
