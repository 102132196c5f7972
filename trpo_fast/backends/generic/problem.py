"""The update's parts for any module or closure, through autograd.

The Fisher product is that of ``linearization``. One linearisation is kept for the whole solve; a
batch too large for that is linearised chunk by chunk, again at each product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from trpo_fast.backends.generic.convolutions import Convolutions
from trpo_fast.backends.generic.linearization import Linearization, linearize, slopes_of
from trpo_fast.backends.generic.staleness import Made, made_by, refuse_stale
from trpo_fast.base.tensors import strided_rows, weighted_mean
from trpo_fast.networks.distribution_parts import refuse_wrong_kl
from trpo_fast.networks.distributions import detached, in_double
from trpo_fast.networks.joint import MissingKlError
from trpo_fast.update.conjugate_gradient import conjugate_gradient
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters
from trpo_fast.update.result import Solution

Rows = tuple[Distribution, Tensor | None]  # distribution and weights of some rows
CANDIDATE_REFUSED = ("to satisfy the constraint", "to be within the support")
NOISE = 1e-6  # a KL(theta, theta) that rounding explains, in nats


class ModelCall(NamedTuple):
    """What one call of the model gave: a scalar loss, the distribution, weights or None."""

    loss: Tensor
    distribution: Distribution
    weights: Tensor | None


class Term(NamedTuple):
    """A share of the batch: the whole loss is ``sum(share * loss)`` over the terms.

    ``rows`` gives the same distribution without a loss, as often as is wanted; None where ``call``
    is a closure, whose number of calls is promised.
    """

    call: Callable[[], ModelCall]
    share: float
    rows: Callable[[], Rows] | None = None


class FisherTerm(NamedTuple):
    """A share of the rows that the Fisher matrix is made of."""

    call: Callable[[], Rows]
    share: float


class GenericProblem:
    """A ``trust_region.Problem`` on autograd.

    Args:
        parameters: The flat order.
        options: Checked options.
        terms: The batch in shares; a closure is one term. None where only products are needed.
        fisher_terms: The Fisher's rows in shares; None takes the rows of the only term, strided
            by ``fisher_fraction``, without another call.
        by_dependence: Step only the parameters that the distribution depends on; otherwise those
            that the loss alone depends on too.
    """

    backend = "generic"

    def __init__(
        self,
        parameters: FlatParameters,
        options: Options,
        terms: Sequence[Term] = (),
        fisher_terms: Sequence[FisherTerm] | None = None,
        *,
        by_dependence: bool = True,
    ) -> None:
        self.parameters, self.options = parameters, options
        self.terms, self.fisher_terms = terms, fisher_terms
        self.by_dependence = by_dependence
        self.theta = parameters.start
        self.old: list[Distribution] = []  # each term's distribution at theta_old, in float64
        self._first: list[dict[int, Made]] = []  # what each term's call made there
        self.kept: Linearization | None = None  # of a single Fisher term
        self._convolutions = Convolutions()
        self._rows: tuple[int, Tensor | None] = (0, None)  # of the last term

    def surrogate_gradient(self) -> tuple[float, Tensor]:
        """The loss at theta_old, and minus its gradient ``[P]``.

        Raises:
            ValueError: the model gives another distribution at a second call.
        """
        self.old, loss, g = [], 0.0, torch.zeros_like(self.theta)
        self._first = []
        tensors, keep = self.parameters.tensors, self.fisher_terms is None
        used = [False] * len(tensors)
        for term in self.terms:
            with torch.enable_grad():
                with self._convolutions:
                    found = term.call()
                self._first.append(made_by(found.loss, found.distribution))
                rows = (found.distribution, found.weights)
                linear = self._linearize(rows) if keep else None
                by_kl = _depends_on(found.distribution, tensors) if linear is None else linear.used
                loss_slopes = slopes_of(term.share * found.loss, tensors, retain=keep)
            for index, by_loss in enumerate(loss_slopes):
                dependent = by_kl[index] or (by_loss is not None and not self.by_dependence)
                used[index] = used[index] or dependent
            self.kept = linear
            self._rows = math.prod(found.distribution.batch_shape), found.weights
            self.old.append(in_double(detached(found.distribution)))
            loss += term.share * float(found.loss.detach())
            g -= self.parameters.flatten(loss_slopes)
        self._check_repeatable()
        self.parameters.used = used
        for view, is_used in zip(self.parameters.split(g), used, strict=True):
            if not is_used:
                view.zero_()
        return loss, g

    def weights(self) -> tuple[float, float]:
        """Sums of weights of the only term's rows, and of those of the Fisher matrix.

        After ``surrogate_gradient``; a row without a weight counts as 1.
        """
        return _sums_of_weights(*self._rows, self.options.fisher_fraction)

    def solve(self, g: Tensor, options: Options) -> Solution:
        """Conjugate gradients on ``fisher_product``."""
        o = options
        return conjugate_gradient(
            self.fisher_product, g, damping=o.damping, iters=o.cg_iters, tol=o.cg_tol
        )

    def fisher_product(self, v: Tensor) -> Tensor:
        """``F v`` ``[P]``, without damping, over the Fisher's share of the rows."""
        if self.kept is None and self.fisher_terms is None:
            self.surrogate_gradient()
        if self.kept is not None:
            return self.kept.product(v)
        terms = self.fisher_terms or []
        total = torch.zeros_like(v)
        for term in terms:
            with torch.enable_grad(), self._convolutions:
                rows = term.call()
            linear = self._linearize(rows, strided=False)
            if len(terms) == 1:
                self.kept = linear
            total.add_(linear.product(v), alpha=term.share)
        return total

    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        """Loss and mean KL at ``theta`` ``[P]``; the parameters are put back, bit for bit."""
        loss = kl = 0.0
        try:
            self.parameters.write(theta)
            with torch.no_grad():
                for term, old, first in zip(self.terms, self.old, self._first, strict=True):
                    found = term.call()
                    refuse_stale(first, made_by(found.loss, found.distribution))
                    loss += term.share * float(found.loss)
                    new = in_double(found.distribution)
                    hard = self.options.kl_direction == "old_new"
                    rows = _kl_values(*((old, new) if hard else (new, old)))
                    kl += term.share * float(weighted_mean(rows, found.weights))
        except ValueError as error:
            # torch's own checks: of a distribution's parameters (the candidate is not finite), and
            # of the actions, which a support that moves with the parameters may lose.
            if not any(text in str(error) for text in CANDIDATE_REFUSED):
                raise
            return float("nan"), float("nan")
        finally:
            self.parameters.write(self.theta)
        return loss, kl

    def _linearize(self, rows: Rows, *, strided: bool = True) -> Linearization:
        distribution, weights = rows
        old = in_double(detached(distribution))
        fraction = self.options.fisher_fraction if strided else 1.0
        with torch.enable_grad():
            return linearize(
                distribution,
                lambda new: _mean_kl(old, new, weights, fraction),
                self.parameters,
                self._convolutions,
            )

    @torch.no_grad()
    def _check_repeatable(self) -> None:
        """KL(theta_old, theta_old) = 0, or else the line search would compare noise with noise."""
        for term, old in zip(self.terms[:1], self.old, strict=False):
            if term.rows is None:
                return
            again, weights = term.rows()
            kl = float(weighted_mean(_kl_values(old, in_double(again)), weights))
            if kl > max(NOISE, 1e-2 * self.options.max_kl):
                raise ValueError(
                    f"the policy gives another distribution each time it is called: "
                    f"KL(theta, theta) = {kl:.3g}, and it must be 0. Noise that eval mode does not "
                    "switch off has no trust region; draw it outside forward and pass it in obs, "
                    "or keep what torch's generator draws the same by noise='fixed'"
                )


def _depends_on(distribution: Distribution, tensors: Sequence[Tensor]) -> list[bool]:
    """Whether a distribution depends on each of the tensors."""
    slopes = slopes_of(
        _mean_kl(detached(distribution), distribution, None, 1.0), tensors, retain=True
    )
    return [slope is not None for slope in slopes]


def _kl_values(p: Distribution, q: Distribution) -> Tensor:
    """KL(p, q) ``[N]``, without a graph."""
    with torch.enable_grad():  # torch differentiates the normaliser of some families for it
        return kl_divergence(p, q).detach()


def _mean_kl(
    old: Distribution, new: Distribution, weights: Tensor | None, fraction: float
) -> Tensor:
    """Mean of KL(old, new) over the rows, or over an evenly strided fraction of them.

    Raises:
        NotImplementedError: torch has no KL registered for the type, or a wrong one.
        ValueError: the new distribution has no graph, or the weights are not one for each row.
    """
    try:
        kl = kl_divergence(old, new)
    except NotImplementedError as error:
        name = str(error) if isinstance(error, MissingKlError) else type(new).__name__
        raise NotImplementedError(
            f"no KL divergence is registered for {name}; register one with "
            "torch.distributions.register_kl"
        ) from error
    refuse_wrong_kl(new, known=kl.requires_grad)
    if not kl.requires_grad:
        raise ValueError(
            "the distribution does not depend on any of the parameters; give the optimizer "
            "the policy's parameters, and do not call forward under no_grad or detach"
        )
    if weights is not None and weights.shape != kl.shape:
        shapes = f"{tuple(weights.shape)}, the distribution batch_shape {tuple(kl.shape)}"
        raise ValueError(f"weights have shape {shapes}; they must be equal")
    if fraction < 1:
        kl = kl.flatten()
        kept = _fisher_rows(len(kl), weights, fraction, kl.device)
        kl, weights = kl[kept], None if weights is None else weights.flatten()[kept]
    return weighted_mean(kl, weights)


def _fisher_rows(
    rows: int, weights: Tensor | None, fraction: float, device: torch.device
) -> Tensor:
    """The evenly strided fraction of the rows of a weight above 0."""
    kept = torch.arange(rows, device=device)
    if weights is not None:
        kept = kept[weights.flatten() > 0]
    return kept[strided_rows(len(kept), fraction, device)]


def _sums_of_weights(count: int, weights: Tensor | None, fraction: float) -> tuple[float, float]:
    """Over all rows, and over the Fisher's."""
    flat = torch.ones(count, dtype=torch.float64) if weights is None else weights.double().flatten()
    kept = _fisher_rows(count, weights, fraction, flat.device)
    return float(flat.sum()), float(flat[kept].sum())


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
