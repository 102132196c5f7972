"""The update's parts for a recognised perceptron, in pure torch: the oracle and the fallback.

The Fisher matrix of the mean KL at theta_old is F = sum_n w_n J_n' M_n J_n / sum_n w_n, with J_n
the Jacobian of the network's outputs and M_n the Fisher matrix of the head (Martens 2020, "New
insights and perspectives on the natural gradient method", section 8). Layers run in the
parameters' dtype; log-probabilities, KL and loss in float64. Rows are taken in chunks, so that
memory does not grow with the batch. ``precision`` "tf32", "bf16" and "bf16x3" round what the Fisher
products multiply, and nothing else; "auto" is "fp32" here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from trpo_fast.backends.reference.rounding import EXACT, ROUNDINGS, Rounding
from trpo_fast.base.tensors import strided_rows
from trpo_fast.networks.distributions import in_double
from trpo_fast.networks.head import Outputs
from trpo_fast.networks.network import Layer, Linearisation, Network, forward, linearise
from trpo_fast.preconditioning.preconditioner import Preconditioner
from trpo_fast.update.batch import Batch, batch_rows
from trpo_fast.update.conjugate_gradient import conjugate_gradient
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters
from trpo_fast.update.result import Solution

CHUNK_ROWS = 1 << 16
CACHED_CHUNKS = 2  # linearisations kept between products; those beyond are computed again

Pair = tuple[Tensor | None, Tensor | None]  # what belongs to a layer's weight and bias


class ReferenceProblem:
    """A ``trust_region.Problem`` for a recognised network. It never writes a parameter.

    Args:
        network: What ``network_of`` gave; its tensors are the module's parameters.
        parameters: The flat order. Network tensors that are not in it are frozen.
        batch: As ``fused_batch`` gave it. Without actions only products are served.
        options: Checked options.
    """

    backend = "reference"
    preconditioner: Preconditioner | None = None
    gains_known = True

    def __init__(
        self, network: Network, parameters: FlatParameters, batch: Batch, options: Options
    ) -> None:
        self.parameters, self.batch, self.options = parameters, batch, options
        self.module_network = network
        self.places = [parameters.place.get(id(t)) for t in network.tensors()]
        parameters.use(network.tensors())
        self.network = self._at(parameters.start)
        self.old: list[tuple[Distribution, Tensor]] = []  # a chunk's policy, log-probabilities
        self.fisher_batch = batch
        if options.fisher_fraction < 1:
            rows = strided_rows(batch.rows, options.fisher_fraction, parameters.device)
            self.fisher_batch = batch_rows(batch, rows)
        self.rounding = ROUNDINGS[options.precision]
        self.points: dict[int, tuple[Linearisation, Callable[[Tensor], Tensor]]] = {}

    def surrogate_gradient(self) -> tuple[float, Tensor]:
        """The loss at theta_old, and minus its gradient ``[P]``."""
        self.old = []
        loss, g = 0.0, self._flatten(None, [])
        for part, shares in _chunks(self.batch):
            point = linearise(self.network.layers, part.obs)
            old = _distribution(self.network, point.outputs, part)
            log_prob = _log_prob(old, part)
            old_log_prob = log_prob if part.old_log_prob is None else part.old_log_prob.double()
            self.old.append((old, old_log_prob))
            gain = _gain(part, shares, log_prob, old_log_prob)  # [n]
            loss -= float(gain.sum())
            assert part.actions is not None  # noqa: S101
            at = self.network.at(point.outputs, part.action_mask)
            score, score_log_std = self.network.head.score(at, part.actions)
            delta = (gain.unsqueeze(1) * score).to(point.outputs.dtype)
            log_std = None if score_log_std is None else gain @ score_log_std
            g += self._flatten(log_std, _vjp(self.network.layers, point, delta))
        return loss, g

    def solve(self, g: Tensor, options: Options) -> Solution:
        """Conjugate gradients on ``fisher_product``."""
        o, found = options, self.preconditioner
        return conjugate_gradient(
            self.fisher_product,
            g,
            damping=o.damping,
            iters=o.cg_iters,
            tol=o.cg_tol,
            progress_tol=0.0 if found is None else o.cg_progress_tol,
            precondition=None if found is None else found.apply,
        )

    def fisher_product(self, v: Tensor) -> Tensor:
        """``F v`` ``[P]``, without damping, over the Fisher's share of the rows."""
        log_std, pairs = self._tangents(v)
        # The state-independent log-std block is exactly 2 I, whatever the data.
        total = self._flatten(None if log_std is None else 2 * log_std, [])
        layers = self.network.layers
        for index, (part, shares) in enumerate(_chunks(self.fisher_batch)):
            point, metric = self._point(index, part)
            u = metric(_jvp(layers, point, pairs, self.rounding))
            u = u * shares.to(total.dtype).unsqueeze(1)
            total += self._flatten(None, _vjp(layers, point, u, self.rounding))
        return total

    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        """Loss and mean KL at ``theta`` ``[P]``."""
        network = self._at(theta)
        loss = kl = 0.0
        for (part, shares), (old, old_log_prob) in zip(_chunks(self.batch), self.old, strict=True):
            new = _distribution(network, forward(network.layers, part.obs), part)
            gain = _gain(part, shares, _log_prob(new, part), old_log_prob)
            loss -= float(gain.sum())
            pair = (old, new) if self.options.kl_direction == "old_new" else (new, old)
            kl += float(shares @ kl_divergence(*pair))
        return loss, kl

    def _point(self, index: int, part: Batch) -> tuple[Linearisation, Callable[[Tensor], Tensor]]:
        if index in self.points:
            return self.points[index]
        point = linearise(self.network.layers, part.obs)
        at = self.network.at(point.outputs, part.action_mask)
        found = point, self.network.head.metric(at)
        if index < CACHED_CHUNKS:
            self.points[index] = found
        return found

    def _at(self, theta: Tensor) -> Network:
        """The network at ``theta`` ``[P]``; frozen tensors as they are."""
        views = self.parameters.split(theta)
        tensors = iter(
            [
                t.detach() if place is None else views[place]
                for t, place in zip(self.module_network.tensors(), self.places, strict=True)
            ]
        )
        log_std = None if self.module_network.log_std is None else next(tensors)
        layers = [
            layer._replace(weight=next(tensors), bias=None if layer.bias is None else next(tensors))
            for layer in self.module_network.layers
        ]
        return replace(self.module_network, layers=tuple(layers), log_std=log_std)

    def _tangents(self, v: Tensor) -> tuple[Tensor | None, list[Pair]]:
        """The parts of ``v`` ``[P]`` that belong to log_std and to each layer."""
        views = self.parameters.split(v)
        parts = iter([None if place is None else views[place] for place in self.places])
        log_std = None if self.network.log_std is None else next(parts)
        layers = self.network.layers
        return log_std, [(next(parts), None if l.bias is None else next(parts)) for l in layers]

    def _flatten(self, log_std: Tensor | None, pairs: Sequence[Pair]) -> Tensor:
        """``[P]`` from the parts; a part that is None is zero, an empty list all layers so."""
        pieces: list[Tensor | None] = [None] * len(self.parameters.tensors)
        parts: list[Tensor | None] = [] if self.network.log_std is None else [log_std]
        for layer, (weight, bias) in zip(self.network.layers, pairs, strict=bool(pairs)):
            parts += [weight] if layer.bias is None else [weight, bias]
        for place, part in zip(self.places, parts, strict=False):
            if place is not None:
                pieces[place] = None if part is None else part.to(self.parameters.dtype)
        return self.parameters.flatten(pieces)


def _chunks(batch: Batch) -> Iterator[tuple[Batch, Tensor]]:
    """Chunks of rows, each with its rows' shares ``w_n / sum(w)`` ``[n]`` in float64."""
    if batch.weights is None:
        shares = torch.full((1,), 1 / batch.rows, dtype=torch.float64, device=batch.obs.device)
        shares = shares.expand(batch.rows)
    else:
        shares = batch.weights.double()
        shares = shares / shares.sum()
    if batch.rows <= CHUNK_ROWS:
        yield batch, shares
        return
    for start in range(0, batch.rows, CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        yield batch_rows(batch, rows), shares[rows]


def _distribution(network: Network, outputs: Tensor, part: Batch) -> Distribution:
    """The policy in float64, in which a KL near 0 loses nothing that matters."""
    log_std = None if network.log_std_row is None else network.log_std_row.double()
    at = Outputs(outputs.double(), log_std, part.action_mask)
    return in_double(network.head.distribution(at))


def _log_prob(distribution: Distribution, part: Batch) -> Tensor:
    assert part.actions is not None  # noqa: S101
    log_prob: Tensor = distribution.log_prob(part.actions)
    return log_prob


def _gain(part: Batch, shares: Tensor, log_prob: Tensor, old_log_prob: Tensor) -> Tensor:
    """``[n]``, summing to the surrogate: w_n / sum(w) * ratio * advantage."""
    assert part.advantages is not None  # noqa: S101
    return shares * torch.exp(log_prob - old_log_prob) * part.advantages.double()


def _jvp(
    layers: Sequence[Layer], point: Linearisation, tangents: Sequence[Pair], rounding: Rounding
) -> Tensor:
    """``J v`` ``[n, outputs]``: the outputs' change along the layers' tangents."""
    a_dot: Tensor | None = None
    for layer, a, slope, (V, c) in zip(layers, point.inputs, point.slopes, tangents, strict=True):
        z_dot = torch.zeros_like(slope)
        if V is not None:
            z_dot = z_dot + rounding.matmul(a, V.T)
        if c is not None:
            z_dot = z_dot + c
        if a_dot is not None:
            z_dot = z_dot + rounding.matmul(a_dot, layer.weight.T)
        a_dot = rounding(slope) * z_dot
    assert a_dot is not None  # noqa: S101
    return a_dot


def _vjp(
    layers: Sequence[Layer], point: Linearisation, delta: Tensor, rounding: Rounding = EXACT
) -> list[Pair]:
    """``J' delta``, summed over rows, for each layer's weight and bias."""
    pairs: list[Pair] = []
    for index in reversed(range(len(layers))):
        delta = delta * rounding(point.slopes[index])
        gradient = rounding.matmul(delta.T, point.inputs[index])
        pairs.append((gradient, rounding(delta).sum(0)))
        if index > 0:
            delta = rounding.matmul(delta, layers[index].weight)
    return pairs[::-1]
