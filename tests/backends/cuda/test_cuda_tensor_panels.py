"""Tensor cores within the CUDA backend's panels; emulated without a device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from emulated_cuda import KIB, EmulatedProblem, emulated, needs_emulation
from test_cuda import run
from test_cuda_tiles import BOUNDS, every_precision, products
from test_precision import relative
from update_cases import BY_NAME, CASES, Case, flat_of, make_data, make_policy

from trpo_fast.networks.activations import ACTIVATIONS
from trpo_fast.update.options import Options

# (multiprocessors, shared memory): the vector in shared memory, with few rows staged at once or
# many, or not.
MACHINES = {"tight": (3, 160 * KIB), "streamed": (2, 105 * KIB), "large": (1, 227 * KIB)}
TANH = list(ACTIVATIONS).index("tanh")


def panels(*arguments: Any, **keywords: Any) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """``test_cuda_tiles.products`` in panels."""
    found = products(*arguments, problem_class=EmulatedProblem, **keywords)
    assert not found[0].in_tiles
    return found


@needs_emulation
@every_precision
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_the_error_of_a_product_is_bounded(precision: str, case: Case, weighted: bool) -> None:
    problem, v, expected = panels(case, precision, weighted=weighted)
    error = relative(problem.fisher_product(v), expected)
    assert BOUNDS[precision] / 1000 < error < BOUNDS[precision]


@needs_emulation
@every_precision
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("hidden", "activation", "rows", "obs_width"),
    [
        ((), "tanh", 9, 3),
        ((1, 64, 7, 8), "relu", 33, 1),
        ((63, 15), "silu", 600, 75),
        ((9, 17), "identity", 270, 131),
        ((64, 64), "tanh", 300, 17),
    ],
)
def test_any_width_and_number_of_rows(
    precision: str,
    machine: str,
    hidden: tuple[int, ...],
    activation: str,
    rows: int,
    obs_width: int,
) -> None:
    emulated.set_device(*MACHINES[machine])
    problem, v, expected = products(
        BY_NAME["gaussian"],
        precision,
        hidden,
        activation=activation,
        rows=rows,
        obs_width=obs_width,
        problem_class=EmulatedProblem,
    )
    # Two hidden layers of 64 want more than that; and there, tiles serve.
    assert problem.in_tiles == (
        hidden == (64, 64) and machine == "streamed" and precision != "bf16"
    )
    few = 4 if 1 in hidden else 1  # a few numbers round as they happen to
    for scale in (1.0, -2.0):  # a second product finds words and sums of the first
        found = problem.fisher_product(scale * v)
        assert relative(found, scale * expected) < few * BOUNDS[precision]


@needs_emulation
@every_precision
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(precision: str, activation: str) -> None:
    problem, v, expected = panels(
        BY_NAME["categorical"], precision, (20, 33), activation=activation, rows=40
    )
    assert relative(problem.fisher_product(v), expected) < BOUNDS[precision]


@needs_emulation
@every_precision
def test_gradient_and_candidates_are_not_rounded(precision: str) -> None:
    plain, v, _ = panels(BY_NAME["gaussian"], "fp32")
    rounded, _, _ = panels(BY_NAME["gaussian"], precision)
    (loss, g), (other_loss, other_g) = plain.surrogate_gradient(), rounded.surrogate_gradient()
    assert loss == other_loss
    assert torch.equal(g, other_g)
    theta = plain.parameters.read() + 0.01 * g / g.norm()
    assert plain.evaluate(theta) == rounded.evaluate(theta)
    assert not torch.equal(plain.fisher_product(v), rounded.fisher_product(v))


@needs_emulation
@every_precision
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_an_update_keeps_its_bits_in_every_order_of_threads(
    precision: str, machine: str, fraction: float
) -> None:
    case = BY_NAME["gaussian"]
    emulated.set_device(*MACHINES[machine])
    found = []
    for order in (0, 1, 2):
        emulated.set_order(order)
        policy = make_policy(case, (33, 20), dtype=torch.float32)
        options = Options(cg_iters=3, precision=precision, fisher_fraction=fraction)
        result, theta = run(EmulatedProblem, policy, make_data(policy, case, 500), options)
        found.append((result, theta.numpy().tobytes()))
    assert found[0][0].accepted
    assert all(item == found[0] for item in found)


@needs_emulation
@every_precision
def test_a_rounded_update_is_near_the_exact_one(precision: str) -> None:
    case = BY_NAME["multi_categorical_masked"]
    steps = []
    for how in ("fp32", precision):
        policy = make_policy(case, (24, 33), dtype=torch.float32)
        before = flat_of(policy).read()
        data = make_data(policy, case, 300, weighted=True)
        options = Options(cg_iters=3, damping=0.1, precision=how)
        result, theta = run(EmulatedProblem, policy, data, options)
        assert result.accepted
        steps.append(theta - before)
    assert 0 < relative(steps[1], steps[0].double()) < 20 * BOUNDS[precision]


@needs_emulation
def test_a_plan_takes_what_shared_memory_holds() -> None:
    def plan(hidden: int, shared: int, how: int) -> dict[str, int]:
        layers = [(17, hidden, TANH, 0.0), (hidden, hidden, TANH, 0.0), (hidden, 6, 0, 0.0)]
        return emulated.plan(layers, 6, 0, 100_000, 6, 4, 132, shared * KIB, products=how)

    tf32, bf16, bf16x3 = 1, 2, 3
    assert [plan(64, 227, how)["staged"] for how in (tf32, bf16, bf16x3)] == [8, 16, 8]
    assert [plan(64, 163, how)["staged"] for how in (tf32, bf16, bf16x3)] == [2, 8, 2]
    assert all(plan(64, 163, how)["weights_resident"] for how in (tf32, bf16, bf16x3))
    assert not plan(64, 99, bf16)["weights_resident"]
    for how in (tf32, bf16, bf16x3):
        for shared in (163, 200, 227):
            assert plan(64, shared, how)["shared_bytes"] <= shared * KIB
        with pytest.raises(ValueError, match="do not fit"):
            plan(64, 64, how)
        with pytest.raises(ValueError, match="too wide"):
            plan(65, 227, how)
