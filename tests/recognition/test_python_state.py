"""Python state that a forward may read or keep: what of it is compared, and what is refused."""

from __future__ import annotations

import itertools
import random
import types
from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch
from recognizer_cases import LIMIT, Policy, made, observations, reason
from torch import Tensor

from trpo_fast.networks.network import Network
from trpo_fast.recognition.python_state import MOST_ITEMS, python_state
from trpo_fast.recognition.recognizer import network_of

pytestmark = [
    pytest.mark.reliability("python_state"),
    pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning"),
]


class TestForwardThatKeepsState:
    def test_a_counter(self) -> None:
        class Counting(Policy):
            calls = 0

            def mean(self, obs: Tensor) -> Tensor:
                self.calls += 1
                mean = super().mean(obs)
                return mean if self.calls < 50 else mean.sin()

        policy = made(Counting)
        assert reason(policy).endswith("Python state that it may read: 'calls'")
        assert "'calls'" in reason(policy)

    def test_what_a_first_call_sets_up_is_no_obstacle(self) -> None:
        class Lazy(Policy):
            def __init__(self) -> None:
                super().__init__()
                self.ready: Any = None
                self.hidden: Any = None

            def mean(self, obs: Tensor) -> Tensor:
                self.ready = self.ready or {"scale": 1.0}
                self.hidden = torch.tanh(self.first(obs))
                return self.last(self.hidden)

        policy = made(Lazy)
        for rows in (48, 31, 48):
            assert isinstance(network_of(policy, observations(rows)), Network)

    def test_a_tensor_kept_from_the_call_before(self) -> None:
        class Remembering(Policy):
            kept: Any = None

            def mean(self, obs: Tensor) -> Tensor:
                mean = super().mean(obs)
                looked = self.kept is not None and self.looks(self.kept)
                self.kept = mean.detach()
                return mean.sin() if looked and len(obs) > LIMIT else mean

            def looks(self, kept: Tensor) -> bool:
                return len(kept) == 3

        class Reading(Remembering):
            def looks(self, kept: Tensor) -> bool:
                return bool(kept.sum() > 1e9)

        for kind, words in (
            (Remembering, "neither a parameter nor a buffer"),
            (Reading, "reads values of a tensor into Python"),
        ):
            policy = made(kind)
            policy(observations())
            assert words in reason(policy)

    @pytest.mark.parametrize("draw", [random.random, np.random.random])
    def test_draws_of_other_generators(self, draw: Callable[[], float]) -> None:
        class Drawing(Policy):
            def mean(self, obs: Tensor) -> Tensor:
                mean = super().mean(obs)
                return mean if draw() < 2 else mean.sin()

        def states() -> str:
            return repr((random.getstate(), np.random.get_state(legacy=False)))  # noqa: NPY002

        before = states()
        assert "random numbers from Python's or NumPy's" in reason(made(Drawing))
        assert states() == before

    @pytest.mark.parametrize(
        "source", [random.Random(1), np.random.default_rng(1), np.random.RandomState(1)]
    )
    def test_draws_of_its_own_generator(self, source: Any) -> None:
        class Drawing(Policy):
            def __init__(self) -> None:
                super().__init__()
                self.source = source

            def mean(self, obs: Tensor) -> Tensor:
                mean = super().mean(obs)
                draw = self.source.random if hasattr(source, "random") else self.source.rand
                return mean if draw() < 2 else mean.sin()

        assert "'source'" in reason(made(Drawing))


class TestReading:
    @pytest.mark.parametrize(
        ("value", "words"),
        [
            (np.zeros(100_000), "100000 entries"),
            (np.array([object()]), "NumPy array of 1 entries"),
            (list(range(MOST_ITEMS)), "too many"),
            (itertools.count(), "itertools.count"),
            (iter([1]), "list_iterator"),
        ],
    )
    def test_what_cannot_be_compared_is_named(self, value: Any, words: str) -> None:
        policy = made(Policy)
        policy.extra = value
        assert words in reason(policy)
        assert "extra" in reason(policy) or words == "too many"

    def test_deep_nesting(self) -> None:
        deep: list[Any] = []
        for _ in range(3000):
            deep = [deep]
        policy = made(Policy)
        policy.extra = deep
        assert "attribute 'extra' of Policy" in reason(policy)

    @pytest.mark.parametrize(
        "value",
        [
            *(float("nan"), -0.0, 1, True, "a", b"a", None, 1j, (1, [2]), {1: {2}}),
            *(
                np.float32(1),
                type("S", (str,), {})("a"),
                np.arange(3),
                types.SimpleNamespace(a=1),
                len,
                np.add,
                Enum,
            ),
            *(torch.float32, torch.device("cpu"), bytearray(b"a"), torch.zeros(3), print),
        ],
        ids=repr,
    )
    def test_what_stays_is_equal_and_the_policy_fused(self, value: Any) -> None:
        policy = made(Policy)
        policy.extra = value
        policy.itself = [policy]
        states = [python_state(policy.modules()) for _ in range(2)]
        assert states[0] == states[1]
        assert isinstance(states[0], list)
        assert isinstance(network_of(policy, observations()), Network)
        other = made(Policy)
        other.extra, other.itself = "another", [other]
        assert python_state(other.modules()) != states[0]

    @pytest.mark.parametrize(("a", "b"), [(1, True), (0.0, -0.0), ([1], (1,)), (1, 1.0)])
    def test_equal_values_of_other_kinds_differ(self, a: Any, b: Any) -> None:
        policy = made(Policy)
        policy.extra = a
        first = python_state(policy.modules())
        policy.extra = b
        assert python_state(policy.modules()) != first
