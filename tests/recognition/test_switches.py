"""State that changes between steps and that only large batches feel: no step may miss it."""

from __future__ import annotations

import copy
import functools
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from recognizer_cases import (
    ACTIONS,
    LIMIT,
    WIDTH,
    Policy,
    data_of,
    made,
    measured_kl,
    observations,
    reason,
)
from torch import Tensor, nn
from torch.distributions import Distribution

from trpo_fast import MlpPolicy, TRPOOptimizer
from trpo_fast.networks.network import Network
from trpo_fast.recognition.python_state import global_modes
from trpo_fast.recognition.recognizer import CHECKED_EACH, network_of

pytestmark = [
    pytest.mark.reliability("python_state"),
    pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning"),
]

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


def test_modes_are_those_of_now() -> None:
    before = global_modes()
    assert global_modes() == before
    torch.set_default_dtype(torch.float64)
    assert global_modes() != before


def test_copies_are_equal_functions_with_their_own_state() -> None:
    policy = made(ByObject)
    network_of(policy, observations(200))
    other = copy.deepcopy(policy)
    other.switch()
    assert isinstance(network_of(policy, observations(200)), Network)
    assert "applies sin" in reason(other, observations(200))


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


def test_a_forward_put_into_the_class_of_our_own_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = MlpPolicy(spaces.Box(-1, 1, (WIDTH,)), spaces.Box(-1, 1, (ACTIONS,)), (6,)).double()
    assert isinstance(network_of(policy), Network)
    own = MlpPolicy.forward

    def other(self: MlpPolicy, obs: Tensor, action_mask: Tensor | None = None) -> Distribution:
        return own(self, obs.sin(), action_mask)

    monkeypatch.setattr(MlpPolicy, "forward", other)
    assert "applies sin" in reason(policy)
