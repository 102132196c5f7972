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

pytestmark = [
    pytest.mark.reliability("long_native_call"),
    pytest.mark.skipif(_native.core is None, reason="the native module is not built"),
]

ROWS, WIDTH = 12_000, 1024
AFTER = 0.3  # seconds until the signal; one gradient takes longer on one thread


class InterruptedByTestError(Exception):
    """What the handler raises."""


@pytest.fixture
def policy() -> MlpPolicy:
    return MlpPolicy(
        spaces.Box(-1, 1, (17,)), spaces.Box(-1, 1, (6,)), (WIDTH, WIDTH), ortho_init=False
    )


def answer(call: Callable[[], Any]) -> float:
    """CPU seconds from a signal within a call to the call's end, which the signal must bring."""

    def handler(*_: Any) -> None:
        raise InterruptedByTestError

    before, threads = signal.signal(signal.SIGPROF, handler), torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, AFTER)  # of this process's CPU time
    try:
        with pytest.raises(InterruptedByTestError):
            call()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        torch.set_num_threads(threads)
    return time.process_time() - start - AFTER


def seconds_of(call: Callable[[], Any]) -> float:
    """CPU seconds of a call that nothing interrupts, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.process_time()
    try:
        call()
    finally:
        torch.set_num_threads(threads)
    return time.process_time() - start


def product(policy: MlpPolicy, obs: torch.Tensor) -> torch.Tensor:
    v = torch.ones(sum(p.numel() for p in policy.parameters()), dtype=obs.dtype)
    return fisher_vector_product(policy, obs, v, backend="cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_update(policy: MlpPolicy, dtype: torch.dtype) -> None:
    policy = policy.to(dtype)
    obs = torch.randn(ROWS, 17, dtype=dtype)
    actions, advantages = torch.randn(ROWS, 6, dtype=dtype), torch.randn(ROWS, dtype=dtype)
    before = bits(policy)
    optimizer = TRPOOptimizer(policy, backend="cpu", preconditioner="none", precision="fp32")
    answered = answer(lambda: optimizer.step(obs=obs, actions=actions, advantages=advantages))
    assert answered < seconds_of(lambda: product(policy, obs))
    assert same_bits(policy, before)


def test_a_fisher_product(policy: MlpPolicy) -> None:
    obs = torch.randn(4 * ROWS, 17)
    answered = answer(lambda: product(policy, obs))
    assert answered < seconds_of(lambda: product(policy, obs[:ROWS]))


def test_a_forward_pass() -> None:
    value = ValueFunction(spaces.Box(-1, 1, (17,)), (WIDTH, WIDTH), ortho_init=False)
    layers = layers_of(value)
    assert not isinstance(layers, str)
    forward, x = forward_function(layers), torch.randn(5 * ROWS, 17)
    expected = forward(x[:2000])
    answered = answer(lambda: [forward(x) for _ in range(50)])
    assert answered < seconds_of(lambda: forward(x))
    assert torch.equal(forward(x)[:2000], expected)
