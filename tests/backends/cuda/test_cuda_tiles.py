"""The CUDA backend's plan for wide networks: tiles, tensor cores; emulated without a device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_cases import (
    BOUNDS,
    assert_same_bits_in_every_order,
    assert_same_update,
    every_precision,
    products,
)
from emulated_cuda import KIB, EmulatedProblem, EmulatedTiles, emulated, needs_emulation
from gymnasium import spaces
from update_cases import (
    BY_NAME,
    CASES,
    Case,
    flat_of,
    make_data,
    make_policy,
    recognised,
    relative,
)

from trpo_fast.backends.reference.problem import ReferenceProblem
from trpo_fast.networks.activations import ACTIVATIONS
from trpo_fast.preconditioning import kfac
from trpo_fast.preconditioning.curvature import Curvature, precondition
from trpo_fast.preconditioning.preconditioner import Preconditioner
from trpo_fast.update.options import Options
from trpo_fast.update.result import Status
from trpo_fast.update.trust_region import update


@needs_emulation
@pytest.mark.parametrize(
    ("hidden", "activation", "rows", "obs_width"),
    [
        ((300,), "tanh", 140, 3),
        ((128, 260), "relu", 129, 4),
        ((257, 30, 131), "silu", 33, 140),
        ((12,) * 9, "gelu", 70, 8),
    ],
)
@pytest.mark.parametrize("name", ["gaussian", "multi_categorical_masked"])
def test_an_update_of_a_wide_or_deep_network_equals_the_references(
    name: str, hidden: tuple[int, ...], activation: str, rows: int, obs_width: int
) -> None:
    result = assert_same_update(
        BY_NAME[name],
        Options(cg_iters=3),
        hidden,
        problem_class=EmulatedTiles,
        activation=activation,
        rows=rows,
        obs_width=obs_width,
    )
    assert result.accepted
    assert result.backend == "cuda"


@needs_emulation
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_every_head_is_updated_as_by_the_reference(case: Case, weighted: bool) -> None:
    assert_same_update(
        case, Options(cg_iters=3), problem_class=EmulatedTiles, rows=150, weighted=weighted
    )


@needs_emulation
@pytest.mark.parametrize(
    ("rows", "fraction"),
    # The last two have fewer rows in a chunk than there are splits.
    [(8300, 1.0), (8300, 0.99), (8300, 0.4), (8193, 1.0), (8300, 2e-4)],
)
def test_rows_beyond_a_chunk_and_their_splits_are_added(rows: int, fraction: float) -> None:
    assert_same_update(
        BY_NAME["gaussian"],
        Options(cg_iters=2, fisher_fraction=fraction),
        (8,),
        problem_class=EmulatedTiles,
        rows=rows,
    )


@needs_emulation
def test_a_gaussian_of_more_actions_than_a_block_has_threads() -> None:
    case = Case("wide", spaces.Box(-2.0, 3.0, (300,)), {"log_std_init": -0.3})
    assert_same_update(case, Options(cg_iters=3), (5,))


@needs_emulation
@pytest.mark.parametrize(("shared", "tiled"), [(99, True), (227, False)])
def test_panels_that_a_device_has_no_room_for_go_to_tiles(shared: int, tiled: bool) -> None:
    case = BY_NAME["gaussian"]
    emulated.set_device(3, shared * KIB)
    policy = make_policy(case, (256,))
    network, batch = recognised(policy, make_data(policy, case))
    assert EmulatedProblem(network, flat_of(policy), batch, Options()).in_tiles == tiled
    assert_same_update(case, Options(cg_iters=3), (256,))


@needs_emulation
@pytest.mark.parametrize("precision", ["fp32", *BOUNDS])
def test_the_bits_do_not_depend_on_the_order_of_threads(precision: str) -> None:
    options = Options(cg_iters=3, precision=precision)
    assert_same_bits_in_every_order(EmulatedTiles, (140, 20), 600, options)


@needs_emulation
@every_precision
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_tensor_cores_serve_any_width(precision: str, activation: str) -> None:
    problem, v, expected = products(
        EmulatedTiles,
        BY_NAME["gaussian"],
        precision,
        (150, 17),
        activation=activation,
        obs_width=37,
        rows=131,
    )
    assert relative(problem.fisher_product(v), expected) < BOUNDS[precision]


@needs_emulation
@every_precision
def test_devices_without_these_tensor_cores_refuse(precision: str) -> None:
    emulated.set_device(3, 160 * KIB, 7)
    with pytest.raises(ValueError, match=r"compute capability 8\.0 or later, this one has 7\.0"):
        products(EmulatedTiles, BY_NAME["gaussian"], precision)
    products(EmulatedTiles, BY_NAME["gaussian"], "fp32")


@needs_emulation
def test_a_plan_of_tiles_fills_the_device_within_its_memory() -> None:
    tanh = list(ACTIVATIONS).index("tanh")
    layers = [(17, 1024, tanh, 0.0), (1024, 1024, tanh, 0.0), (1024, 6, 0, 0.0)]

    def plan(rows: int, shared: int = 227 * KIB, element: int = 4) -> dict[str, int]:
        return emulated.plan(layers, 6, 0, rows, 6, element, 132, shared, blocks_each=2)

    large = plan(25_000)
    assert (large["blocks"], large["partials"], large["chunk_rows"]) == (264, 4, 8192)
    assert (plan(100)["partials"], plan(100)["chunk_rows"]) == (1, 128)
    for element in (4, 8):
        assert plan(25_000, element=element)["shared_bytes"] <= 48 * KIB
    with pytest.raises(ValueError, match="bytes of shared memory"):
        plan(100, 16 * KIB)


@needs_emulation
@pytest.mark.parametrize("kind", ["kfac", "diagonal"])
@pytest.mark.parametrize("frozen", [None, "weight", "bias", "layer"])
@pytest.mark.parametrize("hidden", [(7, 6), (140, 9)])
@pytest.mark.parametrize("eigen_width", [0, 256])
def test_a_preconditioned_update_is_the_references(
    kind: str,
    frozen: str | None,
    hidden: tuple[int, ...],
    eigen_width: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kfac, "EIGEN_WIDTH", eigen_width)  # 0: inverses of every layer
    options = Options(cg_iters=4, preconditioner=kind, damping=0.02)
    found = []
    for problem_class in (EmulatedProblem, ReferenceProblem):
        policy = make_policy(BY_NAME["multi_categorical_masked"], hidden)
        data = make_data(policy, BY_NAME["multi_categorical_masked"], 60, weighted=True)
        policy.body[0].weight.requires_grad_(frozen not in ("weight", "layer"))
        policy.body[0].bias.requires_grad_(frozen not in ("bias", "layer"))
        network, batch = recognised(policy, data)
        flat = flat_of(policy)
        problem: Any = problem_class(network, flat, batch, options)
        precondition(problem, Curvature(), network, batch, options)
        assert problem.preconditioner is not None
        g = torch.randn(sum(flat.sizes), generator=torch.Generator().manual_seed(3)).double()
        x = problem.solve(g, options)
        found.append((x, update(problem, options), flat.read()))
    (x, result, theta), (expected_x, expected, expected_theta) = found
    torch.testing.assert_close(x.x, expected_x.x, rtol=1e-7, atol=1e-10)
    assert (x.cg_iters, x.status) == (expected_x.cg_iters, expected_x.status)
    assert result.accepted
    assert (result.cg_iters, result.backtracks) == (expected.cg_iters, expected.backtracks)
    assert result.cg_residual == pytest.approx(expected.cg_residual, rel=1e-6)
    torch.testing.assert_close(theta, expected_theta, rtol=1e-7, atol=1e-9)


@needs_emulation
def test_a_named_preconditioner_goes_to_tiles_and_auto_takes_none() -> None:
    policy = make_policy(BY_NAME["gaussian"], (64, 64), dtype=torch.float32)
    network, batch = recognised(policy, make_data(policy, BY_NAME["gaussian"], 2000))
    for kind, tiled in (("auto", False), ("none", False), ("kfac", True), ("diagonal", True)):
        options = Options(preconditioner=kind)
        problem = EmulatedProblem(network, flat_of(policy), batch, options)
        precondition(problem, Curvature({}), network, batch, options)
        assert problem.tiled(options) == tiled
        assert (problem.preconditioner is not None) == tiled


@needs_emulation
def test_a_preconditioner_that_is_not_positive_ends_the_solve() -> None:
    policy = make_policy(BY_NAME["gaussian"])
    network, batch = recognised(policy, make_data(policy, BY_NAME["gaussian"]))
    options = Options(preconditioner="diagonal")
    problem = EmulatedProblem(network, flat_of(policy), batch, options)
    size = sum(problem.parameters.sizes)
    problem.preconditioner = Preconditioner(-torch.ones(size, dtype=torch.float64))
    solution = problem.solve(torch.ones(size, dtype=torch.float64), options)
    assert solution.status is Status.breakdown
    assert not solution.x.any()
