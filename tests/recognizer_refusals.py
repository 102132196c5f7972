"""Near misses: policies that the recogniser refuses, each with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from recognizer_cases import ACTIONS, WIDTH, Body, Halves, Logits, Make, OneBeta, Policy
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    Laplace,
    Normal,
    TransformedDistribution,
)
from torch.distributions.transforms import TanhTransform
from torch.nn import functional

REFUSED: dict[str, tuple[Make, str]] = {}


def refused(words: str) -> Callable[[Make], Make]:
    def keep(make: Make) -> Make:
        REFUSED[make.__name__] = make, words
        return make

    return keep


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


@refused("the logits are not the outputs [N, n] of one layer")
class ShiftedBits(Logits):
    """Begins with logits of 0, whose greatest is 0: a shift of bits shows in no number."""

    def __init__(self) -> None:
        super().__init__("bernoulli")
        nn.init.zeros_(self.body[2].weight)
        nn.init.zeros_(self.body[2].bias)

    def forward(self, obs: Tensor) -> Distribution:
        logits = self.body(obs)
        shifted = logits - logits.detach().amax(-1, keepdim=True)
        return Independent(Bernoulli(logits=shifted), 1)


@refused("of the Beta, its concentrations are not 1 + softplus of the two halves")
class SwappedBeta(OneBeta):
    def concentrations(self, outputs: Tensor) -> tuple[Tensor, ...]:
        return super().concentrations(outputs)[::-1]


@refused("forward applies add to the output of a layer")
class HigherBeta(OneBeta):
    def concentrations(self, outputs: Tensor) -> tuple[Tensor, ...]:
        return (functional.softplus(outputs) + 1.5).chunk(2, 1)


@refused("forward applies add to the output of a layer")
class SteeperBeta(OneBeta):
    def concentrations(self, outputs: Tensor) -> tuple[Tensor, ...]:
        return (functional.softplus(outputs, beta=2) + 1).chunk(2, 1)


@refused("leaves outputs of its layer unused")
class NarrowBeta(OneBeta):
    def concentrations(self, outputs: Tensor) -> tuple[Tensor, ...]:
        return (functional.softplus(outputs) + 1)[:, :2].chunk(2, 1)


@refused("forward applies detach to the output of a layer")
class DetachedBeta(OneBeta):
    def concentrations(self, outputs: Tensor) -> tuple[Tensor, ...]:
        return (functional.softplus(outputs.detach()) + 1).chunk(2, 1)


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


@refused("two layers share a parameter")
class Tied(Policy):
    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Linear(7, 7)
        self.again = nn.Linear(7, 7)
        self.again.weight = self.middle.weight

    def mean(self, obs: Tensor) -> Tensor:
        return self.last(self.again(torch.tanh(self.middle(torch.tanh(self.first(obs))))))


@refused("two layers share a parameter")
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


REFUSED["probs"] = (lambda: Logits("probs")), "Categorical is made from probs"
