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
    Transform,
    TransformedDistribution,
    Wishart,
    kl,
    register_kl,
)

from trpo_fast.networks.distributions import MaskedCategorical, MultiCategorical
from trpo_fast.networks.joint import JointDistribution


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
    if kind is JointDistribution:
        return _of_joint(d)
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


def _of_joint(joint: JointDistribution) -> Parts | None:
    found = [parts_of(part) for part in joint.leaves]
    known = [parts for parts in found if parts is not None]
    if len(known) < len(found):
        return None

    def make(tensors: list[Tensor]) -> Distribution:
        rest = iter(tensors)
        return joint.of([parts.make([next(rest) for _ in parts.tensors]) for parts in known])

    return Parts([t for parts in known for t in parts.tensors], make)


def _form(distribution: Any) -> str:
    """Which of probabilities and logits it was made of; the other is computed when asked for."""
    return "probs" if distribution._param is distribution.__dict__.get("probs") else "logits"


def refuse_wrong_kl(distribution: Distribution, *, known: bool) -> None:
    """Raise where torch's KL takes transforms for fixed that are not, or mixes rows.

    Args:
        distribution: Any.
        known: Whether its KL depends on something; a subclass that has a KL of its own then is
            trusted to have it right.

    Raises:
        NotImplementedError: a transform has a tensor that requires a gradient; a Wishart, which
            torch gives the KL of all exponential families: it adds its second natural parameter's
            terms over the batch, and so comes out negative.
    """
    d: Any = distribution
    if isinstance(d, JointDistribution):
        for part in d.leaves:
            refuse_wrong_kl(part, known=known)
        return
    while isinstance(d, Independent):
        d = d.base_dist
    if isinstance(d, Wishart) and not any(issubclass(p, Wishart) for p, _ in kl._KL_REGISTRY):
        raise NotImplementedError(
            "torch's KL between Wishart distributions is wrong for more than one row; register one "
            "for them with torch.distributions.register_kl"
        )
    if type(d) is not TransformedDistribution and (
        known or not isinstance(d, TransformedDistribution)
    ):
        return
    if _moves(d.transforms, set()):
        raise NotImplementedError(
            f"the transforms of {type(d).__name__} depend on the policy's parameters, and torch's "
            "KL between transformed distributions takes them for fixed: let the base distribution "
            "alone depend on them, or make a subclass of Distribution and register its KL with "
            "torch.distributions.register_kl"
        )


def _moves(value: Any, seen: set[int]) -> bool:
    """Whether a transform, or a part of one, has a tensor that requires a gradient."""
    if isinstance(value, Tensor):
        return value.requires_grad
    if isinstance(value, list | tuple):
        return any(_moves(part, seen) for part in value)
    if not isinstance(value, Transform) or id(value) in seen:  # a transform and its inverse
        return False
    seen.add(id(value))
    kept = "_cached_x_y"  # the last value it was used on
    return any(_moves(part, seen) for name, part in vars(value).items() if name != kept)


class _SmoothLaplace(Laplace):
    """A Laplace distribution whose KL from another is replaced by its second-order expansion.

    The true KL is a function of ``|loc - loc'|``. Its second derivative at 0 is ``1 / scale^2``,
    but automatic differentiation takes the derivative of ``|x|`` at 0 as 0 and finds none.
    """


def _kl_laplace(p: Laplace, q: _SmoothLaplace) -> Tensor:
    return 0.5 * (((q.loc - p.loc) / p.scale).square() + ((q.scale - p.scale) / p.scale).square())


register_kl(Laplace, _SmoothLaplace)(_kl_laplace)
