"""The update's parts for any module or closure, through autograd.

The Fisher product is Pearlmutter's Hessian-vector product of the mean KL at theta_old, where the
KL's gradient is 0 and its Hessian is the Fisher matrix (Schulman et al. 2015, appendix C.1). One
linearisation is kept for the whole solve; a batch too large for that is linearised chunk by chunk,
again at each product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from trpo_fast.distributions import detached, in_double
from trpo_fast.flat import FlatParameters, strided_rows, weighted_mean
from trpo_fast.options import Options
from trpo_fast.trust_region import Solution, conjugate_gradient

Rows = tuple[Distribution, Tensor | None]  # distribution and weights of some rows


class Evaluation(NamedTuple):
    """What one call of the model gave: a scalar loss, the distribution, weights or None."""

    loss: Tensor
    distribution: Distribution
    weights: Tensor | None


class Term(NamedTuple):
    """A share of the batch: the whole loss is ``sum(share * loss)`` over the terms."""

    call: Callable[[], Evaluation]
    share: float


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
        self.kl_slopes: list[Tensor | None] | None = None  # of a single Fisher term, graph kept

    def gradient(self) -> tuple[float, Tensor]:
        """The loss at theta_old, and minus its gradient ``[P]``."""
        self.old, loss, g = [], 0.0, torch.zeros_like(self.theta)
        tensors, keep = self.parameters.tensors, self.fisher_terms is None
        used = [False] * len(tensors)
        for term in self.terms:
            with torch.enable_grad():
                found = term.call()
                rows = (found.distribution, found.weights)
                kl_slopes = _slopes(
                    self._mean_kl(rows, strided=keep), tensors, retain=True, twice=keep
                )
                loss_slopes = _slopes(term.share * found.loss, tensors, retain=keep)
            for index, (by_kl, by_loss) in enumerate(zip(kl_slopes, loss_slopes, strict=True)):
                dependent = by_kl is not None or (by_loss is not None and not self.by_dependence)
                used[index] = used[index] or dependent
            if keep:
                self.kl_slopes = kl_slopes
            self.old.append(in_double(detached(found.distribution)))
            loss += term.share * float(found.loss.detach())
            g -= self.parameters.flatten(loss_slopes)
        self.parameters.used = used
        for view, is_used in zip(self.parameters.split(g), used, strict=True):
            if not is_used:
                view.zero_()
        return loss, g

    def solve(self, g: Tensor, options: Options) -> Solution:
        """Conjugate gradients on ``fisher_product``."""
        o = options
        return conjugate_gradient(
            self.fisher_product,
            g,
            damping=o.damping,
            iters=o.cg_iters,
            tol=o.cg_tol,
            progress_tol=o.cg_progress_tol,
        )

    def fisher_product(self, v: Tensor) -> Tensor:
        """``F v`` ``[P]``, without damping, over the Fisher's share of the rows."""
        if self.kl_slopes is None and self.fisher_terms is None:
            self.gradient()
        if self.kl_slopes is not None:
            return self._hessian_product(self.kl_slopes, v)
        terms = self.fisher_terms or []
        total = torch.zeros_like(v)
        for term in terms:
            with torch.enable_grad():
                mean_kl = self._mean_kl(term.call(), strided=False)
                slopes = _slopes(mean_kl, self.parameters.tensors, twice=True)
            if len(terms) == 1:
                self.kl_slopes = slopes
            total.add_(self._hessian_product(slopes, v), alpha=term.share)
        return total

    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        """Loss and mean KL at ``theta`` ``[P]``; the parameters are put back, bit for bit."""
        loss = kl = 0.0
        try:
            self.parameters.write(theta)
            with torch.no_grad():
                for term, old in zip(self.terms, self.old, strict=True):
                    found = term.call()
                    loss += term.share * float(found.loss)
                    new = in_double(found.distribution)
                    hard = self.options.kl_direction == "old_new"
                    rows = kl_divergence(*((old, new) if hard else (new, old)))
                    kl += term.share * float(weighted_mean(rows, found.weights))
        except RuntimeError as error:
            if "does not require grad" in str(error):
                error.add_note("Candidates are tried under no_grad: a closure calls no backward().")
            raise
        except ValueError as error:
            # torch's own check of a distribution's parameters: the candidate is not finite.
            if "to satisfy the constraint" not in str(error):
                raise
            return float("nan"), float("nan")
        finally:
            self.parameters.write(self.theta)
        return loss, kl

    def _mean_kl(self, rows: Rows, *, strided: bool) -> Tensor:
        """Mean of KL(old, new) at new = old, with its graph to the parameters."""
        distribution, weights = rows
        try:
            kl = kl_divergence(detached(distribution), distribution)
        except NotImplementedError as error:
            name = type(distribution).__name__
            raise NotImplementedError(
                f"no KL divergence is registered for {name}; register one with "
                "torch.distributions.register_kl"
            ) from error
        if not kl.requires_grad:
            raise ValueError(
                "the distribution does not depend on any of the parameters; give the optimizer "
                "the policy's parameters, and do not call forward under no_grad or detach"
            )
        if weights is not None and weights.shape != kl.shape:
            shapes = f"{tuple(weights.shape)}, the distribution batch_shape {tuple(kl.shape)}"
            raise ValueError(f"weights have shape {shapes}; they must be equal")
        if strided and self.options.fisher_fraction < 1:
            kl = kl.flatten()
            kept = torch.arange(len(kl), device=kl.device)
            if weights is not None:
                weights = weights.flatten()
                kept = kept[weights > 0]
            kept = kept[strided_rows(len(kept), self.options.fisher_fraction, kl.device)]
            kl, weights = kl[kept], None if weights is None else weights[kept]
        return weighted_mean(kl, weights)

    def _hessian_product(self, slopes: Sequence[Tensor | None], v: Tensor) -> Tensor:
        pairs = [
            (slope, part)
            for slope, part in zip(slopes, self.parameters.split(v), strict=True)
            if slope is not None and slope.requires_grad
        ]
        if not pairs:
            return torch.zeros_like(v)
        try:
            products = torch.autograd.grad(
                [slope for slope, _ in pairs],
                self.parameters.tensors,
                [part for _, part in pairs],
                retain_graph=True,
                allow_unused=True,
            )
        except RuntimeError as error:
            if "double backward" not in str(error):
                raise
            raise RuntimeError(
                "the model cannot be differentiated twice, which the Fisher product needs; "
                "call the uncompiled model in the closure, and switch fused kernels off"
            ) from error
        return self.parameters.flatten(products)


def _slopes(
    value: Tensor, tensors: Sequence[Tensor], *, retain: bool = False, twice: bool = False
) -> list[Tensor | None]:
    """Derivatives of a scalar; None where it does not depend on a tensor."""
    if not value.requires_grad:
        return [None] * len(tensors)
    return list(
        torch.autograd.grad(
            value, tensors, retain_graph=retain or twice, create_graph=twice, allow_unused=True
        )
    )
