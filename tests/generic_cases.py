"""Small models of the kinds that take the generic path, each with observations; their Fisher."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.distributions import Categorical, Distribution, Independent, Normal, kl_divergence
from torch.func import functional_call
from torch.nn.utils import parametrizations

from trpo_fast.backends.generic.convolutions import Convolutions
from trpo_fast.backends.generic.linearization import linearize
from trpo_fast.networks.distributions import detached
from trpo_fast.update.parameters import FlatParameters

ROWS = 6


@dataclass(frozen=True)
class Model:
    """A kind of model; ``make(dtype)`` gives the module and its observations."""

    name: str
    build: Callable[[], tuple[nn.Module, Any]]

    def make(self, dtype: torch.dtype) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        module, obs = self.build()
        return module.to(dtype), _cast(obs, dtype)


def _cast(obs: Any, dtype: torch.dtype) -> Any:
    if isinstance(obs, dict):
        return {key: _cast(item, dtype) for key, item in obs.items()}
    if isinstance(obs, tuple):
        return tuple(_cast(item, dtype) for item in obs)
    return obs.to(dtype) if obs.is_floating_point() else obs


def parameters_of(module: nn.Module) -> FlatParameters:
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    return FlatParameters([p for _, p in named], [name for name, _ in named])


def dense_fisher(module: nn.Module, obs: Any) -> Tensor:
    """F ``[P, P]``: the Hessian of the mean KL, by torch, without anything of ours."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in named.values()]
    with torch.no_grad():
        old = detached(module(obs))

    def mean_kl(flat: Tensor) -> Tensor:
        pieces = zip(named.items(), flat.split(sizes), strict=True)
        given = {name: piece.view_as(p) for (name, p), piece in pieces}
        return kl_divergence(old, functional_call(module, given, (obs,))).mean()

    theta = torch.cat([p.detach().reshape(-1) for p in named.values()])
    return hessian(mean_kl, theta)


def linear_of(module: nn.Module, obs: Any, convolutions: Convolutions | None = None) -> Any:
    with convolutions or nullcontext():
        distribution = module(obs)
    old = detached(distribution)
    return linearize(
        distribution,
        lambda new: kl_divergence(old, new).mean(),
        parameters_of(module),
        convolutions,
    )


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.Tanh(), nn.Flatten()
        )
        self.out = nn.Linear(4 * 2 * 2, 3)

    def forward(self, obs: Tensor) -> Distribution:
        return Categorical(logits=self.out(self.body(obs)))


class Recurrent(nn.Module):
    """The last valid step of each padded sequence decides."""

    def __init__(self, kind: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.mean = kind(3, 4, batch_first=True), nn.Linear(4, 2)
        self.log_std = nn.Parameter(torch.tensor([-0.3, 0.2]))

    def forward(self, obs: tuple[Tensor, Tensor]) -> Distribution:
        sequence, length = obs
        hidden = self.rnn(sequence)[0][torch.arange(len(sequence)), length - 1]
        mean = self.mean(hidden)
        return Independent(Normal(mean, self.log_std.exp().expand_as(mean)), 1)


class Packed(Recurrent):
    """The same by torch's packed sequences."""

    def forward(self, obs: tuple[Tensor, Tensor]) -> Distribution:
        packed = nn.utils.rnn.pack_padded_sequence(
            obs[0], obs[1].cpu(), batch_first=True, enforce_sorted=False
        )
        mean = self.mean(self.rnn(packed)[1][-1])
        return Independent(Normal(mean, self.log_std.exp().expand_as(mean)), 1)


class Attention(nn.Module):
    """A transformer over padded sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, obs: tuple[Tensor, Tensor]) -> Distribution:
        sequence, length = obs
        padding = torch.arange(sequence.shape[1]) >= length.unsqueeze(1)
        hidden = self.encoder(sequence, src_key_padding_mask=padding)
        hidden = hidden.masked_fill(padding.unsqueeze(2), 0.0)
        return Categorical(logits=self.out(hidden.sum(1)))


class Mixed(nn.Module):
    """Dict observations: an image, a category and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.embed = nn.Conv2d(1, 2, 3), nn.Embedding(4, 3)
        self.out = nn.Linear(2 * 4 + 3 + 2, 3)

    def forward(self, obs: dict[str, Tensor]) -> Distribution:
        parts = [self.conv(obs["image"]).flatten(1), self.embed(obs["kind"]), obs["numbers"]]
        return Categorical(logits=self.out(torch.cat(parts, 1).tanh()))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, obs: Tensor) -> Distribution:
        return Categorical(logits=self.out(self.second(self.first(obs).tanh()).tanh()))


class Bilinear(Plain):
    """A forward that is no chain of layers: the input comes back and meets a hidden layer."""

    def forward(self, obs: Tensor) -> Distribution:
        hidden = self.first(obs).tanh()
        return Categorical(logits=self.out(hidden * self.second(obs) + hidden.roll(1, 1)))


def _tied() -> tuple[nn.Module, Any]:
    module = Plain()
    module.second.weight = module.first.weight
    return module, torch.randn(ROWS, 3)


def _tied_convolutions() -> tuple[nn.Module, Any]:
    module = nn.Sequential(nn.Conv1d(1, 1, 3, padding=1), nn.Conv1d(1, 1, 3, padding=1))
    module[1].weight = module[0].weight

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = module

        def forward(self, obs: Tensor) -> Distribution:
            return Categorical(logits=self.body(obs).flatten(1))

    return Tied(), torch.randn(ROWS, 1, 4)


def _frozen(module: nn.Module, part: str) -> nn.Module:
    module.get_submodule(part).requires_grad_(False)
    return module


def _normalised() -> tuple[nn.Module, Any]:
    module = Plain()
    parametrizations.weight_norm(module.first)
    parametrizations.orthogonal(module.second)
    return module, torch.randn(ROWS, 3)


def _sequences() -> tuple[Tensor, Tensor]:
    return torch.randn(ROWS, 5, 3), torch.tensor([5, 1, 3, 4, 2, 5])


MODELS = [
    Model("cnn", lambda: (Cnn(), torch.randn(ROWS, 2, 7, 7))),
    Model(
        "cnn, frozen convolution",
        lambda: (_frozen(Cnn(), "body.0"), torch.randn(ROWS, 2, 7, 7)),
    ),
    Model("tied convolutions", _tied_convolutions),
    Model("gru, padded", lambda: (Recurrent(nn.GRU), _sequences())),
    Model("lstm, padded", lambda: (Recurrent(nn.LSTM), _sequences())),
    Model("gru, packed", lambda: (Packed(nn.GRU), _sequences())),
    Model("lstm, packed", lambda: (Packed(nn.LSTM), _sequences())),
    Model(
        "transformer, padded",
        lambda: (Attention(), (torch.randn(ROWS, 5, 4), _sequences()[1])),
    ),
    Model(
        "dict observations",
        lambda: (
            Mixed(),
            {
                "image": torch.randn(ROWS, 1, 4, 4),
                "kind": torch.randint(0, 4, (ROWS,)),
                "numbers": torch.randn(ROWS, 2),
            },
        ),
    ),
    Model("tied weights", _tied),
    Model("frozen layer", lambda: (_frozen(Plain(), "second"), torch.randn(ROWS, 3))),
    Model("parametrizations", _normalised),
    Model("custom forward", lambda: (Bilinear(), torch.randn(ROWS, 3))),
]
