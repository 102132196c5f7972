"""One policy update of models that are no perceptron, and tianshou's solver on the same module.

``python benchmarks/generic_models.py [--turns N]`` prints the first table of
docs/generic-models.md, ``--products`` the second: one Fisher product by each kind of linearisation.
Every contender gets the same weights, batch and advantages, KL(old, new) of the joint action,
damping 0.1 and ten plain CG iterations; within a turn each runs once after the other, and a ratio
is the median over the turns. tianshou's solver may do fewer products: it stops at a squared
residual of 1e-10, whatever the gradient's scale.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal, kl_divergence
from torch.nn.attention import SDPBackend, sdpa_kernel

from trpo_fast import FallbackWarning, TRPOOptimizer
from trpo_fast.backends.generic.convolutions import Convolutions
from trpo_fast.backends.generic.linearization import KlHessian, Linearization, linearize
from trpo_fast.networks.distributions import detached
from trpo_fast.update.parameters import FlatParameters

MAX_KL, DAMPING, CG_ITERS = 0.01, 0.1, 10
ACTIONS = 6


def _gaussian(outputs: tuple[Tensor, Tensor]) -> Distribution:
    return Independent(Normal(outputs[0], outputs[1].exp()), 1)


def _categorical(logits: Tensor) -> Distribution:
    return Categorical(logits=logits)


class Perceptron(nn.Module):
    """17 inputs, two hidden layers, a Gaussian."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(17, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh()
        )
        self.mean, self.log_std = nn.Linear(hidden, ACTIONS), nn.Parameter(torch.zeros(ACTIONS))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean(self.body(obs))
        return mean, self.log_std.expand_as(mean)


class SmallCnn(nn.Module):
    """Images [3, 20, 20]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, ACTIONS)),
        )

    def forward(self, obs: Tensor) -> Tensor:
        logits: Tensor = self.body(obs)
        return logits


class Nature(nn.Module):
    """The network of Mnih et al. 2015 on [4, 84, 84]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU()),
            nn.Linear(512, ACTIONS),
        )

    def forward(self, obs: Tensor) -> Tensor:
        logits: Tensor = self.body(obs)
        return logits


class Recurrent(nn.Module):
    """Sequences [16, 17]; the last hidden state decides."""

    def __init__(self, kind: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.mean = kind(17, 64, batch_first=True), nn.Linear(64, ACTIONS)
        self.log_std = nn.Parameter(torch.zeros(ACTIONS))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.mean(self.rnn(obs)[0][:, -1])
        return mean, self.log_std.expand_as(mean)


class Transformer(nn.Module):
    """Two layers of width 32 over sequences [16, 32]."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(32, ACTIONS)

    def forward(self, obs: Tensor) -> Tensor:
        logits: Tensor = self.out(self.encoder(obs).mean(1))
        return logits


@dataclass(frozen=True)
class Kind:
    """A model, its batch and what its outputs are made into."""

    network: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of the observations, rows first
    head: Callable[[Any], Distribution]


KINDS = {
    "perceptron 2x64": Kind(lambda: Perceptron(64), (8192, 17), _gaussian),
    "perceptron 2x256": Kind(lambda: Perceptron(256), (8192, 17), _gaussian),
    "CNN, 2 convolutions": Kind(SmallCnn, (2048, 3, 20, 20), _categorical),
    "CNN of Mnih et al.": Kind(Nature, (256, 4, 84, 84), _categorical),
    "GRU 64": Kind(lambda: Recurrent(nn.GRU), (512, 16, 17), _gaussian),
    "LSTM 64": Kind(lambda: Recurrent(nn.LSTM), (512, 16, 17), _gaussian),
    "transformer": Kind(Transformer, (256, 16, 32), _categorical),
}


class Policy(nn.Module):
    """A network with its head: what ``TRPOOptimizer`` takes.

    Args:
        network: Gives what ``head`` takes.
        head: Gives the distribution.
        hidden: Whether the recogniser is kept from seeing a perceptron.
    """

    def __init__(
        self, network: nn.Module, head: Callable[[Any], Distribution], *, hidden: bool
    ) -> None:
        super().__init__()
        self.network, self.head, self.hidden = network, head, hidden

    def forward(self, obs: Tensor) -> Distribution:
        return self.head(self.network(obs.neg().neg() if self.hidden else obs))


class Case:
    """One model with a batch."""

    def __init__(self, kind: Kind) -> None:
        torch.manual_seed(0)
        self.kind, self.network = kind, kind.network()
        self.obs = torch.randn(kind.shape)
        with torch.no_grad():
            distribution = kind.head(self.network(self.obs))
            self.actions = distribution.sample()
            self.log_prob = distribution.log_prob(self.actions)
        self.advantages = torch.randn(kind.shape[0])

    def ours(self, *, hidden: bool) -> tuple[nn.Module, Callable[[], object], TRPOOptimizer]:
        """A copy of the network, and the call that updates it."""
        network = copy.deepcopy(self.network)
        policy = Policy(network, self.kind.head, hidden=hidden)
        optimizer = TRPOOptimizer(
            policy, max_kl=MAX_KL, damping=DAMPING, cg_iters=CG_ITERS, cg_tol=0.0,
            cg_progress_tol=0.0,
            preconditioner="none", precision="fp32",
        )  # fmt: skip
        batch: dict[str, Any] = {
            "obs": self.obs,
            "actions": self.actions,
            "advantages": self.advantages,
        }
        return network, lambda: optimizer.step(old_log_prob=self.log_prob, **batch), optimizer

    def tianshou(self) -> tuple[nn.Module, Callable[[], object]]:
        """The update by tianshou's ``TRPO._update_with_batch``; its critic is one number."""
        from tianshou.algorithm import TRPO
        from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
        from tianshou.algorithm.optim import AdamOptimizerFactory
        from tianshou.data import Batch

        network = copy.deepcopy(self.network)
        policy = ProbabilisticActorPolicy(
            actor=_Actor(network), dist_fn=self.kind.head, action_space=spaces.Discrete(ACTIONS),
            action_scaling=False, action_bound_method=None,
        )  # fmt: skip
        policy.is_within_training_step = True
        algorithm = TRPO(
            policy=policy, critic=_OneNumber(), optim=AdamOptimizerFactory(lr=1e-3),
            max_kl=MAX_KL, optim_critic_iters=1, advantage_normalization=False,
        )  # fmt: skip

        class WholeBatch(Batch):  # type: ignore[misc]
            def split(self, *args: Any, **kwargs: Any) -> Iterator[WholeBatch]:  # noqa: ARG002
                yield self

        batch = WholeBatch(
            obs=self.obs, act=self.actions, adv=self.advantages, logp_old=self.log_prob,
            returns=torch.zeros(len(self.obs)), info=Batch(),
        )  # fmt: skip

        def update() -> None:
            with sdpa_kernel(SDPBackend.MATH):  # without it tianshou cannot step a transformer
                algorithm._update_with_batch(batch, None, 1)

        return network, update

    def kl(self, network: nn.Module) -> float:
        """Mean KL(old, new) after a contender's update."""
        with torch.no_grad():
            old, new = self.kind.head(self.network(self.obs)), self.kind.head(network(self.obs))
            return float(kl_divergence(old, new).mean())

    def moved(self, network: nn.Module) -> Tensor:
        """Change of the weights ``[P]``."""
        pairs = zip(network.parameters(), self.network.parameters(), strict=True)
        return torch.cat([(a - b).detach().reshape(-1) for a, b in pairs])


class _Actor(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, obs: Tensor, state: Any = None, info: Any = None) -> tuple[Any, Any]:  # noqa: ARG002
        return self.network(obs), state


class _OneNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))

    def forward(self, obs: Tensor) -> Tensor:
        return self.value.expand(len(obs))


@dataclass(frozen=True)
class Row:
    """Median milliseconds, and tianshou's time over the generic path's."""

    fused: float | None
    generic: float
    tianshou: float
    ratio: float
    agreement: float  # relative distance between the two steps


def compare(name: str, turns: int) -> Row:
    """Time one kind of model; the contenders' steps must agree first."""
    case = Case(KINDS[name])
    contenders: dict[str, tuple[nn.Module, Callable[[], object]]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        network, call, optimizer = case.ours(hidden=False)
        call()
        if optimizer.path == "fused":
            contenders["fused"] = network, call
        network, call, optimizer = case.ours(hidden=True)
        contenders["generic"] = network, call
        contenders["tianshou"] = case.tianshou()
        times: dict[str, list[float]] = {key: [] for key in contenders}
        for turn in range(turns + 1):
            for key, (network, call) in contenders.items():
                network.load_state_dict(case.network.state_dict())
                start = time.perf_counter()
                call()
                if turn:  # the first is a warm-up
                    times[key].append(time.perf_counter() - start)
    if optimizer.path != "generic":
        raise RuntimeError(f"{name} took the {optimizer.path} path")
    steps = {key: case.moved(network) for key, (network, _) in contenders.items()}
    agreement = max(
        float((step - steps["tianshou"]).norm() / steps["tianshou"].norm())
        for step in steps.values()
    )
    if agreement > 1e-2 or not 0 < case.kl(contenders["generic"][0]) <= MAX_KL:
        raise RuntimeError(f"{name}: the contenders' steps differ by {agreement:.2g}")
    middle = {key: 1e3 * median(found) for key, found in times.items()}
    pairs = zip(times["tianshou"], times["generic"], strict=True)
    return Row(
        middle.get("fused"), middle["generic"], middle["tianshou"],
        median(theirs / ours for theirs, ours in pairs), agreement,
    )  # fmt: skip


def products(name: str, turns: int) -> list[float]:
    """Least milliseconds of a product: the KL twice, reverse twice, and with our convolutions."""
    case = Case(KINDS[name])
    names, tensors = zip(*case.network.named_parameters(), strict=True)
    parameters = FlatParameters(list(tensors), list(names))
    v = torch.randn_like(parameters.start)
    old = detached(case.kind.head(case.network(case.obs)))

    def mean_kl(new: Distribution) -> Tensor:
        return kl_divergence(old, new).mean()

    with sdpa_kernel(SDPBackend.MATH):
        convolutions = Convolutions()
        plain = case.kind.head(case.network(case.obs))
        with convolutions:
            watched = case.kind.head(case.network(case.obs))
        kinds: list[Linearization] = [
            KlHessian(mean_kl(plain), parameters),
            linearize(plain, mean_kl, parameters),
            linearize(watched, mean_kl, parameters, convolutions),
        ]
        found = [kind.product(v) for kind in kinds]
        if any(float((f - found[0]).norm()) > 1e-3 * float(found[0].norm()) for f in found):
            raise RuntimeError(f"{name}: the products differ")
        times: list[list[float]] = [[] for _ in kinds]
        for _ in range(turns):
            for kind, own in zip(kinds, times, strict=True):
                start = time.perf_counter()
                kind.product(v)
                own.append(1e3 * (time.perf_counter() - start))
    return [min(own) for own in times]


def print_products(names: Iterable[str], turns: int) -> None:
    """Print the table of products."""
    print("| model | observations | KL twice | reverse twice | with our convolutions |")
    print("|---|---|---:|---:|---:|")
    for name in names:
        shape = " x ".join(str(n) for n in KINDS[name].shape)
        figures = " | ".join(f"{figure:.1f}" for figure in products(name, turns))
        print(f"| {name} | {shape} | {figures} |", flush=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--products", action="store_true", help="single Fisher products")
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    if options.products:
        print_products(options.kinds, options.turns)
        return
    print("| model | observations | fused | generic | tianshou | tianshou / generic |")
    print("|---|---|---:|---:|---:|---:|")
    for name in options.kinds:
        row = compare(name, options.turns)
        fused = "-" if row.fused is None else f"{row.fused:.1f}"
        shape = " x ".join(str(n) for n in KINDS[name].shape)
        figures = f"{fused} | {row.generic:.1f} | {row.tianshou:.1f} | {row.ratio:.2f}x"
        print(f"| {name} | {shape} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
