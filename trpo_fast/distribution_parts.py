"""A distribution as a function of the tensors it was made of, for the types that are known here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Dirichlet,
    Distribution,
    Exponential,
    Gamma,
    Gumbel,
    HalfNormal,
    Independent,
    Laplace,
    LogNormal,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    Poisson,
    TransformedDistribution,
    register_kl,
)

from trpo_fast.distributions import MaskedCategorical, MultiCategorical


class Parts(NamedTuple):
    """Tensors of a distribution, and what makes the same one of others in their place."""

    tensors: list[Tensor]
    make: Callable[[list[Tensor]], Distribution]


# Made by the constructor from exactly these.
_BY_NAME: dict[type[Distribution], tuple[str, ...]] = {
    Normal: ("loc", "scale"),
    LogNormal: ("loc", "scale"),
    Gumbel: ("loc", "scale"),
    HalfNormal: ("scale",),
    Exponential: ("rate",),
    Poisson: ("rate",),
    Gamma: ("concentration", "rate"),
    Beta: ("concentration1", "concentration0"),
    Dirichlet: ("concentration",),
    MultivariateNormal: ("loc", "scale_tril"),
    LowRankMultivariateNormal: ("loc", "cov_factor", "cov_diag"),
}
# Made from probabilities or from logits.
_TWO_FORMS = (Bernoulli, Categorical, OneHotCategorical)


def parts_of(distribution: Distribution) -> Parts | None:
    """The tensors that decide the distribution, or None for a type that is not known."""
    d: Any = distribution
    kind = type(d)
    if kind in (Independent, TransformedDistribution):
        own = d.reinterpreted_batch_ndims if kind is Independent else d.transforms
        base = parts_of(d.base_dist)
        if base is None:
            return None
        inner = base.make
        return Parts(base.tensors, lambda t: kind(inner(t), own, validate_args=False))
    if kind is MaskedCategorical:
        return Parts([d.logits], lambda t: MaskedCategorical(t[0], validate_args=False))
    if kind is MultiCategorical:
        return Parts([d.logits], lambda t: MultiCategorical(t[0], d.nvec, validate_args=False))
    if kind is Laplace:
        return Parts([d.loc, d.scale], lambda t: _SmoothLaplace(t[0], t[1], validate_args=False))
    if kind in _TWO_FORMS:
        names: tuple[str, ...] = (_form(d._categorical if kind is OneHotCategorical else d),)
    elif kind in _BY_NAME:
        names = _BY_NAME[kind]
    else:
        return None
    return Parts(
        [getattr(d, name) for name in names],
        lambda t: kind(**dict(zip(names, t, strict=True)), validate_args=False),
    )


def _form(distribution: Any) -> str:
    """Which of probabilities and logits it was made of; the other is computed when asked for."""
    return "probs" if distribution._param is distribution.__dict__.get("probs") else "logits"


class _SmoothLaplace(Laplace):
    """A Laplace distribution whose KL from another is replaced by its second-order expansion.

    The true KL is a function of ``|loc - loc'|``. Its second derivative at 0 is ``1 / scale^2``,
    but automatic differentiation takes the derivative of ``|x|`` at 0 as 0 and finds none.
    """


def _kl_laplace(p: Laplace, q: _SmoothLaplace) -> Tensor:
    return 0.5 * (((q.loc - p.loc) / p.scale).square() + ((q.scale - p.scale) / p.scale).square())


register_kl(Laplace, _SmoothLaplace)(_kl_laplace)
