"""The policy's forward pass: the native kernel beside torch, from one rollout row to a batch.

``make bench`` times them; with ``--benchmark-disable`` each runs once and only the answer counts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from trpo_fast import MlpPolicy
from trpo_fast.backends.forward import mlp_forward
from trpo_fast.networks import network
from trpo_fast.networks.network import Layer
from trpo_fast.recognition.recognizer import network_of

# (observations, actions, hidden sizes): HalfCheetah-v5 and Humanoid-v5.
SHAPES = {
    "halfcheetah-64x64": (17, 6, (64, 64)),
    "humanoid-256x256": (348, 17, (256, 256)),
}
FORWARDS: dict[str, Callable[[tuple[Layer, ...], Tensor], Tensor]] = {
    "trpo_fast": mlp_forward,
    "torch": network.forward,
}


def _problem(shape: str, rows: int) -> tuple[tuple[Layer, ...], Tensor]:
    width, actions, hidden = SHAPES[shape]
    torch.manual_seed(0)
    policy = MlpPolicy(
        spaces.Box(-np.inf, np.inf, (width,)), spaces.Box(-1.0, 1.0, (actions,)), hidden
    )
    recognised = network_of(policy)
    assert isinstance(recognised, network.Network), recognised
    return recognised.layers, torch.randn(rows, width)


@pytest.mark.parametrize("implementation", FORWARDS)
@pytest.mark.parametrize("rows", [1, 8, 64, 4096])
@pytest.mark.parametrize("shape", SHAPES)
def test_mlp_forward(benchmark, shape: str, rows: int, implementation: str) -> None:  # type: ignore[no-untyped-def]
    layers, x = _problem(shape, rows)
    benchmark.group = f"mlp_forward {shape}, {rows} rows"
    benchmark.extra_info["threads"] = torch.get_num_threads()
    with torch.no_grad():
        out = benchmark(FORWARDS[implementation], layers, x)
        wide = [
            Layer(
                layer.weight.double(),
                None if layer.bias is None else layer.bias.double(),
                layer.activation,
                layer.parameter,
            )
            for layer in layers
        ]
        exact = network.forward(wide, x.double())
    # float32: a few units in the last place of sums over 348 terms of order 1.
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
