"""Fisher products with rounded operands: their errors, their twin in torch, and who gets them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import pytest
import torch
from cpu_cases import case, double, every_row_count, every_shape
from precision_cases import BOUNDS, assert_only_products_are_rounded
from torch import nn
from update_cases import (
    BY_NAME,
    CASES,
    Case,
    Wrapped,
    bits,
    dense_fisher,
    flat_of,
    make_data,
    make_policy,
    recognised,
    relative,
    same_bits,
)

from trpo_fast import TRPOOptimizer, _native, fisher_vector_product, natural_gradient
from trpo_fast.backends.reference.problem import ReferenceProblem
from trpo_fast.backends.reference.rounding import ROUNDINGS, Rounding
from trpo_fast.backends.registry import ANALYTIC
from trpo_fast.networks.activations import ACTIVATIONS
from trpo_fast.update.options import Options

# How far the native products and their torch twin may be apart: they sum in different orders and
# in different precisions, so that now and then a tangent or delta rounds to the other neighbour.
TWINS = {"bf16": 2**-11, "bf16x3": 2**-17}

every_precision = pytest.mark.parametrize("precision", BOUNDS)
every_backend = pytest.mark.parametrize(
    "backend", [name for name in ANALYTIC if ANALYTIC[name].device != "cuda"]
)
native_only = pytest.mark.skipif(_native.core is None, reason="no native module")


def native_and_twin(
    rows: int,
    obs_dim: int,
    hidden: tuple[int, ...],
    actions: int,
    activation: str = "tanh",
    **options: Any,
) -> tuple[Any, Any, Any]:
    """The native product, its torch twin in float64, and the exact one, of one vector each."""
    c = case(rows, obs_dim, gym.spaces.Box(-1, 1, (actions,)), hidden, activation)
    _, d = double(c)
    native = c.native(Options(**options))
    twin = ReferenceProblem(d.network, d.parameters, d.batch, Options(**options))
    exact = ReferenceProblem(
        d.network, d.parameters, d.batch, Options(**{**options, "precision": "fp32"})
    )
    v = torch.randn(sum(c.parameters.sizes), generator=torch.Generator().manual_seed(1))
    return (
        native.fisher_product(v),
        twin.fisher_product(v.double()),
        exact.fisher_product(v.double()),
    )


class TestRounding:
    def test_to_the_nearest_ties_to_even(self) -> None:
        # 1 + k 2^-8: half-way between two bfloat16 where k is odd
        x = torch.tensor([1.0, 1 + 2**-9, 1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8 + 2**-20)])
        (hi,) = Rounding(1).split(x)
        assert hi.tolist() == [1.0, 1.0, 1.0, 1 + 2**-6, -(1 + 2**-7)]

    @pytest.mark.parametrize(("parts", "bits_left"), [(1, 8), (2, 17)])
    def test_what_the_parts_leave(self, parts: int, bits_left: int) -> None:
        x = torch.randn(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        error = (Rounding(parts)(x) - x).abs() / x.abs()
        assert 2.0 ** -(bits_left + 2) < float(error.max()) <= 2.0**-bits_left

    def test_a_product_leaves_out_the_low_parts_alone(self) -> None:
        a = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        b = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        rounding = ROUNDINGS["bf16x3"]
        (_, a_lo), (_, b_lo) = rounding.split(a), rounding.split(b)
        left_out = rounding(a) @ rounding(b) - rounding.matmul(a, b)
        torch.testing.assert_close(left_out, a_lo @ b_lo, rtol=1e-6, atol=1e-15)


@every_backend
@every_precision
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_the_error_of_a_product_is_bounded(
    backend: str, precision: str, case: Case, weighted: bool
) -> None:
    policy = make_policy(case, (24, 33), dtype=torch.float32)
    exact = make_policy(case, (24, 33))
    exact.load_state_dict(policy.state_dict())
    data = make_data(policy, case, 150, weighted=weighted)
    network, batch = recognised(policy, data)
    problem = ANALYTIC[backend].problem(
        network, flat_of(policy), batch, Options(precision=precision)
    )
    F = dense_fisher(exact, data)
    for seed in range(3):
        v = torch.randn(len(F), generator=torch.Generator().manual_seed(seed))
        error = relative(problem.fisher_product(v), F @ v.double())
        assert BOUNDS[precision] / 1000 < error < BOUNDS[precision]


@native_only
@every_precision
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_native_product_is_its_torch_twin(precision: str, activation: str) -> None:
    found, twin, exact = native_and_twin(300, 11, (64, 48), 4, activation, precision=precision)
    assert relative(found, twin) < TWINS[precision]
    assert relative(found, exact) < BOUNDS[precision]


@native_only
@every_precision
@every_shape
@every_row_count
def test_any_width_and_depth(
    precision: str, rows: int, obs_dim: int, hidden: tuple[int, ...], actions: int
) -> None:
    found, twin, exact = native_and_twin(rows, obs_dim, hidden, actions, precision=precision)
    # A few numbers round as they happen to.
    few = 3 if rows == 1 or hidden == (1,) else 1
    assert relative(found, twin) < few * TWINS[precision]
    assert relative(found, exact) < few * BOUNDS[precision]


@native_only
@every_precision
def test_bits_depend_neither_on_threads_nor_on_the_cache(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trpo_fast.backends.cpu import problem as cpu

    c, found, threads = case(1500), [], torch.get_num_threads()
    v = torch.randn(sum(c.parameters.sizes), generator=torch.Generator().manual_seed(2))
    try:
        for count, cache_bytes in ((1, 1 << 28), (2, 1 << 28), (3, 0), (2, 300_000)):
            monkeypatch.setattr(cpu, "CACHE_BYTES", cache_bytes)
            torch.set_num_threads(count)
            problem = c.native(Options(precision=precision))
            problem.surrogate_gradient()
            found.append(problem.fisher_product(v))
            # Without a gradient before it, the product prepares its operands itself.
            found.append(c.native(Options(precision=precision)).fisher_product(v))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


@native_only
@every_precision
def test_the_fisher_share_of_the_rows_is_rounded_alike(precision: str) -> None:
    found, twin, _ = native_and_twin(500, 9, (32, 32), 3, precision=precision, fisher_fraction=0.3)
    assert relative(found, twin) < TWINS[precision]


@native_only
@every_precision
def test_gradient_and_candidates_are_not_rounded(precision: str) -> None:
    c = case(400)
    plain, rounded = (c.native(Options(precision=p)) for p in ("fp32", precision))
    assert_only_products_are_rounded(plain, rounded)


@every_backend
@every_precision
@pytest.mark.parametrize("constraint", ["hard", "penalty"])
def test_a_step_keeps_its_promise_and_comes_near_the_exact_one(
    backend: str, precision: str, constraint: str
) -> None:
    steps = []
    for choice in ("fp32", precision):
        policy = make_policy(BY_NAME["gaussian"], (32, 32), dtype=torch.float32)
        data = make_data(policy, BY_NAME["gaussian"], 800)
        before = torch.cat(bits(policy)[:1] + [p.reshape(-1) for p in bits(policy)[1:]])
        opt = TRPOOptimizer(policy, backend=backend, precision=choice, constraint=constraint)
        opt.step(**data)
        assert opt.last_result is not None
        assert opt.last_result.accepted
        assert constraint == "penalty" or opt.last_result.kl <= opt.param_groups[0]["max_kl"]
        after = torch.cat(bits(policy)[:1] + [p.reshape(-1) for p in bits(policy)[1:]])
        steps.append(after - before)
    assert relative(steps[1], steps[0]) < (0.05 if precision == "bf16" else 1e-3)
    assert not torch.equal(steps[0], steps[1])


@every_backend
def test_overflowing_products_leave_the_parameters_alone(backend: str) -> None:
    policy = make_policy(BY_NAME["gaussian"], (16,), dtype=torch.float32, activation="relu")
    data = make_data(policy, BY_NAME["gaussian"], 100)
    data["obs"] = data["obs"] * 1e30
    data.pop("old_log_prob")
    before = bits(policy)
    opt = TRPOOptimizer(policy, backend=backend, precision="bf16")
    opt.step(**data)
    assert opt.last_result is not None
    assert not opt.last_result.accepted
    assert same_bits(policy, before)


def test_functions_take_a_precision() -> None:
    policy = make_policy(BY_NAME["categorical"], (32, 32), dtype=torch.float32)
    obs = make_data(policy, BY_NAME["categorical"], 300)["obs"]
    v = torch.randn(sum(p.numel() for p in policy.parameters()))
    exact = fisher_vector_product(policy, obs, v)
    error = relative(fisher_vector_product(policy, obs, v, precision="bf16"), exact)
    assert 1e-5 < error < BOUNDS["bf16"]
    x, _ = natural_gradient(policy, obs, v, damping=1.0, precision="fp32")
    rounded, _ = natural_gradient(policy, obs, v, damping=1.0, precision="bf16")
    assert 1e-6 < relative(rounded, x) < BOUNDS["bf16"]


class TestWhoGetsIt:
    @native_only
    @every_precision
    def test_float64_is_served_by_the_reference(self, precision: str) -> None:
        policy = make_policy(BY_NAME["gaussian"])
        data = make_data(policy, BY_NAME["gaussian"])
        with pytest.raises(ValueError, match=rf"{precision}.*needs float32.*float64"):
            TRPOOptimizer(policy, backend="cpu", precision=precision).step(**data)
        opt = TRPOOptimizer(policy, backend="reference", precision=precision)
        opt.step(**data)
        assert opt.last_result is not None
        assert opt.last_result.accepted

    @every_precision
    def test_cuda_refuses_other_devices_and_dtypes(self, precision: str) -> None:
        policy = make_policy(BY_NAME["gaussian"], dtype=torch.float32)
        network, batch = recognised(policy, make_data(policy, BY_NAME["gaussian"]))
        refusal = ANALYTIC["cuda"].refusal(network, batch, Options(precision=precision))
        assert refusal == "the parameters are on cpu, and it serves CUDA devices"
        double = make_policy(BY_NAME["gaussian"])
        network, batch = recognised(double, make_data(double, BY_NAME["gaussian"]))
        refusal = ANALYTIC["cuda"].refusal(network, batch, Options(precision=precision))
        assert refusal is not None
        assert "needs float32 parameters, these are torch.float64" in refusal

    def test_tf32_is_rounded_by_the_reference_and_refused_by_the_cpu(self) -> None:
        x = torch.tensor([1.0, 1 + 2**-11, 1 + 2**-11 - 2**-20, -(1 + 2**-10 + 2**-12), torch.inf])
        expected = [1.0, 1 + 2**-10, 1.0, -(1 + 2**-10), torch.inf]
        assert ROUNDINGS["tf32"](x).tolist() == expected
        policy = make_policy(BY_NAME["gaussian"], dtype=torch.float32)
        data = make_data(policy, BY_NAME["gaussian"])
        if _native.core is not None:
            with pytest.raises(ValueError, match="'tf32' is of CUDA's tensor cores"):
                TRPOOptimizer(policy, backend="cpu", precision="tf32").step(**data)
        v = torch.randn(sum(p.numel() for p in policy.parameters()))
        exact = fisher_vector_product(policy, data["obs"], v, backend="reference")
        found = fisher_vector_product(policy, data["obs"], v, backend="reference", precision="tf32")
        assert 2**-14 < relative(found, exact) < 2**-10

    @every_precision
    def test_the_generic_path_refuses_and_changes_nothing(self, precision: str) -> None:
        policy = make_policy(BY_NAME["gaussian"], dtype=torch.float32)
        data = make_data(policy, BY_NAME["gaussian"])
        module: nn.Module = Wrapped(policy)
        before = bits(module)
        with pytest.raises(ValueError, match=rf"precision='{precision}'.*precision='auto'"):
            TRPOOptimizer(module, precision=precision).step(**data)
        assert same_bits(module, before)

    @native_only
    def test_auto_goes_by_hardware_preconditioner_dtype_and_size(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from trpo_fast.backends.cpu import problem as cpu

        c, small = case(2000), case(40)
        d = case(2000, dtype=torch.float64)
        chosen = Options(preconditioner="kfac")
        for instruction in (False, True):
            monkeypatch.setattr(cpu.kernels, "bf16_instruction", lambda has=instruction: has)
            assert cpu.bf16_parts(c.network, c.batch, chosen) == int(instruction)
            for other in (
                (c.network, c.batch, Options(preconditioner="none")),
                (small.network, small.batch, chosen),
                (d.network, d.batch, chosen),
                (c.network, c.batch, replace(chosen, precision="fp32")),
            ):
                assert cpu.bf16_parts(*other) == 0
            assert cpu.bf16_parts(small.network, small.batch, Options(precision="bf16")) == 1
            assert cpu.bf16_parts(small.network, small.batch, Options(precision="bf16x3")) == 2

    @native_only
    def test_plain_iterations_of_one_solve_are_not_rounded(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """K-FAC would pay here only where its statistics served the next solves, too."""
        from trpo_fast.backends.cpu import problem as cpu

        monkeypatch.setattr(cpu.kernels, "bf16_instruction", lambda: True)
        policy = make_policy(BY_NAME["gaussian"], (128, 128), dtype=torch.float32)
        data = make_data(policy, BY_NAME["gaussian"], 1200)
        g = torch.randn(sum(p.numel() for p in policy.parameters()))
        x, _ = natural_gradient(policy, data["obs"], g)
        plain, _ = natural_gradient(policy, data["obs"], g, preconditioner="none", precision="fp32")
        assert torch.equal(x, plain)
        optimizer = TRPOOptimizer(policy)
        optimizer.step(**data)
        assert optimizer.state
