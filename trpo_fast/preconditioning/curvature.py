"""Curvature statistics that outlive an update, and the preconditioners made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trpo_fast.base.tensors import all_finite, strided_rows
from trpo_fast.base.threads import one_thread
from trpo_fast.networks.network import Network
from trpo_fast.preconditioning.cost import (
    INPUT_ROWS,
    OUTPUT_ROWS,
    refresh_interval,
    widest,
)
from trpo_fast.preconditioning.kfac import (
    EIGEN_WIDTH,
    Block,
    EigenBasis,
    Factors,
    LayerRows,
    balance,
    cholesky_inverse,
    damped_inverse,
    eigen_basis,
    eigen_block,
    factored_damping,
    input_moment,
    input_rows,
    layer_rows,
    output_moment,
    too_wide,
)
from trpo_fast.preconditioning.preconditioner import (
    KroneckerStatistics,
    Place,
    Preconditioned,
    Preconditioner,
    places_of,
)
from trpo_fast.preconditioning.shared_statistics import SharedStatistics, part_of
from trpo_fast.update.batch import Batch, batch_rows
from trpo_fast.update.damping import absolute, curvature_along
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters
from trpo_fast.update.share import Sample, SharedProblem, sum_together
from trpo_fast.update.trust_region import Problem

AGE = "preconditioner_age"


def precondition(
    problem: Preconditioned, curvature: Curvature, network: Network, batch: Batch, options: Options
) -> Options:
    """Give the problem the preconditioner that the options ask for, at theta_old.

    "auto" is K-FAC where the backend may choose it; where it does not pay, ``problem_of`` has made
    it "none".

    Returns:
        The options as the update is to take them: with a damping that is absolute.
    """
    kind = options.preconditioner
    if kind == "auto":
        kind = "kfac" if problem.gains_known else "none"
    if options.relative_damping:
        with _quietly(network, problem):
            options = absolute(options, _curvature_along_gradient(problem, batch))
    if kind != "none":
        found = curvature.preconditioner(
            kind, network, problem, batch, options.damping, options.fisher_fraction
        )
        if batch.share is not None and not batch.share.ranks.everywhere(found is not None):
            found = None
        problem.preconditioner = found
    return options


def _curvature_along_gradient(problem: Problem, batch: Batch) -> float:
    """Over the rows of all ranks."""
    share = batch.share
    whole = problem if share is None else SharedProblem(problem, share.ranks, share)
    g = whole.surrogate_gradient()[1]
    return curvature_along(g, whole.fisher_product, float if share is None else share.ranks.agreed)


class LayerFactors(NamedTuple):
    """K-FAC's statistics of one layer, for one update."""

    at: Place
    factors: Factors
    pi: Tensor  # [], see ``balance``


@contextmanager
def _quietly(network: Network, problem: Problem) -> Iterator[None]:
    """Without gradients, on one of torch's threads where that is enough.

    The others would spin for a while after their work, at the cost of a native problem's.
    """
    native = isinstance(problem, KroneckerStatistics)
    with torch.no_grad(), one_thread(native or widest(network) <= EIGEN_WIDTH):
        yield


class Curvature:
    """The statistics and what was last made of them.

    Args:
        state: An optimizer's ``state``: what must survive in a state dict is kept there, by
            parameter. None for a single solve.
    """

    def __init__(self, state: MutableMapping[Tensor, Any] | None = None) -> None:
        self.lasts = state is not None
        self.state: MutableMapping[Tensor, Any] = {} if state is None else state
        # Made of each layer's G: its basis, or its inverse and the damping in that.
        self.made_of: list[Tensor] = []
        self.made: list[EigenBasis | tuple[float, Tensor] | None] = []

    def preconditioner(
        self,
        kind: str,
        network: Network,
        problem: Problem,
        batch: Batch,
        damping: float,
        fisher_fraction: float = 1.0,
    ) -> Preconditioner | None:
        """What the next solve uses; None where the statistics are not finite.

        Args:
            kind: "diagonal" or "kfac".
            network: The policy at theta_old.
            problem: Whose solve it is: the flat order, and perhaps a fast way to the statistics.
            batch: The update's rows, checked.
            damping: The solve's.
            fisher_fraction: Share of the rows that the Fisher matrix is made of.
        """
        with _quietly(network, problem):
            if kind == "diagonal":
                return self._diagonal(network, problem.parameters, batch, damping)
        factors = self.factors(network, problem, batch, fisher_fraction)
        if factors is None:
            return None
        with _quietly(network, problem):
            return self._kfac(network, problem, batch, damping, fisher_fraction, factors)

    def factors(
        self, network: Network, problem: Problem, batch: Batch, fisher_fraction: float = 1.0
    ) -> list[LayerFactors] | None:
        """K-FAC's factors of every stepped layer, for one update; None where not finite."""
        places = places_of(network, problem.parameters)
        source = statistics_of(problem, network, batch, fisher_fraction)
        if batch.share is not None:
            source = SharedStatistics(source, batch.share)
        with _quietly(network, problem):
            return self._factors(network, places, source, batch.all_rows)

    def _factors(
        self,
        network: Network,
        places: Mapping[int, Place],
        source: KroneckerStatistics,
        rows: int,
    ) -> list[LayerFactors] | None:
        inputs = source.input_moments(places, INPUT_ROWS)
        if not all(all_finite(A) for A in inputs):
            return None

        def compute() -> Sequence[tuple[Tensor, ...]]:
            outputs = source.output_moments(places, OUTPUT_ROWS)
            return [(G, balance(Factors(A, G))) for A, G in zip(inputs, outputs, strict=True)]

        keys = [_key(network, index, at) for index, at in places.items()]
        shapes = [((at.outputs, at.outputs), ()) for at in places.values()]
        interval = refresh_interval(network, rows)
        found = self._statistics(interval, keys, ("kfac_G", "kfac_pi"), shapes, compute)
        if found is None:
            return None
        return [
            LayerFactors(at, Factors(A, G), pi)
            for at, A, (G, pi) in zip(places.values(), inputs, found, strict=True)
        ]

    def _kfac(
        self,
        network: Network,
        problem: Problem,
        batch: Batch,
        damping: float,
        fisher_fraction: float,
        factors: Sequence[LayerFactors],
    ) -> Preconditioner | None:
        source = statistics_of(problem, network, batch, fisher_fraction)
        if [id(layer.factors.G) for layer in factors] != [id(G) for G in self.made_of]:
            self.made_of, self.made = [layer.factors.G for layer in factors], [None] * len(factors)
        try:
            blocks = [
                (layer.at, self._block(index, layer.factors, layer.pi, damping, source))
                for index, layer in enumerate(factors)
            ]
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return None
        return Preconditioner(_rest(network, problem.parameters, damping), blocks)

    def _block(
        self,
        index: int,
        factors: Factors,
        pi: Tensor,
        damping: float,
        source: KroneckerStatistics,
    ) -> Block:
        """A layer's, with what was made of the same G before."""
        kept = self.made[index]
        if not too_wide(factors):
            basis = kept if isinstance(kept, EigenBasis) else eigen_basis(factors.G)
            self.made[index] = basis
            return eigen_block(basis, eigen_basis(factors.A), damping)
        to_A, to_G = factored_damping(factors, pi, damping)
        if kept is None or isinstance(kept, EigenBasis) or kept[0] != to_G:
            kept = to_G, source.inverse(factors.G, to_G)
        self.made[index] = kept
        return Block(kept[1], source.inverse(factors.A, to_A), None)

    def _diagonal(
        self, network: Network, parameters: FlatParameters, batch: Batch, damping: float
    ) -> Preconditioner | None:
        places = places_of(network, parameters)

        def compute() -> Sequence[tuple[Tensor, ...]]:
            share = batch.share
            sample = Sample(OUTPUT_ROWS, 0) if share is None else share.sample(OUTPUT_ROWS)
            rows = layer_rows(network, _some(batch, sample.rows), sample.first)
            found = [_layer_diagonal(rows[index], at) for index, at in places.items()]
            if share is not None:
                found = sum_together(share.ranks, [part_of(F, share.all) for F in found])
            return [(F,) for F in found]

        keys = [_key(network, index, at) for index, at in places.items()]
        shapes = [((at.outputs, at.columns),) for at in places.values()]
        interval = refresh_interval(network, batch.all_rows)
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
                _fits(entry.get(name), shape, key)
                for name, shape in zip(names, wanted, strict=True)
            )
            for entry, wanted, key in zip(entries, shapes, keys, strict=True)
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


def _fits(statistic: object, shape: tuple[int, ...], key: Tensor) -> bool:
    """Whether a kept statistic is one of the parameter ``key`` as it is now."""
    return (
        isinstance(statistic, Tensor)
        and tuple(statistic.shape) == shape
        and statistic.dtype is key.dtype
        and statistic.device == key.device
    )


class _TorchStatistics(KroneckerStatistics):
    """The factors of any problem, in plain torch."""

    def __init__(self, network: Network, batch: Batch, fisher_fraction: float) -> None:
        self.network, self.batch = network, batch
        self.fisher_fraction = fisher_fraction

    def input_moments(self, places: Mapping[int, Place], rows: int) -> list[Tensor]:
        found = input_rows(self.network, _some(_share(self.batch, self.fisher_fraction), rows))
        return [
            input_moment(found[index], weight=at.weight is not None, bias=at.bias is not None)
            for index, at in places.items()
        ]

    def output_moments(
        self, places: Mapping[int, Place], rows: int, first: int = 0
    ) -> list[Tensor]:
        found = layer_rows(self.network, _some(self.batch, rows), first)
        return [output_moment(found[index]) for index in places]

    def inverse(self, factor: Tensor, damping: float) -> Tensor:
        return cholesky_inverse(factor, damping)


def statistics_of(
    problem: Problem, network: Network, batch: Batch, fisher_fraction: float
) -> KroneckerStatistics:
    """Where K-FAC's factors come from: the problem itself, or plain torch."""
    if isinstance(problem, KroneckerStatistics):
        return problem
    return _TorchStatistics(network, batch, fisher_fraction)


def _some(batch: Batch, rows: int) -> Batch:
    """At most so many of the rows, evenly strided."""
    return batch if batch.rows <= rows else _share(batch, rows / batch.rows)


def _share(batch: Batch, fraction: float) -> Batch:
    if fraction == 1.0:
        return batch
    return batch_rows(batch, strided_rows(batch.rows, fraction, batch.obs.device))


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
    inverse = torch.full(
        (parameters.count,),
        min(1 / (damping or 1.0), torch.finfo(parameters.dtype).max),
        dtype=parameters.dtype,
        device=parameters.device,
    )
    start = parameters.offset_of(network.log_std)
    if network.log_std is not None and start is not None:
        inverse[start : start + network.log_std.numel()] = 1 / (2 + damping)
    return inverse
