"""What tests over every backend share: backends, tolerances, a policy in two precisions.

A new backend enters ``BACKENDS`` with its tolerances; tests over ``every_backend`` pick it up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cuda_device import needs_device, on_device
from emulated_cuda import EmulatedProblem, EmulatedTiles, needs_emulation
from torch import Tensor
from update_cases import (
    CASES,
    Case,
    Wrapped,
    flat_of,
    make_data,
    make_policy,
    read_batch,
    recognised,
)

from trpo_fast import MlpPolicy
from trpo_fast.backends.cuda import problem as cuda
from trpo_fast.backends.generic.modules import module_terms
from trpo_fast.backends.generic.problem import GenericProblem
from trpo_fast.backends.registry import ANALYTIC
from trpo_fast.update.options import Options
from trpo_fast.update.trust_region import Problem

Build = Callable[[MlpPolicy, dict[str, Any], Options], Problem]


def analytic(name: str) -> Build:
    def build(policy: MlpPolicy, data: dict[str, Any], options: Options) -> Problem:
        network, batch = recognised(policy, data)
        assert ANALYTIC[name].refusal(network, batch, options) is None
        return ANALYTIC[name].problem(network, flat_of(policy), batch, options)

    return build


def generic(policy: MlpPolicy, data: dict[str, Any], options: Options) -> Problem:
    module = Wrapped(policy)
    terms, fisher_terms = module_terms(module, read_batch(policy, data), options)
    return GenericProblem(flat_of(policy), options, terms, fisher_terms)


@dataclass(frozen=True)
class Backend:
    """How to build a problem, and the relative error allowed in each dtype."""

    build: Build
    tolerance: dict[torch.dtype, float]
    by_torch: bool = False  # it differentiates what torch's distributions give

    def within(self, case: Case, dtype: torch.dtype) -> float:
        """The relative error allowed to a Fisher product."""
        return max(self.tolerance[dtype], case.torch_error if self.by_torch else 0.0)


def emulated(policy: MlpPolicy, data: dict[str, Any], options: Options) -> Problem:
    network, batch = recognised(policy, data)
    assert cuda.shape_refusal(network) is None
    return EmulatedProblem(network, flat_of(policy), batch, options)


def emulated_tiles(policy: MlpPolicy, data: dict[str, Any], options: Options) -> Problem:
    network, batch = recognised(policy, data)
    return EmulatedTiles(network, flat_of(policy), batch, options)


ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-10}
BACKENDS = {"generic": Backend(generic, ROUNDING, by_torch=True)} | {
    name: Backend(analytic(name), ROUNDING)
    for name, backend in ANALYTIC.items()
    if backend.device != "cuda"
}
DTYPES = [torch.float32, torch.float64]

every_backend = pytest.mark.parametrize(
    "backend",
    [
        *(pytest.param(backend, id=name) for name, backend in BACKENDS.items()),
        pytest.param(Backend(emulated, ROUNDING), id="cuda_emulated", marks=needs_emulation),
        pytest.param(
            Backend(emulated_tiles, ROUNDING), id="cuda_emulated_tiles", marks=needs_emulation
        ),
        pytest.param(Backend(on_device, ROUNDING), id="cuda", marks=needs_device),
    ],
)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64"])


def in_dtype(data: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in data.items()
    }


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (found.double() - expected.double()).norm()
    assert float(error) <= tolerance * float(expected.double().norm()), float(
        error / expected.double().norm()
    )


def pair(
    case: Case, dtype: torch.dtype, **keywords: Any
) -> tuple[MlpPolicy, MlpPolicy, dict[str, Any]]:
    """The policy in ``dtype``, its very same parameters in float64, and data in float64."""
    weighted, rows = keywords.pop("weighted", False), keywords.pop("rows", 40)
    policy = make_policy(case, dtype=dtype, **keywords)
    exact = make_policy(case, dtype=torch.float64, **keywords)
    exact.load_state_dict(policy.state_dict())
    data = make_data(policy, case, rows, weighted=weighted)
    return policy, exact, in_dtype(data, torch.float64)
