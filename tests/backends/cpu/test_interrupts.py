"""Ctrl-C within one native call: answered within a product, and nothing is changed."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gymnasium import spaces
from update_cases import bits, same_bits

from trpo_fast import MlpPolicy, TRPOOptimizer, _native, fisher_vector_product
from trpo_fast.backends.forward import forward_function
from trpo_fast.networks.mlp import ValueFunction
from trpo_fast.recognition.recognizer import layers_of

pytestmark = pytest.mark.skipif(_native.core is None, reason="the native module is not built")

ROWS, WIDTH = 12_000, 1024
AFTER, ANSWERED = 0.3, 1.5  # seconds; one gradient takes several on one thread


class InterruptedByTestError(Exception):
    """What the handler raises."""


@pytest.fixture
def policy() -> MlpPolicy:
    return MlpPolicy(
        spaces.Box(-1, 1, (17,)), spaces.Box(-1, 1, (6,)), (WIDTH, WIDTH), ortho_init=False
    )


def answer(call: Callable[[], Any]) -> float:
    """Seconds from a signal during a call to the end of the call, which the signal must end."""
    sent = 0.0

    def handler(*_: Any) -> None:
        nonlocal sent
        sent = sent or time.monotonic()
        raise InterruptedByTestError

    before, threads = signal.signal(signal.SIGALRM, handler), torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, AFTER)
    try:
        with pytest.raises(InterruptedByTestError):
            call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        torch.set_num_threads(threads)
    return time.monotonic() - start - AFTER


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_update(policy: MlpPolicy, dtype: torch.dtype) -> None:
    policy = policy.to(dtype)
    obs = torch.randn(ROWS, 17, dtype=dtype)
    actions, advantages = torch.randn(ROWS, 6, dtype=dtype), torch.randn(ROWS, dtype=dtype)
    before = bits(policy)
    optimizer = TRPOOptimizer(policy, backend="cpu", preconditioner="none", precision="fp32")
    step = lambda: optimizer.step(obs=obs, actions=actions, advantages=advantages)  # noqa: E731
    assert answer(step) < ANSWERED
    assert same_bits(policy, before)


def test_a_fisher_product(policy: MlpPolicy) -> None:
    v = torch.ones(sum(p.numel() for p in policy.parameters()))
    obs = torch.randn(4 * ROWS, 17)
    assert answer(lambda: fisher_vector_product(policy, obs, v, backend="cpu")) < ANSWERED


def test_a_forward_pass() -> None:
    value = ValueFunction(spaces.Box(-1, 1, (17,)), (WIDTH, WIDTH), ortho_init=False)
    layers = layers_of(value)
    assert not isinstance(layers, str)
    forward, x = forward_function(layers), torch.randn(5 * ROWS, 17)
    expected = forward(x[:2000])
    assert answer(lambda: [forward(x) for _ in range(50)]) < ANSWERED
    assert torch.equal(forward(x)[:2000], expected)
