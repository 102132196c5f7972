"""Policies of every make that are recognised, and what the recogniser's tests do with them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Distribution,
    Independent,
    Normal,
    kl_divergence,
)
from torch.nn import functional
from update_cases import Wrapped

from trpo_fast import MlpPolicy, TRPOOptimizer
from trpo_fast.networks.distributions import MultiCategorical
from trpo_fast.recognition.recognizer import network_of

WIDTH, ACTIONS = 5, 3
LIMIT = 16  # rows beyond which the policies of some tests are another function


class Policy(nn.Module):
    """A small policy whose parts the cases below replace."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, 7), nn.Linear(7, ACTIONS)
        self.log_std = nn.Parameter(torch.full((ACTIONS,), -0.2))

    def mean(self, obs: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(obs)))

    def std(self, mean: Tensor) -> Tensor:
        return self.log_std.exp()

    def forward(self, obs: Tensor) -> Distribution:
        mean = self.mean(obs)
        return Independent(Normal(mean, self.std(mean)), 1)


Make = Callable[[], nn.Module]
RECOGNISED: dict[str, Make] = {}


def recognised(make: Make) -> Make:
    RECOGNISED[make.__name__] = make
    return make


class Body(Policy):
    """A policy whose mean is any module."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        del self.first, self.last
        self.body = nn.Sequential(*parts)

    def mean(self, obs: Tensor) -> Tensor:
        return self.body(obs)


recognised(Policy)


@recognised
def sequential() -> nn.Module:
    return Body(nn.Flatten(), nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, ACTIONS))


@recognised
def nested_with_dropout_and_in_place_relu() -> nn.Module:
    inner = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Dropout(0.5))
    first = nn.Linear(WIDTH, 6, bias=False)
    return Body(nn.Identity(), first, nn.SiLU(), inner, nn.Linear(6, ACTIONS))


@recognised
def a_linear_policy() -> nn.Module:
    return Body(nn.Linear(WIDTH, ACTIONS))


@recognised
class RowLogStd(Policy):
    """CleanRL's form."""

    def __init__(self) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.full((1, ACTIONS), -0.3))

    def std(self, mean: Tensor) -> Tensor:
        return torch.exp(self.log_std.expand_as(mean))


@recognised
class ColumnLogStd(Policy):
    """tianshou's form."""

    def __init__(self) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.tensor([[-0.3], [0.1], [0.2]]))

    def std(self, mean: Tensor) -> Tensor:
        return (self.log_std.view(1, -1) + torch.zeros_like(mean)).exp()


@recognised
class OnesTimesStd(Policy):
    """Stable-Baselines3's forms: mlp_extractor and action_net, ones times std."""

    def __init__(self) -> None:
        super().__init__()
        self.features_extractor = nn.Flatten()
        self.mlp_extractor = nn.ModuleDict(
            {
                "policy_net": nn.Sequential(nn.Linear(WIDTH, 7), nn.Tanh()),
                "value_net": nn.Sequential(nn.Linear(WIDTH, 7), nn.Tanh()),
            }
        )
        self.action_net, self.value_net = nn.Linear(7, ACTIONS), nn.Linear(7, 1)

    def mean(self, obs: Tensor) -> Tensor:
        features = self.features_extractor(obs.to(self.log_std.dtype))
        self.value = self.value_net(self.mlp_extractor["value_net"](features)).flatten()
        return self.action_net(self.mlp_extractor["policy_net"](features))

    def std(self, mean: Tensor) -> Tensor:
        return torch.ones_like(mean) * self.log_std.exp()


@recognised
class SharedTrunk(Policy):
    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Linear(7, 1)

    def mean(self, obs: Tensor) -> Tensor:
        hidden = functional.relu(self.first(obs))
        self.values = self.critic(functional.layer_norm(hidden, (7,)))
        return self.last(hidden)


@recognised
class Products(Policy):
    """Layers written as products, a row of std written as a sum."""

    def mean(self, obs: Tensor) -> Tensor:
        hidden = (obs @ self.first.weight.T + self.first.bias).sigmoid()
        return torch.addmm(self.last.bias, hidden, self.last.weight.t())

    def std(self, mean: Tensor) -> Tensor:
        return (torch.zeros_like(mean) + self.log_std).exp()


@recognised
class Looped(Policy):
    def __init__(self) -> None:
        super().__init__()
        widths = (WIDTH, 4, 6, ACTIONS)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def mean(self, obs: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            obs = functional.elu(layer(obs), alpha=0.7)
        return self.layers[-1](obs)


@recognised
class FixedStd(Policy):
    def std(self, mean: Tensor) -> Any:
        return 0.6


@recognised
class LogStdBuffer(Policy):
    def __init__(self) -> None:
        super().__init__()
        del self.log_std
        self.register_buffer("log_std", torch.full((ACTIONS,), -0.4))


class Halves(Policy):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(7, 2 * ACTIONS)
        del self.log_std

    def halves(self, both: Tensor) -> Any:
        return both.chunk(2, dim=-1)

    def forward(self, obs: Tensor) -> Distribution:
        mean, log_std = self.halves(self.last(functional.softplus(self.first(obs))))
        return Independent(Normal(mean, log_std.exp()), 1)


recognised(Halves)


@recognised
class Split(Halves):
    def halves(self, both: Tensor) -> Any:
        return torch.split(both, ACTIONS, 1)


@recognised
class Sliced(Halves):
    def halves(self, both: Tensor) -> Any:
        return both[:, :ACTIONS], both[..., ACTIONS:]


class Logits(Body):
    """Discrete actions of some kind."""

    def __init__(self, kind: str) -> None:
        super().__init__(nn.Linear(WIDTH, 6), nn.LeakyReLU(0.1), nn.Linear(6, 6))
        self.kind = kind
        del self.log_std

    def forward(self, obs: Tensor) -> Distribution:
        logits = self.body(obs)
        if self.kind == "log_softmax":
            return Categorical(logits=functional.log_softmax(logits, dim=-1))
        if self.kind == "multi":
            return MultiCategorical(logits, (2, 4))
        if self.kind == "bernoulli":
            return Independent(Bernoulli(logits=logits), 1)
        if self.kind == "probs":
            return Categorical(probs=logits.softmax(-1))
        return Categorical(logits=logits)


@recognised
class OneBeta(Body):
    """1 + softplus of all outputs at once."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, 4))
        del self.log_std

    def forward(self, obs: Tensor) -> Distribution:
        alpha, beta = self.concentrations(self.body(obs))
        return Independent(Beta(alpha, beta), 1)

    def concentrations(self, outputs: Tensor) -> tuple[Tensor, ...]:
        return (1 + functional.softplus(outputs)).chunk(2, dim=-1)


@recognised
class SplitBeta(OneBeta):
    def concentrations(self, outputs: Tensor) -> tuple[Tensor, ...]:
        alpha, beta = outputs.split(2, 1)
        return functional.softplus(alpha) + 1.0, nn.Softplus()(beta).add(1)


@recognised
class SlicedBeta(OneBeta):
    def concentrations(self, outputs: Tensor) -> tuple[Tensor, ...]:
        both = functional.softplus(outputs)
        return both[:, :2] + 1, both[:, 2:] + 1


for _kind in ("plain", "log_softmax", "multi", "bernoulli"):
    RECOGNISED[f"logits_{_kind}"] = lambda kind=_kind: Logits(kind)
for _activation in (
    nn.Tanh(),
    nn.ReLU(),
    nn.LeakyReLU(0.2),
    nn.ELU(1.3),
    nn.SiLU(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.Softplus(2.0),
    nn.Sigmoid(),
    nn.Identity(),
):
    RECOGNISED[str(_activation)] = lambda phi=_activation: Body(
        nn.Linear(WIDTH, 6), phi, nn.Linear(6, ACTIONS)
    )


@recognised
def a_subclass_of_mlp_policy() -> nn.Module:
    class Mine(MlpPolicy):
        pass

    return Mine(spaces.Box(-1, 1, (WIDTH,)), spaces.Box(-1, 1, (ACTIONS,)), (6, 4))


def observations(rows: int = 48, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, WIDTH, generator=generator).to(dtype)


def made(make: Make, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(7)
    return make().to(dtype)


def data_of(module: nn.Module, obs: Tensor) -> dict[str, Tensor]:
    with torch.no_grad(), torch.random.fork_rng([]):
        torch.manual_seed(3)
        actions = copy.deepcopy(module).eval()(obs).sample()
        advantages = torch.randn(len(obs))
    return {"obs": obs, "actions": actions, "advantages": advantages}


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def reason(module: nn.Module, obs: Tensor | None = None) -> str:
    found = network_of(module, observations() if obs is None else obs)
    assert isinstance(found, str), "it was recognised"
    return found


def measured_kl(policy: nn.Module, step: Callable[[], Any], obs: Tensor) -> float:
    """What torch measures of a step."""
    with torch.no_grad():
        old = policy(obs)
        step()
        return float(kl_divergence(old, policy(obs)).mean())


def step(module: nn.Module, data: dict[str, Tensor], **options: Any) -> TRPOOptimizer:
    opt = TRPOOptimizer(module, **options)
    opt.step(**data)
    assert opt.last_result is not None
    assert opt.last_result.accepted
    return opt


class Wrapped2(Wrapped):
    """``Wrapped`` for modules that take no mask."""

    def forward(self, obs: Tensor, action_mask: Tensor | None = None) -> Distribution:
        return self.inner(obs.neg().neg())
