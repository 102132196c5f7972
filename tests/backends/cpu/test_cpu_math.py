"""The native activations against torch in float64: error in units in the last place (ulp)."""

from __future__ import annotations

import mpmath  # which torch brings
import numpy as np
import pytest
import torch

from trpo_fast import _native
from trpo_fast.networks.activations import ACTIVATIONS

if _native.core is None:
    pytest.skip(f"no native module: {_native.load_error}", allow_module_level=True)

from trpo_fast import _core
from trpo_fast.backends.cpu import arguments as native_arguments

# Bounds on the value's error in ulp of the float32 result. Measured, the same with and without FMA:
# tanh 2.24, elu 0.83, silu 2.50, sigmoid 2.09.
MAX_ULP = {
    "identity": 0.0,
    "tanh": 2.5,
    "relu": 0.0,
    "leaky_relu": 0.5,
    "elu": 1.5,
    "silu": 3.0,
    "sigmoid": 2.5,
}


def all_floats(limit: float) -> torch.Tensor:
    """Every 997th float32 in [-limit, limit], of both signs, with the denormals and zeros."""
    top = int(np.float32(limit).view(np.int32))
    positive = np.arange(0, top, 997, dtype=np.int32).view(np.float32)
    values = np.concatenate([-positive[::-1], positive])
    pad = -len(values) % 16
    return torch.from_numpy(np.concatenate([values, np.zeros(pad, np.float32)]))


def activate(name: str, z: torch.Tensor, parameter: float) -> tuple[torch.Tensor, torch.Tensor]:
    value, slope = z.clone(), torch.empty_like(z)
    call = _core.activate_f32 if z.dtype is torch.float32 else _core.activate_f64
    call(
        native_arguments.ACTIVATION_CODES[name],
        parameter,
        native_arguments.tensor_arg(value, z.dtype),
        native_arguments.tensor_arg(slope, z.dtype),
    )
    return value, slope


def ulp_error(value: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest error in ulp of float32; for denormals, in ulp of the smallest normal number."""
    spacing = np.spacing(np.maximum(np.abs(exact.float().numpy()), np.finfo(np.float32).tiny))
    return float(((value.double() - exact).abs() / torch.from_numpy(spacing).double()).max())


@pytest.mark.parametrize("name", MAX_ULP)
def test_vector_activation_error_over_the_float_range(name: str) -> None:
    activation = ACTIVATIONS[name]
    z = all_floats(80.0)
    value, slope = activate(name, z, activation.parameter)
    parameter = float(np.float32(activation.parameter))  # what a float32 kernel is given
    exact = activation.function(z.double(), parameter)
    assert ulp_error(value, exact) <= MAX_ULP[name]
    torch.testing.assert_close(
        slope.double(),
        activation.derivative(z.double(), activation.parameter),
        rtol=2e-6,
        atol=2e-7,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_torchs(name: str, dtype: torch.dtype) -> None:
    activation = ACTIVATIONS[name]
    z = torch.linspace(-30, 30, 4096, dtype=torch.float64).to(dtype)
    value, slope = activate(name, z, activation.parameter)
    rtol, atol = (3e-6, 1e-6) if dtype is torch.float32 else (1e-13, 1e-14)
    exact = z.double()
    parameter = activation.parameter
    torch.testing.assert_close(
        value.double(), activation.function(exact, parameter), rtol=rtol, atol=atol
    )
    torch.testing.assert_close(
        slope.double(), activation.derivative(exact, parameter), rtol=rtol, atol=atol
    )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_special_values(name: str) -> None:
    z = torch.zeros(16)
    z[:5] = torch.tensor([float("inf"), float("-inf"), float("nan"), 1e30, -1e30])
    value, _ = activate(name, z, ACTIVATIONS[name].parameter)
    expected = ACTIVATIONS[name].function(z, ACTIVATIONS[name].parameter)
    # torch gives NaN for -inf where the textbook limit is 0 (silu, gelu); either is accepted there.
    either = torch.isnan(expected) & ~torch.isnan(z)
    torch.testing.assert_close(value[~either], expected[~either], equal_nan=True)


@pytest.mark.parametrize("which", ["z", "slope"])
def test_strided_arrays_are_refused(which: str) -> None:
    arrays = {"z": torch.zeros(16), "slope": torch.zeros(16)}
    arrays[which] = torch.zeros(32)[::2]
    z, slope = (native_arguments.tensor_arg(arrays[name], torch.float32) for name in arrays)
    with pytest.raises(ValueError, match=f"{which} must be contiguous"):
        _core.activate_f32(native_arguments.ACTIVATION_CODES["tanh"], 0.0, z, slope)


def test_tensor_arg_refuses_another_dtype() -> None:
    with pytest.raises(TypeError, match=r"float64.*reference"):
        native_arguments.tensor_arg(torch.zeros(3, dtype=torch.float64), torch.float32)


@pytest.mark.parametrize("x", [1.0, 1.0001, 1.5, 2.0, 3.7, 9.99, 10.0, 25.0, 1e3, 1e6])
def test_log_gamma_and_its_derivatives(x: float) -> None:
    # torch's trigamma is off by up to 5e-10 of itself, mpmath's by nothing.
    expected = [mpmath.loggamma(x), *(mpmath.polygamma(n, x) for n in range(4))]
    found = _core.gamma_values(x)
    assert found == pytest.approx([float(value) for value in expected], rel=2e-13, abs=1e-14)
    at = torch.tensor(x, dtype=torch.float64)
    torchs = [torch.lgamma(at), torch.digamma(at), torch.special.polygamma(1, at)]
    assert found[:3] == pytest.approx([float(value) for value in torchs], rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("x", [1.0, 1.5, 30.0, 1e4])
def test_the_divergence_of_log_gamma_loses_nothing_near_0(x: float) -> None:
    # By Taylor's integral remainder: the mean of trigamma between, weighted by what is left.
    nodes, weights = np.polynomial.legendre.leggauss(24)
    t, w = torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
    for step in (1e-12, 1e-7, 9e-4, 1.1e-3, 0.05, -1e-9, -9e-4, -0.05):
        y = x * (1 + step)
        d = y - x
        found = [float(mpmath.polygamma(1, at)) for at in (x + t * d).tolist()]
        trigamma = torch.tensor(found, dtype=torch.float64)
        expected = d * d * float((w * (1 - t) * trigamma).sum())
        assert _core.log_gamma_divergence(x, y) == pytest.approx(expected, rel=1e-8, abs=0)
