"""The native forward pass against torch: widths, activations, strides, rows."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from itertools import pairwise

import pytest
import torch
from patience import PATIENCE
from torch import Tensor

from trpo_fast import _native
from trpo_fast.backends.forward import forward_function, mlp_forward
from trpo_fast.networks.activations import ACTIVATIONS
from trpo_fast.networks.network import Layer, forward

if _native.core is None:
    pytest.skip(f"no native module: {_native.load_error}", allow_module_level=True)

from trpo_fast import _core
from trpo_fast.backends.cpu import forward as cpu

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-13}


def layers(
    widths: tuple[int, ...], activation: str, dtype: torch.dtype, *, bias: bool = True
) -> tuple[Layer, ...]:
    generator = torch.Generator().manual_seed(sum(widths))
    made = []
    for i, (fan_in, out) in enumerate(pairwise(widths)):
        weight = torch.randn(out, fan_in, generator=generator, dtype=dtype) / fan_in**0.5
        b = torch.randn(out, generator=generator, dtype=dtype) if bias else None
        last = i == len(widths) - 2
        name = "identity" if last else activation
        made.append(Layer(weight, b, name, ACTIVATIONS[name].parameter))
    return tuple(made)


def assert_equals_torch(net: tuple[Layer, ...], x: torch.Tensor) -> None:
    out = cpu.mlp_forward(net, x)
    exact_net = [
        Layer(
            layer.weight.double(),
            None if layer.bias is None else layer.bias.double(),
            layer.activation,
            layer.parameter,
        )
        for layer in net
    ]
    exact = forward(exact_net, x.double())
    scale = exact.abs().max().clamp(min=1)
    assert (out.double() - exact).abs().max() <= TOLERANCE[x.dtype] * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "widths",
    [(1, 1), (3, 1, 3), (17, 64, 64, 6), (65, 17, 348, 1), (348, 256, 17), (5, 130, 200, 65)],
)
@pytest.mark.parametrize("rows", [1, 5, 6, 48, 49, 131])
def test_forward_equals_torch(widths: tuple[int, ...], rows: int, dtype: torch.dtype) -> None:
    x = torch.randn(rows, widths[0], dtype=dtype, generator=torch.Generator().manual_seed(rows))
    assert_equals_torch(layers(widths, "tanh", dtype), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str, dtype: torch.dtype) -> None:
    x = torch.randn(50, 7, dtype=dtype, generator=torch.Generator().manual_seed(1))
    assert_equals_torch(layers((7, 33, 20, 4), activation, dtype), x)


def test_no_bias() -> None:
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(1))
    assert_equals_torch(layers((7, 33, 4), "relu", torch.float32, bias=False), x)


def test_any_strides() -> None:
    net = layers((7, 33, 4), "tanh", torch.float32)
    transposed = tuple(
        Layer(layer.weight.t().contiguous().t(), layer.bias, layer.activation) for layer in net
    )
    wide = torch.randn(60, 21, generator=torch.Generator().manual_seed(2))
    for x in (wide[::2, 3:10], wide[:, ::3], wide.t()[:7].t(), wide[:1, :7].expand(9, 7)):
        assert torch.equal(cpu.mlp_forward(transposed, x), cpu.mlp_forward(net, x.contiguous()))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    net = layers((17, 64, 64, 6), "tanh", torch.float32)
    x = torch.randn(100, 17, generator=torch.Generator().manual_seed(3))
    whole = cpu.mlp_forward(net, x)
    x[50] = float("nan")
    poisoned = cpu.mlp_forward(net, x)
    rows = torch.arange(100) != 50
    assert torch.equal(whole[rows], poisoned[rows])
    assert poisoned[50].isnan().all()


def test_no_rows() -> None:
    assert cpu.mlp_forward(layers((3, 4, 2), "tanh", torch.float32), torch.zeros(0, 3)).shape == (
        0,
        2,
    )


def test_lazily_negated_inputs_keep_their_sign() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(9, 3, dtype=torch.complex64, generator=generator).conj().imag
    assert x.is_neg()
    net = layers((3, 4, 2), "tanh", torch.float32)
    assert torch.equal(cpu.mlp_forward(net, x), cpu.mlp_forward(net, x.resolve_neg()))
    with pytest.raises(TypeError, match="resolve_neg"):
        cpu.mlp_forward((Layer(x, None, "identity"),), torch.zeros(5, 3))


@pytest.mark.parametrize("widths", [(0, 3, 2), (3, 0, 2), (3, 2, 0)])
def test_layers_without_inputs_or_outputs(widths: tuple[int, ...]) -> None:
    net = tuple(
        Layer(torch.ones(out, fan_in), torch.ones(out), "identity")
        for fan_in, out in pairwise(widths)
    )
    x = torch.ones(5, widths[0])
    assert torch.equal(cpu.mlp_forward(net, x), forward(net, x))


def test_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x has size 4 in dimension 1, expected 3"):
        cpu.mlp_forward(layers((3, 4, 2), "tanh", torch.float32), torch.zeros(5, 4))


def test_layers_that_do_not_fit_are_refused() -> None:
    net = layers((3, 4, 2), "tanh", torch.float32)
    with pytest.raises(ValueError, match=r"weight has size 3 in dimension 1, expected 4"):
        cpu.PackedForward((net[0], net[0]))


def test_the_door_takes_the_native_path() -> None:
    net = layers((3, 4, 2), "tanh", torch.float32)
    assert isinstance(forward_function(net), cpu.PackedForward)
    x = torch.randn(5, 3)
    torch.testing.assert_close(forward_function(net)(x), forward(net, x))


def test_packed_weights_are_those_of_their_time() -> None:
    net = layers((3, 4, 2), "tanh", torch.float32)
    x = torch.randn(5, 3)
    packed = cpu.PackedForward(net)
    before = packed(x)
    net[0].weight.add_(1)
    assert torch.equal(packed(x), before)
    torch.testing.assert_close(mlp_forward(net, x), forward(net, x))


def test_rows_are_the_same_for_any_number_of_threads() -> None:
    net = layers((17, 64, 64, 6), "tanh", torch.float32)
    x = torch.randn(1000, 17, generator=torch.Generator().manual_seed(4))
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(cpu.mlp_forward(net, x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def run(code: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("isa", _core.available_isas())
def test_forcing_an_instruction_set(isa: str) -> None:
    code = (
        "import torch; from trpo_fast import _core;"
        "from trpo_fast.backends.cpu import forward as cpu;"
        "from trpo_fast.networks.network import Layer;"
        "net=[Layer(torch.ones(3, 17), None, 'tanh')]; x=torch.full((5, 17), 0.01);"
        "expected=torch.tanh(x.sum(1, keepdim=True)).expand(5, 3);"
        "torch.testing.assert_close(cpu.mlp_forward(net, x), expected);"
        "print(_core.isa())"
    )
    env = {**os.environ, "TRPO_FAST_ISA": isa}
    done = run(code, env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == isa


def test_unknown_instruction_set_is_an_error() -> None:
    code = "from trpo_fast import _core; _core.isa()"
    env = {**os.environ, "TRPO_FAST_ISA": "sse9"}
    done = run(code, env)
    assert done.returncode == 1
    assert 'TRPO_FAST_ISA is "sse9"' in done.stderr
    assert "baseline" in done.stderr


def test_a_second_thread_is_told_to_make_its_own() -> None:
    packed = cpu.PackedForward(layers((64, 256, 64), "tanh", torch.float32))
    refused: list[str] = []
    deadline = time.monotonic() + PATIENCE

    def call(x: Tensor) -> None:
        """Until the two have met: when, is the system's choice."""
        while not refused and time.monotonic() < deadline:
            try:
                packed(x)
            except RuntimeError as error:
                refused.append(str(error))

    few = torch.zeros(1, 64)
    thread = threading.Thread(target=call, args=(torch.zeros(20_000, 64),))
    thread.start()
    call(few)
    thread.join()
    assert refused
    assert "at work in another thread" in refused[0]
    assert torch.isfinite(packed(few)).all()
