"""Policies of every make: those that are recognised, and near misses with their reasons."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    Laplace,
    Normal,
    TransformedDistribution,
)
from torch.distributions.transforms import TanhTransform
from torch.nn import functional

from trpo_fast import MlpPolicy
from trpo_fast.distributions import MultiCategorical

WIDTH, ACTIONS = 5, 3


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
REFUSED: dict[str, tuple[Make, str]] = {}


def recognised(make: Make) -> Make:
    RECOGNISED[make.__name__] = make
    return make


def refused(words: str) -> Callable[[Make], Make]:
    def keep(make: Make) -> Make:
        REFUSED[make.__name__] = make, words
        return make

    return keep


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


for _kind in ("plain", "log_softmax", "multi", "bernoulli"):
    RECOGNISED[f"logits_{_kind}"] = lambda kind=_kind: Logits(kind)
REFUSED["probs"] = (lambda: Logits("probs")), "Categorical is made from probs"
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


@refused("may branch on the data")
class Branching(Policy):
    def mean(self, obs: Tensor) -> Tensor:
        hidden = self.first(obs)
        hidden = torch.tanh(hidden) if obs.mean() > -9 else torch.relu(hidden)
        return self.last(hidden)


@refused("reads values of a tensor into Python (item)")
class ReadingItems(Policy):
    def std(self, mean: Tensor) -> Any:
        return self.log_std.exp()[0].item()


@refused("reads values of a tensor into Python")
class ThroughNumpy(Policy):
    def mean(self, obs: Tensor) -> Tensor:
        return super().mean(torch.from_numpy(obs.numpy()))


@refused("residual connection")
class Residual(Policy):
    def mean(self, obs: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(obs))
        return self.last(hidden + self.first(obs))


@refused("layer 'body.1' is a LayerNorm")
def layer_norm() -> nn.Module:
    return Body(nn.Linear(WIDTH, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, ACTIONS))


@refused("layer 'body.0' is a BatchNorm1d")
def batch_norm() -> nn.Module:
    return Body(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, ACTIONS))


@refused("layer 'body.0' is a Conv1d")
class Convolution(Body):
    def __init__(self) -> None:
        super().__init__(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(6, ACTIONS))

    def mean(self, obs: Tensor) -> Tensor:
        return self.body(obs.unsqueeze(1))


@refused("layer 'body.1' is a Hardtanh")
def hardtanh() -> nn.Module:
    return Body(nn.Linear(WIDTH, 6), nn.Hardtanh(), nn.Linear(6, ACTIONS))


@refused("applies relu after another activation")
def two_activations() -> nn.Module:
    return Body(nn.Linear(WIDTH, 6), nn.Tanh(), nn.ReLU(), nn.Linear(6, ACTIONS))


@refused("arguments that the fused path does not know")
def softplus_with_a_threshold() -> nn.Module:
    return Body(nn.Linear(WIDTH, 6), nn.Softplus(1.0, 3.0), nn.Linear(6, ACTIONS))


@refused("the last layer has an activation (tanh)")
def bounded_mean() -> nn.Module:
    return Body(nn.Linear(WIDTH, ACTIONS), nn.Tanh())


@refused("draws random numbers (randn_like)")
class Noisy(Policy):
    def mean(self, obs: Tensor) -> Tensor:
        mean = super().mean(obs)
        return mean + 0.0 * torch.randn_like(mean)


@refused("forward applies clamp to the output of a layer")
class ClampedMean(Policy):
    def mean(self, obs: Tensor) -> Tensor:
        return super().mean(obs).clamp(-10, 10)


@refused("forward applies clamp to parameter 'log_std'")
class ClampedLogStd(Policy):
    def std(self, mean: Tensor) -> Tensor:
        return self.log_std.clamp(-20, 2).exp()


@refused("forward applies clamp to a part of the output of a layer")
class ClampedHalf(Halves):
    def halves(self, both: Tensor) -> Any:
        mean, log_std = both.chunk(2, -1)
        return mean, log_std.clamp(-20, 2)


@refused("not the two halves, in this order")
class SwappedHalves(Halves):
    def halves(self, both: Tensor) -> Any:
        return both.chunk(2, -1)[::-1]


@refused("come from two layers")
class TwoHeads(Policy):
    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.Linear(7, ACTIONS)

    def forward(self, obs: Tensor) -> Distribution:
        hidden = torch.tanh(self.first(obs))
        return Independent(Normal(self.last(hidden), self.spread(hidden).exp()), 1)


@refused("parameter 'log_std' itself; make its logarithm the parameter")
class StdParameter(Policy):
    def __init__(self) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.full((ACTIONS,), 0.8))

    def std(self, mean: Tensor) -> Tensor:
        return self.log_std


@refused("broadcasts exp of parameter 'log_std' over the action dimensions")
class OneLogStd(Policy):
    def __init__(self) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.tensor(-0.5))


@refused("applies softplus to parameter 'log_std'")
class SoftplusStd(Policy):
    def std(self, mean: Tensor) -> Tensor:
        return functional.softplus(self.log_std)


@refused("forward applies sub to the observations")
class Normalising(Policy):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.ones(WIDTH))

    def mean(self, obs: Tensor) -> Tensor:
        return super().mean((obs - self.center) / 2.0)


@refused("two layers share one parameter")
class Tied(Policy):
    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Linear(7, 7)
        self.again = nn.Linear(7, 7)
        self.again.weight = self.middle.weight

    def mean(self, obs: Tensor) -> Tensor:
        return self.last(self.again(torch.tanh(self.middle(torch.tanh(self.first(obs))))))


@refused("two layers share one parameter")
class SharedMemory(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.double()
        self.again.weight = nn.Parameter(self.middle.weight.detach())


@refused("stored [in, out]; use nn.Linear")
class InOut(Policy):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(0.3 * torch.randn(WIDTH, 7))

    def mean(self, obs: Tensor) -> Tensor:
        return self.last(torch.tanh(obs @ self.matrix))


@refused("detach")
class Detached(Policy):
    def mean(self, obs: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(obs)).detach())


@refused("under no_grad")
class NoGrad(Policy):
    def mean(self, obs: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = torch.tanh(self.first(obs))
        return self.last(hidden)


class HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 0.5 * g


@refused("custom autograd function")
class CustomFunction(Policy):
    def mean(self, obs: Tensor) -> Tensor:
        return self.last(HalfGradient.apply(self.first(obs)))


@refused("gradient hook on a tensor")
class TensorHook(Policy):
    def mean(self, obs: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(obs))
        if hidden.requires_grad:
            hidden.register_hook(lambda g: 0.5 * g)
        return self.last(hidden)


@refused("changes a tensor in place")
class InPlace(Policy):
    def mean(self, obs: Tensor) -> Tensor:
        mean = super().mean(obs)
        mean[:, 0] += 1.0
        return mean


@refused("in place")
class InPlaceBehindAView(Policy):
    def mean(self, obs: Tensor) -> Tensor:
        mean = super().mean(obs)
        mean.view(-1).tanh_()
        return mean


@refused("past autograd")
class DataOfAParameter(Policy):
    def mean(self, obs: Tensor) -> Tensor:
        self.first.weight.data.mul_(1.0)
        return super().mean(obs)


@refused("neither a parameter nor a buffer")
class PlainTensor(Policy):
    def __init__(self) -> None:
        super().__init__()
        self.hidden_bias = [torch.zeros(7, dtype=torch.float64)]

    def mean(self, obs: Tensor) -> Tensor:
        return self.last(functional.linear(obs, self.first.weight, self.hidden_bias[0]).tanh())


@refused("forward returns TransformedDistribution")
class Squashing(Policy):
    def forward(self, obs: Tensor) -> Distribution:
        transforms = [TanhTransform(cache_size=1)]
        normal = Normal(self.mean(obs), self.log_std.exp())
        return Independent(TransformedDistribution(normal, transforms), 1).base_dist


@refused("forward returns Independent(TransformedDistribution)")
class SquashingInside(Policy):
    def forward(self, obs: Tensor) -> Distribution:
        normal = Normal(self.mean(obs), self.log_std.exp())
        return Independent(TransformedDistribution(normal, [TanhTransform()]), 1)


@refused("forward returns Independent(Laplace)")
class LaplacePolicy(Policy):
    def forward(self, obs: Tensor) -> Distribution:
        return Independent(Laplace(self.mean(obs), self.log_std.exp()), 1)


@refused("has parametrizations")
def parametrized() -> nn.Module:
    policy = Policy()
    nn.utils.parametrizations.weight_norm(policy.first)
    return policy


@refused("torch.compile'd")
def compiled() -> nn.Module:
    return torch.compile(Policy(), backend="eager")


@refused("hook is registered on module 'first'")
def hooked() -> nn.Module:
    policy = Policy()
    policy.first.register_forward_hook(lambda m, i, o: None)
    return policy


@refused("gradient hook is registered on a parameter")
def parameter_hook() -> nn.Module:
    policy = Policy().double()
    policy.last.weight.register_hook(lambda g: 0.5 * g)
    return policy


@refused("parameters are torch.float16")
def half() -> nn.Module:
    return Policy().half()
