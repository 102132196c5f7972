"""Samples drawn without building a distribution follow that distribution."""

from __future__ import annotations

import math

import pytest
import torch

from trpo_fast.network import Head, Network, distribution
from trpo_fast.sampling import draw

N = 200_000


def within(observed: torch.Tensor, expected: torch.Tensor, deviation: torch.Tensor) -> None:
    """Means of N draws lie within 5 standard errors (the seed is fixed)."""
    error = (observed - expected).abs() / (deviation / math.sqrt(N))
    assert float(error.max()) < 5


@pytest.mark.parametrize("kind", ["gaussian", "gaussian_state_std"])
def test_gaussian_moments(kind: str) -> None:
    torch.manual_seed(0)
    mean, log_std = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([-1.0, 0.5, 2.0])
    if kind == "gaussian":
        network, outputs = Network((), Head(kind, 3), log_std), mean.expand(N, 3)
    else:
        network, outputs = Network((), Head(kind, 3)), torch.cat([mean, log_std]).expand(N, 6)
    actions = draw(network, outputs, None)
    assert actions.shape == (N, 3)
    std = log_std.exp()
    within(actions.mean(0), mean, std)
    within((actions - mean).square().mean(0), std**2, math.sqrt(2) * std**2)
    noise = (actions - mean) / std
    within((noise[:, 0] * noise[:, 1]).mean(), torch.tensor(0.0), torch.tensor(1.0))
    reference = distribution(network, outputs[:1], None)
    assert reference.log_prob(actions[:1]).isfinite().all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_categorical_frequencies(masked: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 2.0, -1.0, 1.0, -200.0], dtype=dtype)
    mask = torch.tensor([True, False, True, True, False]) if masked else None
    network = Network((), Head("categorical", 0, (5,)))
    rows = None if mask is None else mask.expand(N, 5)
    actions = draw(network, logits.expand(N, 5), rows)
    assert actions.dtype == torch.int64
    reference = distribution(network, logits[None], None if mask is None else mask[None])
    probabilities = reference.probs[0]
    frequencies = torch.bincount(actions, minlength=5) / N
    assert (frequencies[probabilities == 0] == 0).all()
    some = probabilities > 1e-30
    deviation = (probabilities * (1 - probabilities)).sqrt()
    within(frequencies[some], probabilities[some], deviation[some])


def test_extreme_logits_and_a_single_choice_are_certain() -> None:
    network = Network((), Head("categorical", 0, (3,)))
    logits = torch.tensor([[1e4, -1e4, 0.0]]).expand(1000, 3)
    assert (draw(network, logits, None) == 0).all()
    only = torch.tensor([[False, True, False]]).expand(1000, 3)
    assert (draw(network, logits, only) == 1).all()


@pytest.mark.parametrize(
    "head", [Head("multi_categorical", 2, (3, 2)), Head("bernoulli", 4)], ids=lambda h: h.kind
)
def test_other_heads_are_sampled_by_their_distribution(head: Head) -> None:
    outputs = torch.randn(50, 5 if head.nvec else 4)
    network = Network((), head)
    torch.manual_seed(1)
    expected = distribution(network, outputs, None).sample()
    torch.manual_seed(1)
    assert torch.equal(draw(network, outputs, None), expected)
