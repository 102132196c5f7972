"""Tensor cores within the CUDA backend's panels; emulated without a device."""

from __future__ import annotations

import pytest
import torch
from cuda_cases import BOUNDS, assert_same_bits_in_every_order, every_precision, products, run
from emulated_cuda import KIB, EmulatedProblem, emulated, needs_emulation
from update_cases import BY_NAME, flat_of, make_data, make_policy, relative

from trpo_fast.networks.activations import ACTIVATIONS
from trpo_fast.update.options import Options

# (multiprocessors, shared memory): the vector in shared memory, with few rows staged at once or
# many, or not.
MACHINES = {"tight": (3, 160 * KIB), "streamed": (2, 105 * KIB), "large": (1, 227 * KIB)}
TANH = list(ACTIVATIONS).index("tanh")


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
        EmulatedProblem,
        BY_NAME["gaussian"],
        precision,
        hidden,
        activation=activation,
        rows=rows,
        obs_width=obs_width,
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
    problem, v, expected = products(
        EmulatedProblem,
        BY_NAME["categorical"],
        precision,
        (20, 33),
        activation=activation,
        rows=40,
    )
    assert not problem.in_tiles
    assert relative(problem.fisher_product(v), expected) < BOUNDS[precision]


@needs_emulation
@every_precision
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_an_update_keeps_its_bits_in_every_order_of_threads(
    precision: str, machine: str, fraction: float
) -> None:
    emulated.set_device(*MACHINES[machine])
    options = Options(cg_iters=3, precision=precision, fisher_fraction=fraction)
    assert_same_bits_in_every_order(EmulatedProblem, (33, 20), 500, options)


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
