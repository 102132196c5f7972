"""Functions that depend on more than values: rows, Python state, modes. No step may miss it."""

from __future__ import annotations

import copy
import functools
import itertools
import os
import random
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from recognizer_cases import (
    ACTIONS,
    WIDTH,
    Policy,
    Wrapped2,
    data_of,
    flat,
    made,
    observations,
    reason,
)
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from trpo_fast import MlpPolicy, TRPOOptimizer, fisher_vector_product
from trpo_fast.networks.network import Network
from trpo_fast.recognition.python_state import MOST_ITEMS, global_modes, python_state
from trpo_fast.recognition.recognizer import CHECKED_EACH, layers_of, network_of

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")

LIMIT = 16  # rows beyond which the policies below may be another function
SWITCH = {"on": False}


class Switched(Policy):
    """Another function of a large batch once it is switched on; a few rows never show it."""

    def on(self) -> bool:
        return False

    def switch(self) -> None:
        """Switch it on."""

    def mean(self, obs: Tensor) -> Tensor:
        mean = super().mean(obs)
        return 3.0 * mean.sin() if len(obs) > LIMIT and self.on() else mean


SWITCHED: dict[str, type[Switched]] = {}


def switched(kind: type[Switched]) -> type[Switched]:
    SWITCHED[kind.__name__] = kind
    return kind


@switched
class ByAttribute(Switched):
    flag: Any = False

    def on(self) -> bool:
        return bool(self.flag)

    def switch(self) -> None:
        self.flag = True


@switched
class ByClassAttribute(Switched):
    flag = False

    def on(self) -> bool:
        return self.flag

    def switch(self) -> None:
        type(self).flag = True


@switched
class ByGlobal(Switched):
    def on(self) -> bool:
        return SWITCH["on"]

    def switch(self) -> None:
        SWITCH["on"] = True


def global_switch() -> bool:
    return SWITCH["on"]


@switched
class ByGlobalFunction(ByGlobal):
    def on(self) -> bool:
        return any(global_switch() for _ in range(1))


@switched
class ByNested(Switched):
    def __init__(self) -> None:
        super().__init__()
        self.config = {"a": [1, ({"flag": False}, 2.0)]}

    def on(self) -> bool:
        return bool(self.config["a"][1][0]["flag"])  # type: ignore[index]

    def switch(self) -> None:
        self.config["a"][1][0]["flag"] = True  # type: ignore[index]


@dataclass
class Settings:
    flags: set[str] = field(default_factory=set)


@switched
class ByObject(Switched):
    def __init__(self) -> None:
        super().__init__()
        self.settings = Settings()

    def on(self) -> bool:
        return "on" in self.settings.flags

    def switch(self) -> None:
        self.settings.flags.add("on")


class Slots:
    __slots__ = ("flag",)


@switched
class BySlots(Switched):
    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots()
        self.slots.flag = 0

    def on(self) -> bool:
        return bool(self.slots.flag)

    def switch(self) -> None:
        self.slots.flag = 1


@switched
class ByArray(Switched):
    def __init__(self) -> None:
        super().__init__()
        self.array = np.zeros(3)

    def on(self) -> bool:
        return bool(self.array[1] > 0)

    def switch(self) -> None:
        self.array[1] = 1


@switched
class BySubmodule(Switched):
    def on(self) -> bool:
        return self.last.out_features > 99

    def switch(self) -> None:
        self.last.out_features = 100


@switched
class ByHiddenModule(Switched):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Dropout(0.1)]  # in no module's list of children

    def on(self) -> bool:
        return self.hidden[0].p > 0.5

    def switch(self) -> None:
        self.hidden[0].p = 0.9


@switched
class ByClosure(Switched):
    def __init__(self) -> None:
        super().__init__()
        flag = False

        def switch() -> None:
            nonlocal flag
            flag = True

        self.look, self.turn = (lambda: flag), switch

    def on(self) -> bool:
        return self.look()

    def switch(self) -> None:
        self.turn()


@switched
class ByPartial(Switched):
    def __init__(self) -> None:
        super().__init__()
        self.cell = [False]
        self.look = functools.partial(lambda cell: cell[0], self.cell)

    def on(self) -> bool:
        return self.look()

    def switch(self) -> None:
        self.cell[0] = True


@switched
class ByDefault(Switched):
    def on(self, flags: list[bool] = [False]) -> bool:  # noqa: B006
        return flags[0]

    def switch(self) -> None:
        self.on.__func__.__defaults__[0][0] = True  # type: ignore[attr-defined]


@switched
class ByMode(Switched):
    def on(self) -> bool:
        return torch.get_default_dtype() is torch.float64

    def switch(self) -> None:
        torch.set_default_dtype(torch.float64)


@switched
class ByPrecision(Switched):
    def on(self) -> bool:
        return torch.are_deterministic_algorithms_enabled()

    def switch(self) -> None:
        torch.use_deterministic_algorithms(True)


@pytest.fixture(autouse=True)
def put_back() -> Any:
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(False)
    SWITCH["on"] = ByClassAttribute.flag = False
    ByDefault.on.__defaults__[0][0] = False  # type: ignore[index]


def measured_kl(policy: nn.Module, step: Callable[[], Any], obs: Tensor) -> float:
    """What torch measures of a step."""
    with torch.no_grad():
        old = policy(obs)
        step()
        return float(kl_divergence(old, policy(obs)).mean())


@pytest.mark.parametrize("name", SWITCHED)
def test_a_switch_that_only_large_batches_feel(name: str) -> None:
    policy = made(SWITCHED[name])
    obs = observations(200)
    opt = TRPOOptimizer(policy)
    opt.step(**data_of(policy, obs))
    assert opt.path == "fused", opt.path_reason
    opt.step(**data_of(policy, obs))
    assert opt.path == "fused", opt.path_reason
    policy.switch()
    data = data_of(policy, obs)
    kl = measured_kl(policy, lambda: opt.step(**data), obs)
    assert opt.path == "generic"
    assert "applies sin" in opt.path_reason
    assert opt.last_result is not None
    assert opt.last_result.accepted
    assert opt.last_result.kl == pytest.approx(kl, rel=1e-6)
    assert kl <= 0.01


class TestRows:
    class Large(Policy):
        def mean(self, obs: Tensor) -> Tensor:
            mean = super().mean(obs)
            return 3.0 * mean.sin() if obs.size(0) > LIMIT else mean

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_larger_batch_is_another_function(self, dtype: torch.dtype) -> None:
        policy = made(self.Large, dtype)
        opt = TRPOOptimizer(policy)
        opt.step(**data_of(policy, observations(LIMIT, dtype)))
        assert opt.path == "fused"
        obs = observations(200, dtype)
        data = data_of(policy, obs)
        kl = measured_kl(policy, lambda: opt.step(**data), obs)
        assert (opt.path, opt.path_reason) == (
            "generic",
            "Large: forward applies sin to the output of a layer",
        )
        assert opt.last_result is not None
        assert opt.last_result.kl == pytest.approx(kl, rel=1e-3)

    def test_a_gradient_that_stops_at_many_rows(self) -> None:
        class Stopping(Policy):
            def mean(self, obs: Tensor) -> Tensor:
                hidden = torch.tanh(self.first(obs))
                return self.last(hidden.detach() if len(obs) > LIMIT else hidden)

        policy = made(Stopping)
        assert isinstance(network_of(policy, observations(LIMIT)), Network)
        assert "detach" in reason(policy, observations(LIMIT + 1))

    def test_another_layout_of_the_same_rows(self) -> None:
        class Strided(Policy):
            def mean(self, obs: Tensor) -> Tensor:
                mean = super().mean(obs)
                return mean if obs.is_contiguous() or len(obs) < LIMIT else mean.sin()

        policy, obs = made(Strided), observations(40)
        assert isinstance(network_of(policy, obs), Network)
        assert "applies sin" in reason(policy, obs.T.contiguous().T)

    def test_a_value_function(self) -> None:
        class Value(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Linear(WIDTH, 1)

            def forward(self, obs: Tensor) -> Tensor:
                values = self.net(obs)
                return values.cos() if obs.numel() > LIMIT * WIDTH else values

        value = Value().double()
        assert not isinstance(layers_of(value, observations(LIMIT)), str)
        assert "applies cos" in str(layers_of(value, observations(LIMIT + 1)))

    def test_fisher_products(self) -> None:
        policy = made(self.Large)
        v = torch.randn(len(flat(policy)), dtype=torch.float64)
        for rows in (LIMIT, LIMIT + 1):
            obs = observations(rows)
            generic = fisher_vector_product(Wrapped2(policy), obs, v)
            assert torch.allclose(fisher_vector_product(policy, obs, v), generic, rtol=1e-9)

    def test_more_rows_than_one_call_of_the_generic_path_sees(self) -> None:
        class PerCall(Policy):
            def mean(self, obs: Tensor) -> Tensor:
                mean = super().mean(obs)
                return mean.sin() if len(obs) > 1 << 17 else mean

        obs = observations((1 << 17) + 3)
        assert isinstance(network_of(made(PerCall), obs), Network)


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

    def test_modes_are_those_of_now(self) -> None:
        before = global_modes()
        assert global_modes() == before
        torch.set_default_dtype(torch.float64)
        assert global_modes() != before


def test_what_lies_outside_the_process_is_met_by_the_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class ByEnvironment(Policy):
        def mean(self, obs: Tensor) -> Tensor:
            mean = super().mean(obs)
            return mean.sin() if os.environ.get("TRPO_FAST_TEST") else mean

    policy, obs = made(ByEnvironment), observations(200)
    assert isinstance(network_of(policy, obs), Network)
    monkeypatch.setenv("TRPO_FAST_TEST", "1")
    found = [network_of(policy, obs) for _ in range(CHECKED_EACH)]
    assert "applies sin" in str(found[-1])


def test_a_library_function_replaced_later(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, obs = made(Policy), observations(200)
    assert isinstance(network_of(policy, obs), Network)
    monkeypatch.setattr(torch, "tanh", torch.sin)
    assert "applies sin" in reason(policy, obs)


def test_copies_are_equal_functions_with_their_own_state() -> None:
    policy = made(ByObject)
    network_of(policy, observations(200))
    other = copy.deepcopy(policy)
    other.switch()
    assert isinstance(network_of(policy, observations(200)), Network)
    assert "applies sin" in reason(other, observations(200))


def test_a_forward_of_another_distribution_for_many_rows() -> None:
    class Wider(Policy):
        def std(self, mean: Tensor) -> Tensor:
            std = self.log_std.exp()
            return std if len(mean) < LIMIT else std * 2.0

    found = network_of(made(Wider), observations(LIMIT - 1))
    assert isinstance(found, Network)
    assert found.head.components == ACTIONS
    policy = made(Wider)
    assert isinstance(policy(observations()), Distribution)
    assert "mul" in reason(policy)


def test_a_forward_put_into_the_class_of_our_own_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = MlpPolicy(spaces.Box(-1, 1, (WIDTH,)), spaces.Box(-1, 1, (ACTIONS,)), (6,)).double()
    assert isinstance(network_of(policy), Network)
    own = MlpPolicy.forward

    def other(self: MlpPolicy, obs: Tensor, action_mask: Tensor | None = None) -> Distribution:
        return own(self, obs.sin(), action_mask)

    monkeypatch.setattr(MlpPolicy, "forward", other)
    assert "applies sin" in reason(policy)
