"""The native update against the reference backend in float64: its own paths and hazards.

The shared cases (every head, weights, masks, both KL directions) are in test_parity.py; threads,
signals and processes in test_cpu_processes.py.
"""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import pytest
import torch
from cpu_cases import (
    Case,
    assert_matches_reference,
    case,
    every_row_count,
    every_shape,
)
from torch import Tensor
from update_cases import relative

from trpo_fast import _native
from trpo_fast.networks.activations import ACTIVATIONS
from trpo_fast.networks.mlp import MlpPolicy
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters
from trpo_fast.update.trust_region import update

if _native.core is None:
    pytest.skip(f"no native module: {_native.load_error}", allow_module_level=True)

from trpo_fast.backends.cpu import problem as cpu


@every_shape
@every_row_count
def test_any_width_and_depth(
    rows: int, obs_dim: int, hidden: tuple[int, ...], actions: int
) -> None:
    assert_matches_reference(case(rows, obs_dim, gym.spaces.Box(-1, 1, (actions,)), hidden))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation(activation: str) -> None:
    assert_matches_reference(case(300, 9, None, (33, 20), activation))


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu"])
def test_float64_is_correct_to_rounding(activation: str) -> None:
    c = case(300, 9, None, (33, 20), activation, torch.float64)
    assert_matches_reference(c, 1e-11)


def test_solve_reaches_the_damped_solution() -> None:
    c = case(400, 5, None, (12,), dtype=torch.float64)
    native = c.native()
    _, g = native.surrogate_gradient()
    columns = [native.fisher_product(e) for e in torch.eye(len(g), dtype=torch.float64)]
    fisher = torch.stack(columns)
    torch.testing.assert_close(fisher, fisher.T, rtol=0, atol=1e-12)
    damped = fisher + 0.1 * torch.eye(len(g), dtype=torch.float64)
    exact = torch.linalg.solve(damped, g)
    solution = native.solve(g, Options(cg_iters=200, cg_tol=1e-12))
    assert solution.status is None
    assert solution.residual <= 1e-12
    assert relative(solution.x, exact) < 1e-10
    assert solution.quadratic == pytest.approx(float(exact @ damped @ exact), rel=1e-9)


def test_a_relative_residual_stops_the_solve_at_any_scale() -> None:
    native = case(400, 5).native()
    _, g = native.surrogate_gradient()
    counts = {native.solve(g * s, Options(cg_iters=50, cg_tol=0.1)).cg_iters for s in (1, 2**20)}
    assert len(counts) == 1
    assert 0 < counts.pop() < 50


@pytest.mark.parametrize("activation", ["tanh", "silu"])
def test_recomputed_activations_change_no_bit(
    activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = case(2000, 7, gym.spaces.MultiDiscrete([3, 4]), (40, 24), activation)

    def results() -> list[Tensor]:
        native = c.native(Options(fisher_fraction=0.5))
        _, g = native.surrogate_gradient()
        return [g, native.fisher_product(g), native.solve(g, Options()).x]

    kept = results()
    for size in (0, 150_000):
        monkeypatch.setattr(cpu, "CACHE_BYTES", size)
        for a, b in zip(results(), kept, strict=True):
            assert torch.equal(a, b)


def test_frozen_parameters_get_no_step_and_shift_no_offsets() -> None:
    names = [
        n
        for n, _ in MlpPolicy(
            gym.spaces.Box(-1, 1, (9,)), gym.spaces.Box(-1, 1, (6,)), (20, 20)
        ).named_parameters()
    ]
    for frozen in ((names[0],), (names[1], names[2]), (names[-1],)):
        assert_matches_reference(case(200, 9, None, (20, 20), frozen=frozen))


def test_parameters_of_any_strides_are_read_where_they_live() -> None:
    c = case(200, 9, None, (20, 20))
    _, g = c.native().surrogate_gradient()
    for t in c.parameters.tensors:
        if t.ndim == 2:
            t.data = t.data.t().contiguous().t()
    _, strided = c.native().surrogate_gradient()
    assert torch.equal(g, strided)


def test_category_out_of_range_is_an_index_error() -> None:
    c = case(20, 4, gym.spaces.Discrete(3))
    assert c.batch.actions is not None
    c.batch.actions[7] = 3
    with pytest.raises(IndexError, match=r"actions\[7, 0\] is 3"):
        c.native()


def test_lazily_negated_observations_keep_their_sign() -> None:
    c = case(200, 4)
    mirrored = torch.complex(torch.zeros_like(c.batch.obs), -c.batch.obs).conj().imag
    assert mirrored.is_neg()
    negated = Case(c.network, c.parameters, c.batch._replace(obs=mirrored))
    assert torch.equal(negated.native().surrogate_gradient()[1], c.native().surrogate_gradient()[1])


def test_observations_without_columns() -> None:
    c = case(200, 3, None, (4,))
    first = c.network.layers[0]
    first.weight.data = first.weight.data[:, :0]
    parameters = FlatParameters(c.parameters.tensors, c.parameters.names)
    assert_matches_reference(Case(c.network, parameters, c.batch._replace(obs=torch.zeros(200, 0))))


def test_nothing_is_served_before_a_workspace_is_bound() -> None:
    native = case(20).native()
    assert native._native.workspace_bytes() > 0
    with pytest.raises(ValueError, match="size 3 in dimension 0, expected"):
        native.fisher_product(torch.zeros(3))


class InPython:
    """A native problem without its whole-update call: ``trust_region.update`` does the steps."""

    def __init__(self, native: cpu.CpuProblem) -> None:
        self.backend, self.parameters = native.backend, native.parameters
        self.surrogate_gradient, self.solve = native.surrogate_gradient, native.solve
        self.fisher_product, self.evaluate = native.fisher_product, native.evaluate


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(max_kl=1.0, damping=1e-3),
        Options(step_size="damped"),
        Options(step_size="boundary", damping=1.0),
        Options(step_size="boundary", max_kl=3.0, lr=0.5),
        Options(constraint="penalty", beta=0.5),
        Options(constraint="none", lr=0.01),
        Options(lr=0.0),
        Options(accept_ratio=0.99, max_backtracks=1),
        Options(kl_direction="new_old", fisher_fraction=0.3, cg_iters=3),
    ],
)
@pytest.mark.parametrize("unit", [1.0, 2.0**40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_native_update_takes_the_steps_of_the_python_one(
    options: Options, unit: float, dtype: torch.dtype
) -> None:
    c = case(300, 9, None, (33, 20), dtype=dtype)
    start = c.parameters.read()
    native = update(c.native(options), options, unit=unit)
    ended = c.parameters.read()
    c.parameters.write(start)
    stepwise = update(InPython(c.native(options)), options, unit=unit)
    assert native.status is stepwise.status
    assert native.backtracks == stepwise.backtracks
    assert native.cg_iters == stepwise.cg_iters
    rtol, atol = (2e-3, 1e-5) if dtype is torch.float32 else (1e-9, 1e-12)
    torch.testing.assert_close(ended, c.parameters.read(), rtol=rtol, atol=atol)
    assert torch.equal(ended, start) == (not native.accepted)
    for name in (
        "kl",
        "loss_before",
        "loss_after",
        "expected_improvement",
        "step_size",
        "gradient_norm",
        "actual_improvement",
    ):
        value, expected = getattr(native, name), getattr(stepwise, name)
        assert value == pytest.approx(expected, rel=10 * rtol, abs=atol), name
    # A whole update leaves out what only the last iterate's residual needs.
    c.parameters.write(start)
    at_cap = native.cg_iters == options.cg_iters
    shorter = replace(options, cg_iters=options.cg_iters - 1) if at_cap else options
    _, g = c.native(options).surrogate_gradient()
    residual = c.native(options).solve(g / g.norm(), shorter).residual
    assert native.cg_residual == pytest.approx(residual, rel=10 * rtol, abs=atol)
