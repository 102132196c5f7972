"""Flat vectors and the one-pass check that inputs are finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trpo_fast import _native
from trpo_fast.base.tensors import all_finite, finite_rows, norm
from trpo_fast.update.parameters import FlatParameters

BAD = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 7, 4096, 4097, 10_000])
def test_all_finite_sees_every_position(dtype: torch.dtype, size: int) -> None:
    greatest = torch.finfo(dtype).max
    x = torch.full((size,), greatest, dtype=dtype)  # the sum overflows, no entry does
    assert all_finite(x)
    for place in {0, size // 2, size - 1}:
        for bad in BAD:
            spoilt = x.clone()
            spoilt[place] = bad
            assert not all_finite(spoilt)


@pytest.mark.parametrize("bad", BAD)
def test_all_finite_reads_views_as_they_are(bad: float) -> None:
    x = torch.zeros(6, 8)
    x[:, 1::2] = bad
    assert all_finite(x[:, ::2])
    assert not all_finite(x[:, 1:].t())
    assert not all_finite(torch.tensor([1.0, bad]).expand(3, 2))
    assert all_finite(torch.empty(0))
    assert all_finite(torch.tensor([1, 2**62]))


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("shape", [(3,), (4, 1), (3, 5, 17)])
def test_finite_rows_asks_of_one_row_what_it_holds_now(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], native: bool
) -> None:
    if not native:
        monkeypatch.setattr(_native, "core", None)
    array = np.full(shape, np.finfo(np.float32).max, np.float32)
    finite = finite_rows(array)
    for bad in BAD:
        array[1] = 0
        assert [finite(i) for i in range(3)] == [True] * 3
        array.reshape(shape[0], -1)[1, -1] = bad
        assert [finite(i) for i in range(3)] == [True, False, True]


@pytest.mark.parametrize("native", [True, False])
def test_finite_rows_of_float64_speaks_of_what_float32_holds(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    if not native:
        monkeypatch.setattr(_native, "core", None)
    greatest = float(np.finfo(np.float32).max)
    edge = greatest + 2.0**103  # halfway to 2^128: rounds to even, up
    values = [greatest, -greatest, np.nextafter(edge, 0), edge, -edge, 1e39, *BAD]
    array = np.zeros((len(values), 5000))
    array[:, 4999] = values
    finite = finite_rows(array)
    with np.errstate(over="ignore"):
        expected = np.isfinite(np.array(values).astype(np.float32)).tolist()
        assert [finite(i) for i in range(len(values))] == expected
    assert expected[:5] == [True, True, True, False, False]


def test_finite_rows_reads_a_view_as_it_is() -> None:
    wide = np.full((3, 4), np.nan, np.float32)
    wide[:, ::2] = 1
    finite = finite_rows(wide[:, ::2])
    assert finite(0)
    wide[1, 2] = np.inf
    assert not finite(1)


@pytest.mark.parametrize("count", [1, 3])
def test_reading_gives_a_copy_in_logical_order(count: int) -> None:
    tensors = [torch.nn.Parameter(torch.randn(3, 4).t()) for _ in range(count)]
    parameters = FlatParameters(tensors, [str(i) for i in range(count)])
    wanted = torch.cat([t.detach().flatten() for t in tensors])
    assert torch.equal(parameters.read(), wanted)
    parameters.read().zero_()
    assert torch.equal(parameters.read(), wanted)
    assert torch.equal(parameters.start, wanted)


@pytest.mark.parametrize("count", [1, 3])
def test_one_contiguous_parameter_is_not_aliased(count: int) -> None:
    tensors = [torch.nn.Parameter(torch.randn(5)) for _ in range(count)]
    parameters = FlatParameters(tensors, [str(i) for i in range(count)])
    start = parameters.start.clone()
    parameters.write(torch.zeros(5 * count))
    assert torch.equal(parameters.start, start)
    assert not any(t.any() for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("turned", [False, True])
def test_writing_touches_the_used_parameters_alone(dtype: torch.dtype, turned: bool) -> None:
    shapes = [(3, 4), (), (5,), (0,), (2, 2)]
    tensors = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    if turned:
        tensors[0] = torch.nn.Parameter(torch.randn(4, 3, dtype=dtype).t())
    parameters = FlatParameters(tensors, [str(i) for i in range(len(tensors))])
    stranger = torch.randn(7)
    parameters.use([*tensors[:2], stranger, *tensors[3:]])
    kept = tensors[2].detach().clone()
    theta = torch.randn(22, dtype=dtype)
    parameters.write(theta)
    assert [parameters.offset_of(t) for t in tensors] == [0, 12, 13, 18, 18]
    assert parameters.count == 22
    assert parameters.offset_of(stranger) is None
    assert torch.equal(tensors[0].detach().flatten(), theta[:12])
    assert torch.equal(tensors[1].detach(), theta[12])
    assert torch.equal(tensors[2].detach(), kept)
    assert torch.equal(tensors[4].detach().flatten(), theta[18:])


def test_a_graph_from_before_a_write_is_refused() -> None:
    weight = torch.nn.Parameter(torch.randn(3))
    unused = torch.nn.Parameter(torch.randn(3))
    parameters = FlatParameters([weight, unused], ["weight", "unused"])
    parameters.used[1] = False
    before = weight.square().sum()
    unaffected = unused.square().sum()
    parameters.write(torch.zeros(6))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        before.backward()
    unaffected.backward()
    assert unused.grad is not None


def test_a_vector_of_a_wrong_size_is_refused_before_anything_is_written() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    parameters = FlatParameters([weight], ["weight"])
    with pytest.raises(RuntimeError):
        parameters.write(torch.zeros(2))
    assert torch.equal(weight.detach(), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_norm_of_any_scale(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    for unit in (info.tiny, info.tiny * 2**-20, 1.0, info.max / 8):
        found = norm(torch.tensor([3.0, -4.0], dtype=dtype) * unit)
        assert found == pytest.approx(5 * unit, rel=1e-6, abs=0)
    assert norm(torch.zeros(3, dtype=dtype)) == 0
    assert norm(torch.zeros(0, dtype=dtype)) == 0
    assert norm(torch.tensor([0.0, -math.inf], dtype=dtype)) == math.inf
    assert math.isnan(norm(torch.tensor([math.inf, math.nan], dtype=dtype)))
