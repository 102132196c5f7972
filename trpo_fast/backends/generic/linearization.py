"""Fisher products of some rows through any model, from one linearisation kept for the whole solve.

``F v = J' M J v``: J is the derivative of the tensors that the distribution is made of, M the
Hessian of the mean KL in those tensors. J is the model's part and M costs next to nothing, so a
product is one sweep forward and one backward. Differentiating the mean KL twice instead
(Schulman et al. 2015, appendix C.1) gives the same product and carries second derivatives of the
model along that are multiplied by the KL's gradient, which is 0.

``J v`` comes from reverse mode twice: ``u -> J'u`` is linear, and the derivative of ``(J'u).v`` in
u is ``J v``. Convolutions need help for that to be cheap (``convolutions``).
docs/generic-models.md has the measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution

from trpo_fast.backends.generic.convolutions import Convolutions
from trpo_fast.networks.distribution_parts import parts_of
from trpo_fast.networks.distributions import in_double
from trpo_fast.update.parameters import FlatParameters

MeanKl = Callable[[Distribution], Tensor]  # KL(old, .) averaged over the rows
_NOT_TWICE = (
    "the model cannot be differentiated twice, which the Fisher product needs; "
    "call the uncompiled model in the closure, and switch fused kernels off"
)


class Linearization(Protocol):
    """The Fisher matrix of some rows at theta_old."""

    used: list[bool]  # whether the distribution depends on each parameter

    def product(self, v: Tensor) -> Tensor:
        """``F v`` ``[P]``."""


def linearize(
    distribution: Distribution,
    mean_kl: MeanKl,
    parameters: FlatParameters,
    convolutions: Convolutions | None = None,
) -> Linearization:
    """The linearisation that is fastest for the distribution.

    Args:
        distribution: Of the rows, with its graph to the parameters.
        mean_kl: The mean of KL(old, new) over the rows, for a new distribution of the same type.
        parameters: The flat order.
        convolutions: What was entered while the distribution was made, if anything was.
    """
    parts = parts_of(distribution)
    if parts is None:
        return KlHessian(mean_kl(distribution), parameters)
    kept = [t.requires_grad for t in parts.tensors]
    outputs = [t for t in parts.tensors if t.requires_grad]

    def make(tensors: Sequence[Tensor]) -> Distribution:
        given = iter(tensors)
        pairs = zip(parts.tensors, kept, strict=True)
        return parts.make([next(given) if is_kept else t for t, is_kept in pairs])

    fisher = OutputFisher(outputs, lambda tensors: mean_kl(in_double(make(tensors))))
    with nullcontext() if convolutions is None else convolutions.recorded():
        return ReverseTwice(outputs, fisher, parameters)


class OutputFisher:
    """M: the Hessian of the mean KL in the tensors that a distribution is made of, at its minimum.

    Args:
        outputs: Those tensors.
        mean_kl: The mean KL as a function of them.
    """

    def __init__(
        self, outputs: Sequence[Tensor], mean_kl: Callable[[Sequence[Tensor]], Tensor]
    ) -> None:
        self._at = [t.detach().requires_grad_() for t in outputs]
        with torch.enable_grad():
            self._slopes = slopes_of(mean_kl(self._at), self._at, twice=True)

    def __call__(self, tangents: Sequence[Tensor | None]) -> list[Tensor]:
        """``M t`` for a tangent of each output; None is 0."""
        pairs = [
            (slope, tangent)
            for slope, tangent in zip(self._slopes, tangents, strict=True)
            if slope is not None and tangent is not None and slope.requires_grad
        ]
        if not pairs:
            return [torch.zeros_like(t) for t in self._at]
        found = torch.autograd.grad(
            [slope for slope, _ in pairs],
            self._at,
            [tangent for _, tangent in pairs],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return list(found)


class ReverseTwice:
    """J and J' from one kept graph of ``u -> J'u``."""

    def __init__(
        self, outputs: Sequence[Tensor], fisher: OutputFisher, parameters: FlatParameters
    ) -> None:
        self.outputs, self.fisher, self.parameters = list(outputs), fisher, parameters
        with torch.enable_grad():
            self._u = [torch.zeros_like(t, requires_grad=True) for t in self.outputs]
            pulled: Sequence[Tensor | None] = torch.autograd.grad(
                self.outputs, parameters.tensors, self._u, create_graph=True, allow_unused=True
            )
        self._pulled = pulled  # J'u
        self.used = [slope is not None for slope in self._pulled]

    def product(self, v: Tensor) -> Tensor:
        """``F v`` ``[P]``."""
        pairs = [
            (slope, part)
            for slope, part in zip(self._pulled, self.parameters.split(v), strict=True)
            if slope is not None and slope.requires_grad
        ]
        if not pairs:
            return torch.zeros_like(v)
        Jv = _twice([slope for slope, _ in pairs], self._u, [part for _, part in pairs])
        found = torch.autograd.grad(
            self.outputs,
            self.parameters.tensors,
            self.fisher(Jv),
            retain_graph=True,
            allow_unused=True,
        )
        return self.parameters.flatten(found)  # J'(M J v)


class KlHessian:
    """The Hessian of the mean KL at theta_old, by differentiating it twice: any distribution."""

    def __init__(self, mean_kl: Tensor, parameters: FlatParameters) -> None:
        self.parameters = parameters
        self._slopes = slopes_of(mean_kl, parameters.tensors, twice=True)
        self.used = [slope is not None for slope in self._slopes]

    def product(self, v: Tensor) -> Tensor:
        """``F v`` ``[P]``."""
        pairs = [
            (slope, part)
            for slope, part in zip(self._slopes, self.parameters.split(v), strict=True)
            if slope is not None and slope.requires_grad
        ]
        if not pairs:
            return torch.zeros_like(v)
        found = _twice(
            [slope for slope, _ in pairs], self.parameters.tensors, [part for _, part in pairs]
        )
        return self.parameters.flatten(found)


def slopes_of(
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


def depends_on(outputs: Sequence[Tensor], tensors: Sequence[Tensor]) -> list[bool]:
    """Whether each of the leaf ``tensors`` is in the graph of ``outputs``."""
    found = {id(t) for t in outputs}
    pending = [t.grad_fn for t in outputs if t.grad_fn is not None]
    seen = set(pending)
    while pending:
        node = pending.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
    return [id(t) in found for t in tensors]


def _twice(
    slopes: Sequence[Tensor], tensors: Sequence[Tensor], tangents: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(slopes, tensors, tangents, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "double backward" not in str(error):
            raise
        raise RuntimeError(_NOT_TWICE) from error
