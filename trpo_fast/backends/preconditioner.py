"""Preconditioners of the solve: built from curvature statistics that outlive an update.

The exact Fisher product stays in conjugate gradients, so a preconditioner changes how fast they
get to the natural gradient and never where they go. That is why its statistics may be some updates
old and come from a share of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from trpo_fast.backends.kfac import (
    EIGEN_WIDTH,
    Block,
    EigenBases,
    Factors,
    LayerRows,
    damped_inverse,
    eigen_bases,
    eigen_block,
    factors_of,
    inverse_block,
    layer_rows,
)
from trpo_fast.batch import Batch, batch_rows
from trpo_fast.flat import FlatParameters, all_finite, strided_rows
from trpo_fast.network import Network
from trpo_fast.options import Options
from trpo_fast.threads import one_thread
from trpo_fast.trust_region import Problem

# Rows that the statistics are made of: with 512 an iteration of a 2x64 policy gains about a tenth
# less, with 8192 hardly more (docs/preconditioning.md).
STATISTICS_ROWS = 2048
# Most updates that use the same statistics: beyond, an iteration or two more are needed.
REFRESH = 5
# New statistics may cost so many products an update: they save one or two.
REFRESH_PRODUCTS = 0.5
# Products that K-FAC must save to pay for its statistics: of ten, four are usually left.
PAYS_BELOW = 4.0
# Flop of a product below which there is nothing to save: plain iterations take microseconds.
LEAST_FLOP = 1 << 24
# What factorising [m, m] costs, in m^3 of the products' flop: as measured for m = 64 and m = 1024.
EIGEN_FLOP, INVERSE_FLOP = 100, 8
AGE = "preconditioner_age"


class Place(NamedTuple):
    """Where a layer's stepped parameters start in the flat vector; None: absent or frozen."""

    weight: int | None
    bias: int | None
    inputs: int
    outputs: int

    @property
    def columns(self) -> int:
        """Of the layer's part as a matrix ``[outputs, columns]``, the bias last."""
        return self.inputs * (self.weight is not None) + (self.bias is not None)


@dataclass(eq=False)
class Preconditioner:
    """``M^-1``, symmetric and positive definite, for one damping.

    Attributes:
        diagonal: ``[P]``, for every entry that no block covers.
        blocks: Layers with a block of their own, and where they stand.
        packed: A backend's own layout of all this, kept with it.
    """

    diagonal: Tensor
    blocks: Sequence[tuple[Place, Block]] = ()
    packed: Any = None

    def apply(self, r: Tensor) -> Tensor:
        """``M^-1 r`` ``[P]``."""
        z = self.diagonal * r
        for at, block in self.blocks:
            columns = []
            if at.weight is not None:
                W = r[at.weight : at.weight + at.inputs * at.outputs]
                columns.append(W.view(at.outputs, at.inputs))
            if at.bias is not None:
                columns.append(r[at.bias : at.bias + at.outputs].unsqueeze(1))
            X = block.apply(torch.cat(columns, 1))
            if at.weight is not None:
                part = X[:, : at.inputs].reshape(-1)
                z[at.weight : at.weight + at.inputs * at.outputs] = part
            if at.bias is not None:
                z[at.bias : at.bias + at.outputs] = X[:, -1]
        return z


@runtime_checkable
class Preconditioned(Protocol):
    """A problem whose solve uses a preconditioner."""

    preconditioner: Preconditioner | None


@runtime_checkable
class KroneckerStatistics(Protocol):
    """A problem that computes K-FAC's factors itself."""

    def kronecker_factors(self, places: Mapping[int, Place], rows: int) -> list[Factors]:
        """The factors of the layers in ``places``, over that many evenly strided rows."""


def precondition(
    problem: Problem, curvature: Curvature, network: Network, batch: Batch, options: Options
) -> None:
    """Give the problem the preconditioner that the options ask for, at theta_old.

    Raises:
        ValueError: one is named that the problem's backend does not use.
    """
    kind = preconditioner_kind(options, network, batch.rows, lasts=curvature.lasts)
    if kind == "none":
        return
    if not isinstance(problem, Preconditioned):
        if options.preconditioner == "auto":
            return
        raise ValueError(
            f"preconditioner={kind!r} is not served by backend {problem.backend!r}; "
            "use preconditioner='auto'"
        )
    problem.preconditioner = curvature.preconditioner(
        kind, network, problem, batch, options.damping
    )


def preconditioner_kind(
    options: Options, network: Network, rows: int, *, lasts: bool = True
) -> str:
    """What "auto" stands for, "kfac" or "none", from sizes alone; a named one stands for itself.

    Args:
        options: Checked options.
        network: The recognised policy.
        rows: Of the batch.
        lasts: Whether statistics are kept for the next solves.
    """
    if options.preconditioner != "auto":
        return options.preconditioner
    if product_flop(network, rows) < LEAST_FLOP:
        return "none"
    interval = refresh_interval(network, rows) if lasts else 1
    return "kfac" if statistics_cost(network, rows) / interval <= PAYS_BELOW else "none"


def product_flop(network: Network, rows: int) -> int:
    """Of one Fisher product: two GEMM pairs a layer, the first layer needs half of one."""
    weights = [layer.weight.numel() for layer in network.layers]
    return rows * (8 * sum(weights) - 4 * weights[0])


def statistics_cost(network: Network, rows: int) -> float:
    """Of new statistics, in Fisher products; from sizes alone, never from the clock."""
    flop = 0
    for layer in network.layers:
        out, m = layer.weight.shape[0], layer.weight.shape[1] + 1
        each = INVERSE_FLOP if max(out, m) > EIGEN_WIDTH else EIGEN_FLOP
        flop += each * (out**3 + m**3)
        flop += min(rows, STATISTICS_ROWS) * (out * out + m * m + 4 * out * m)
    return flop / max(product_flop(network, rows), 1)


def refresh_interval(network: Network, rows: int) -> int:
    """Updates that use the same statistics."""
    return min(max(math.ceil(statistics_cost(network, rows) / REFRESH_PRODUCTS), 1), REFRESH)


def refuse_generic(options: Options, reason: str) -> None:
    """Raise ValueError where the generic path cannot do what the options name.

    Args:
        options: Checked options.
        reason: Why it is the generic path.
    """
    if options.preconditioner in ("diagonal", "kfac"):
        raise ValueError(
            f"preconditioner={options.preconditioner!r} is made layer by layer, of a policy that "
            f"is recognised as a perceptron, which this one is not: {reason}. "
            "Use preconditioner='auto'"
        )
    if options.precision in ("tf32", "bf16", "bf16x3"):
        raise ValueError(
            f"precision={options.precision!r} rounds what is multiplied layer by layer, in a "
            f"policy that is recognised as a perceptron, which this one is not: {reason}. "
            "Use precision='auto'"
        )


class Curvature:
    """The statistics and what was last made of them.

    Args:
        state: An optimizer's ``state``: what must survive in a state dict is kept there, by
            parameter. None for a single solve.
    """

    def __init__(self, state: MutableMapping[Tensor, Any] | None = None) -> None:
        self.lasts = state is not None
        self.state: MutableMapping[Tensor, Any] = {} if state is None else state
        self.bases: list[EigenBases | None] = []
        self.based_on: list[Factors] = []
        self.made: tuple[float, Preconditioner] | None = None

    def preconditioner(
        self, kind: str, network: Network, problem: Problem, batch: Batch, damping: float
    ) -> Preconditioner | None:
        """What the next solve uses; None where the statistics are not finite.

        Args:
            kind: "diagonal" or "kfac".
            network: The policy at theta_old.
            problem: Whose solve it is: the flat order, and perhaps a fast way to the statistics.
            batch: The update's rows, checked.
            damping: The solve's.
        """
        with torch.no_grad(), one_thread(_widest(network) <= EIGEN_WIDTH):
            if kind == "diagonal":
                return self._diagonal(network, problem.parameters, batch, damping)
            return self._kfac(network, problem, batch, damping)

    def _kfac(
        self, network: Network, problem: Problem, batch: Batch, damping: float
    ) -> Preconditioner | None:
        parameters = problem.parameters
        places = _places(network, parameters)

        def compute() -> Sequence[tuple[Tensor, ...]]:
            if isinstance(problem, KroneckerStatistics):
                return problem.kronecker_factors(places, STATISTICS_ROWS)
            rows = layer_rows(network, _statistics_batch(batch))
            return [
                factors_of(rows[index], weight=at.weight is not None, bias=at.bias is not None)
                for index, at in places.items()
            ]

        keys = [_key(network, index, at) for index, at in places.items()]
        shapes = [((at.columns, at.columns), (at.outputs, at.outputs)) for at in places.values()]
        interval = refresh_interval(network, batch.rows)
        found = self._statistics(interval, keys, ("kfac_A", "kfac_G"), shapes, compute)
        if found is None:
            return None
        factors = [Factors(*pair) for pair in found]
        try:
            return self._from_factors(factors, places, network, parameters, damping)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return None

    def _from_factors(
        self,
        factors: list[Factors],
        places: dict[int, Place],
        network: Network,
        parameters: FlatParameters,
        damping: float,
    ) -> Preconditioner:
        same = len(factors) == len(self.based_on) and all(
            new.A is old.A and new.G is old.G
            for new, old in zip(factors, self.based_on, strict=True)
        )
        if not same:
            self.bases, self.based_on, self.made = [eigen_bases(f) for f in factors], factors, None
        if self.made is None or self.made[0] != damping:
            blocks = [
                inverse_block(f, damping) if bases is None else eigen_block(bases, damping)
                for f, bases in zip(factors, self.bases, strict=True)
            ]
            diagonal = _rest(network, parameters, damping)
            made = Preconditioner(diagonal, list(zip(places.values(), blocks, strict=True)))
            self.made = damping, made
        return self.made[1]

    def _diagonal(
        self, network: Network, parameters: FlatParameters, batch: Batch, damping: float
    ) -> Preconditioner | None:
        places = _places(network, parameters)

        def compute() -> Sequence[tuple[Tensor, ...]]:
            rows = layer_rows(network, _statistics_batch(batch))
            return [(_layer_diagonal(rows[index], at),) for index, at in places.items()]

        keys = [_key(network, index, at) for index, at in places.items()]
        shapes = [((at.outputs, at.columns),) for at in places.values()]
        interval = refresh_interval(network, batch.rows)
        found = self._statistics(interval, keys, ("fisher_diagonal",), shapes, compute)
        if found is None:
            return None
        inverse = _rest(network, parameters, damping)
        for at, (F,) in zip(places.values(), found, strict=True):
            M = damped_inverse(F, damping)
            if at.weight is not None:
                part = M[:, : at.inputs].reshape(-1)
                inverse[at.weight : at.weight + at.inputs * at.outputs] = part
            if at.bias is not None:
                inverse[at.bias : at.bias + at.outputs] = M[:, -1]
        return Preconditioner(inverse)

    def _statistics(
        self,
        interval: int,
        keys: list[Tensor],
        names: tuple[str, ...],
        shapes: Sequence[tuple[tuple[int, ...], ...]],
        compute: Callable[[], Sequence[tuple[Tensor, ...]]],
    ) -> list[tuple[Tensor, ...]] | None:
        """Those in the state while they are young, else new ones; None if not finite."""
        entries = [self.state.get(key, {}) for key in keys]
        young = all(
            0 < entry.get(AGE, 0) < interval
            and all(
                isinstance(entry.get(name), Tensor) and tuple(entry[name].shape) == shape
                for name, shape in zip(names, wanted, strict=True)
            )
            for entry, wanted in zip(entries, shapes, strict=True)
        )
        if not young:
            found = compute()
            if not all(all_finite(t) for pair in found for t in pair):
                for key in keys:
                    self.state.pop(key, None)
                return None
            for key, pair in zip(keys, found, strict=True):
                self.state[key] = {AGE: 0, **dict(zip(names, pair, strict=True))}
            entries = [self.state[key] for key in keys]
        for entry in entries:
            entry[AGE] += 1
        return [tuple(entry[name] for name in names) for entry in entries]


def _statistics_batch(batch: Batch) -> Batch:
    if batch.rows <= STATISTICS_ROWS:
        return batch
    share = STATISTICS_ROWS / batch.rows
    return batch_rows(batch, strided_rows(batch.rows, share, batch.obs.device))


def _places(network: Network, parameters: FlatParameters) -> dict[int, Place]:
    """The layers with stepped parameters, by their index."""
    starts = [0, *accumulate(parameters.sizes)]

    def start(tensor: Tensor | None) -> int | None:
        place = None if tensor is None else parameters.place.get(id(tensor))
        return None if place is None else starts[place]

    places = {}
    for index, layer in enumerate(network.layers):
        outputs, inputs = layer.weight.shape
        at = Place(start(layer.weight), start(layer.bias), inputs, outputs)
        if at.weight is not None or at.bias is not None:
            places[index] = at
    return places


def _key(network: Network, index: int, at: Place) -> Tensor:
    """The parameter under which a layer's statistics are kept."""
    layer = network.layers[index]
    tensor = layer.weight if at.weight is not None else layer.bias
    assert tensor is not None  # noqa: S101
    return tensor


def _layer_diagonal(rows: LayerRows, at: Place) -> Tensor:
    """The layer's diagonal of F ``[out, m]``: the mean of e^2 a^2 over the rows of one draw."""
    share = rows.ones.square()  # both factors carry the root of the row's share
    parts = [(rows.inputs / rows.ones).square()] if at.weight is not None else []
    parts += [torch.ones_like(share)] if at.bias is not None else []
    return rows.gradients.square().T @ torch.cat(parts, 1)


def _rest(network: Network, parameters: FlatParameters, damping: float) -> Tensor:
    """``M^-1`` ``[P]`` outside the layers: log_std's block of F is 2 I, that of others 0."""
    size = sum(parameters.sizes)
    inverse = torch.full(
        (size,), 1 / (damping or 1.0), dtype=parameters.dtype, device=parameters.device
    )
    place = None if network.log_std is None else parameters.place.get(id(network.log_std))
    if place is not None:
        start = sum(parameters.sizes[:place])
        inverse[start : start + parameters.sizes[place]] = 1 / (2 + damping)
    return inverse


def _widest(network: Network) -> int:
    return max(max(layer.weight.shape) for layer in network.layers)
