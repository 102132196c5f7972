"""The CUDA backend on a real device, for tests whose data is on the CPU."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from update_cases import flat_of, recognised

from trpo_fast import _native
from trpo_fast.backends.cuda.problem import CudaProblem
from trpo_fast.update.options import Options
from trpo_fast.update.result import Solution


def why_not() -> str | None:
    """Why no test can run on a device, or None."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    return _native.cuda()[1]


needs_device = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")


class DeviceProblem:
    """A ``CudaProblem`` that takes and gives CPU tensors."""

    backend = "cuda"

    def __init__(self, problem: CudaProblem, policy: nn.Module) -> None:
        self.inner, self.parameters = problem, flat_of(policy)

    def surrogate_gradient(self) -> tuple[float, Tensor]:
        loss, g = self.inner.surrogate_gradient()
        return loss, g.cpu()

    def solve(self, g: Tensor, options: Options) -> Solution:
        s = self.inner.solve(g.cuda(), options)
        return Solution(s.x.cpu(), s.quadratic, s.cg_iters, s.residual, s.status)

    def fisher_product(self, v: Tensor) -> Tensor:
        return self.inner.fisher_product(v.cuda()).cpu()

    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        return self.inner.evaluate(theta.cuda())


def on_device(policy: nn.Module, data: dict[str, Any], options: Options) -> DeviceProblem:
    """The problem of a CPU policy and CPU data, computed on the first device."""
    moved = deepcopy(policy).cuda()
    network, batch = recognised(moved, {key: value.cuda() for key, value in data.items()})
    return DeviceProblem(CudaProblem(network, flat_of(moved), batch, options), policy)
