"""Fisher products and natural gradients without an optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from update_cases import (
    BY_NAME,
    CASES,
    HOST_BACKENDS,
    Case,
    Wrapped,
    bits,
    dense_fisher,
    make_data,
    make_policy,
    same_bits,
)

from trpo_fast import fisher_vector_product, natural_gradient

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")
UNMASKED = [case for case in CASES if not case.masked]
GAUSSIAN = BY_NAME["gaussian"]
BACKENDS = ["generic", "auto", *HOST_BACKENDS]


def call(function: Any, backend: str, policy: Any, *args: Any, **keywords: Any) -> Any:
    if backend == "generic":
        return function(Wrapped(policy), *args, **keywords)
    return function(policy, *args, backend=backend, **keywords)


def vector(size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", UNMASKED, ids=lambda case: case.name)
@pytest.mark.parametrize("weighted", [False, True])
def test_fisher_vector_product(backend: str, case: Case, weighted: bool) -> None:
    policy = make_policy(case)
    data = make_data(policy, case, weighted=weighted)
    F, before = dense_fisher(policy, data), bits(policy)
    v = vector(len(F))
    weights = data.get("weights")
    found = call(
        fisher_vector_product, backend, policy, data["obs"], v, damping=0.3, weights=weights
    )
    exact = F @ v + 0.3 * v
    error = case.torch_error if backend == "generic" else 0.0
    assert torch.allclose(found, exact, rtol=1e-9, atol=1e-11 + error * float(exact.norm()))
    assert not found.requires_grad
    assert same_bits(policy, before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_natural_gradient(backend: str, scale: float) -> None:
    policy = make_policy(GAUSSIAN)
    data = make_data(policy, GAUSSIAN)
    F = dense_fisher(policy, data)
    A = F + 0.1 * torch.eye(len(F), dtype=torch.float64)
    g = scale * vector(len(F))
    x, stats = call(natural_gradient, backend, policy, data["obs"], g, cg_iters=200, cg_tol=1e-10)
    expected = torch.linalg.solve(A, g)
    assert float((x - expected).norm()) <= 1e-7 * float(expected.norm())
    assert stats.quadratic == pytest.approx(float(expected @ A @ expected), rel=1e-7)
    assert stats.residual <= 1e-10
    assert stats.status is None
    short, stats = call(natural_gradient, backend, policy, data["obs"], g, cg_iters=3, cg_tol=0.0)
    assert stats.cg_iters == 3
    true = (g - A @ short).norm() / g.norm()
    assert stats.residual == pytest.approx(float(true), rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-200, 1e-290, 1e200])
def test_a_gradient_whose_squares_leave_the_range_has_the_same_direction(
    backend: str, scale: float
) -> None:
    policy = make_policy(GAUSSIAN)
    data = make_data(policy, GAUSSIAN)
    g = vector(sum(p.numel() for p in policy.parameters()))
    x, _ = call(natural_gradient, backend, policy, data["obs"], g)
    scaled, stats = call(natural_gradient, backend, policy, data["obs"], scale * g)
    assert float((scaled / scale - x).norm()) <= 1e-10 * float(x.norm())
    assert stats.cg_iters > 0


@pytest.mark.parametrize("function", [fisher_vector_product, natural_gradient])
def test_what_is_no_vector_of_the_parameters_is_named(function: Any) -> None:
    policy = make_policy(GAUSSIAN)
    obs = make_data(policy, GAUSSIAN)["obs"]
    v = vector(sum(p.numel() for p in policy.parameters()))
    for wrong in (v.numpy(), None, v.tolist(), 1.0):
        with pytest.raises(TypeError, match=r"(vector|gradient) is a \w+, expected a tensor"):
            function(policy, obs, wrong)
    for wrong in (v[:-1], v[None], v[:, None], v.new_zeros(())):
        with pytest.raises(ValueError, match=rf"has shape .*, expected \({len(v)},\)"):
            function(policy, obs, wrong)
    for wrong in (v.float(), v.to("meta"), v.to(torch.complex128), v.to(torch.int64)):
        with pytest.raises(ValueError, match=r"the parameters are torch\.float64"):
            function(policy, obs, wrong)
    with pytest.raises(ValueError, match="dense"):
        function(policy, obs, v.to_sparse())
    with pytest.raises(TypeError, match=r"expected an nn\.Module"):
        function(policy.parameters(), obs, v)


def test_a_zero_gradient_gives_zeros() -> None:
    policy = make_policy(GAUSSIAN)
    data = make_data(policy, GAUSSIAN)
    size = sum(p.numel() for p in policy.parameters())
    x, stats = natural_gradient(policy, data["obs"], torch.zeros(size, dtype=torch.float64))
    assert not x.any()
    assert stats.cg_iters == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_parameters_keep_their_place(backend: str) -> None:
    policy = make_policy(GAUSSIAN)
    data = make_data(policy, GAUSSIAN)
    F = dense_fisher(policy, data)
    policy.body[2].requires_grad_(False)
    kept = torch.cat([torch.full((p.numel(),), p.requires_grad) for p in policy.parameters()])
    v = vector(len(F))
    found = call(fisher_vector_product, backend, policy, data["obs"], v)
    assert torch.allclose(found[kept], F[kept][:, kept] @ v[kept], rtol=1e-9, atol=1e-11)
    assert not found[~kept].any()
    x, _ = call(natural_gradient, backend, policy, data["obs"], v, cg_iters=200, cg_tol=1e-10)
    assert not x[~kept].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("function", [fisher_vector_product, natural_gradient])
def test_bad_arguments(backend: str, function: Any) -> None:
    policy = make_policy(GAUSSIAN)
    data = make_data(policy, GAUSSIAN)
    size = sum(p.numel() for p in policy.parameters())
    good = torch.ones(size, dtype=torch.float64)
    for bad, text in (
        (good[1:], "shape"),
        (good.unsqueeze(0), "shape"),
        (good.float(), "float32"),
        (good * torch.nan, "NaN"),
    ):
        with pytest.raises(ValueError, match=text):
            call(function, backend, policy, data["obs"], bad)
    nan = data["obs"].clone()
    nan[3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"obs\[3, 1\] is nan"):
        call(function, backend, policy, nan, good)
    with pytest.raises(ValueError, match="empty batch"):
        call(function, backend, policy, data["obs"][:0], good)
    with pytest.raises(ValueError, match="damping"):
        call(function, backend, policy, data["obs"], good, damping=-1)
    with pytest.raises(ValueError, match="precision"):
        call(function, backend, policy, data["obs"], good, precision="fp8")


def test_a_named_backend_that_cannot_serve_raises() -> None:
    policy = make_policy(GAUSSIAN)
    size = sum(p.numel() for p in policy.parameters())
    v = torch.ones(size, dtype=torch.float64)
    obs = make_data(policy, GAUSSIAN)["obs"]
    with pytest.raises(ValueError, match="cannot serve"):
        fisher_vector_product(Wrapped(policy), obs, v, backend="reference")


def test_modes_of_the_policy_are_left_as_they_were() -> None:
    policy = make_policy(GAUSSIAN).train()
    wrapped = Wrapped(policy).train()
    obs = make_data(policy, GAUSSIAN)["obs"]
    v = vector(sum(p.numel() for p in policy.parameters()))
    with torch.inference_mode():
        found = fisher_vector_product(wrapped, obs, v)
    assert all(m.training for m in wrapped.modules())
    assert torch.allclose(found, fisher_vector_product(policy, obs, v), rtol=1e-9, atol=1e-12)
