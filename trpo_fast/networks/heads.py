"""Heads: how the last layer's outputs parametrise the distribution of the joint action.

One small class a head. It holds all that its kind means to the rest of the package: the torch
distribution, the derivative of its log-probability (score), its Fisher matrix (metric) and a root
of that, the noise a draw takes and the draw, and what a batch's actions must be. Backends ask the
head; none tests which one it is. ``csrc/common/heads.h`` has the same heads for native code, under
the same names (``backends/codes.py``); one without a twin there is served by the reference
backend.

To add one: a class here, entered in ``HEADS``; for native code a struct there, and its name at the
same place in ``backends/codes.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal
from torch.nn.functional import one_hot

from trpo_fast.base.spaces import SUPPORTED_ACTIONS
from trpo_fast.networks.beta import BetaHead
from trpo_fast.networks.distributions import (
    MaskedCategorical,
    MultiCategorical,
    check_allowed,
    shifted_logits,
    whole_actions,
)
from trpo_fast.networks.head import Head, Outputs, Product, box_width, clipped
from trpo_fast.networks.joint_head import JointHead


class _Gaussian(Head):
    """What both Gaussian heads share. ``width`` is A."""

    gaussian_noise = True
    width: int

    @property
    def components(self) -> int:
        return self.width

    @staticmethod
    def _gaussian_width(space: spaces.Space[Any], distribution: str) -> int | None:
        """A of a Box that is to have a Gaussian, squashed or not."""
        return None if distribution == "beta" else box_width(space)

    def distribution(self, at: Outputs) -> Distribution:
        mean, scale = self.parts(at)
        normal = Normal(mean, scale, validate_args=False)
        return Independent(normal, 1, validate_args=False)

    def checked_actions(self, actions: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        return actions.to(dtype)

    def to_env(self, actions: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return clipped(actions, low, high)


@dataclass(frozen=True)
class GaussianHead(_Gaussian):
    """Diagonal Gaussian; the outputs are the mean, ``log_std`` is a parameter."""

    kind = "gaussian"
    width: int

    @classmethod
    def for_space(
        cls, space: spaces.Space[Any], *, state_dependent_std: bool, distribution: str
    ) -> Self | None:
        width = cls._gaussian_width(space, distribution)
        return None if width is None or state_dependent_std else cls(width)

    @property
    def log_stds(self) -> int:
        return self.width

    def parts(self, at: Outputs) -> tuple[Tensor, ...]:
        return at.values, _log_std(at).exp().expand_as(at.values)

    def score(self, at: Outputs, actions: Tensor) -> tuple[Tensor, Tensor | None]:
        inverse = torch.exp(-_log_std(at).double())  # 1 / sigma
        z = (actions - at.values.double()) * inverse
        return z * inverse, z * z - 1

    def metric(self, at: Outputs) -> Product:
        inverse = torch.exp(-2 * _log_std(at))  # 1 / sigma^2
        return lambda u: inverse * u

    def metric_root(self, at: Outputs, signs: Tensor) -> Tensor:
        return torch.exp(-_log_std(at)) * signs

    def draw(self, at: Outputs, noise: Tensor) -> Tensor:
        return torch.addcmul(at.values, _log_std(at).exp(), noise)


def _log_std(at: Outputs) -> Tensor:
    assert at.log_std is not None  # noqa: S101
    return at.log_std


@dataclass(frozen=True)
class StateStdGaussianHead(_Gaussian):
    """Diagonal Gaussian; the outputs are (mean ``[A]``, log standard deviation ``[A]``)."""

    kind = "gaussian_state_std"
    width: int

    @classmethod
    def for_space(
        cls, space: spaces.Space[Any], *, state_dependent_std: bool, distribution: str
    ) -> Self | None:
        width = cls._gaussian_width(space, distribution)
        return cls(width) if width is not None and state_dependent_std else None

    @property
    def outputs(self) -> int:
        return 2 * self.width

    def parts(self, at: Outputs) -> tuple[Tensor, ...]:
        mean, log_std = at.values.chunk(2, dim=-1)
        return mean, log_std.exp()

    def score(self, at: Outputs, actions: Tensor) -> tuple[Tensor, Tensor | None]:
        mean, log_std = at.values.double().chunk(2, dim=1)
        inverse = torch.exp(-log_std)
        z = (actions - mean) * inverse
        return torch.cat([z * inverse, z * z - 1], 1), None

    def metric(self, at: Outputs) -> Product:
        inverse = torch.exp(-2 * at.values.chunk(2, dim=1)[1])
        diagonal = torch.cat([inverse, torch.full_like(inverse, 2.0)], 1)
        return lambda u: diagonal * u

    def metric_root(self, at: Outputs, signs: Tensor) -> Tensor:
        inverse = torch.exp(-at.values.chunk(2, dim=1)[1])
        return torch.cat([inverse, torch.full_like(inverse, math.sqrt(2.0))], 1) * signs

    def draw(self, at: Outputs, noise: Tensor) -> Tensor:
        mean, log_std = at.values.chunk(2, dim=-1)
        return torch.addcmul(mean, log_std.exp(), noise)


class _Categories(Head):
    """What both categorical heads share: blocks of logits, each of which gives one category."""

    integral = True

    @property
    def outputs(self) -> int:
        return sum(self.nvec)

    def score(self, at: Outputs, actions: Tensor) -> tuple[Tensor, Tensor | None]:
        columns = actions.unsqueeze(1) if actions.ndim == 1 else actions
        chosen = torch.cat([one_hot(columns[:, k], n) for k, n in enumerate(self.nvec)], 1)
        return chosen - self._probabilities(at.values.double(), at.mask), None

    def metric(self, at: Outputs) -> Product:
        p = self._probabilities(at.values.double(), at.mask).to(at.values.dtype)
        sizes = list(self.nvec)

        def product(u: Tensor) -> Tensor:  # p * (u - p.u), block by block
            pu = p * u
            sums = [block.sum(1, keepdim=True) for block in pu.split(sizes, 1)]
            means = [s.expand(-1, n) for s, n in zip(sums, sizes, strict=True)]
            return pu - p * torch.cat(means, 1)

        return product

    def metric_root(self, at: Outputs, signs: Tensor) -> Tensor:
        # B = diag(sqrt p) - p sqrt(p)', block by block
        p, sizes = self._probabilities(at.values, at.mask), list(self.nvec)
        root = p.sqrt() * signs
        blocks = zip(root.split(sizes, 1), p.split(sizes, 1), signs.split(sizes, 1), strict=True)
        return torch.cat([r - q * (q.sqrt() * s).sum(1, keepdim=True) for r, q, s in blocks], 1)

    def parts(self, at: Outputs) -> tuple[Tensor, ...]:
        return (_allowed(at.values, at.mask),)

    def draw(self, at: Outputs, noise: Tensor) -> Tensor:
        logits = _allowed(at.values.double(), at.mask)
        pairs = zip(logits.split(list(self.nvec), dim=-1), noise.unbind(-1), strict=True)
        return torch.stack([_category(block, u) for block, u in pairs], dim=-1)

    def checked_actions(self, actions: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        actions = whole_actions(actions, self.nvec)
        if mask is not None:
            check_allowed(actions, mask, self.nvec)
        return actions

    def _probabilities(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        """``[n, sum(nvec)]``; exactly 0 where the mask forbids."""
        logits = _allowed(logits, mask)
        return torch.cat([block.softmax(1) for block in logits.split(list(self.nvec), 1)], 1)


def _allowed(logits: Tensor, mask: Tensor | None) -> Tensor:
    """-inf where the mask forbids."""
    return logits if mask is None else logits.masked_fill(~mask, -torch.inf)


def _category(logits: Tensor, uniform: Tensor) -> Tensor:
    """By inversion: the first category whose cumulative probability exceeds ``uniform``."""
    probabilities = torch.softmax(logits, dim=-1)
    passed = (probabilities.cumsum(-1) <= uniform.unsqueeze(-1)).sum(-1)
    # Rounding may leave the last sum below the noise: then it is the last possible category.
    places = torch.arange(logits.shape[-1], device=logits.device)
    last = torch.where(probabilities > 0, places, 0).amax(-1)
    return torch.minimum(passed, last)


@dataclass(frozen=True)
class CategoricalHead(_Categories):
    """One of ``n`` categories; the outputs are logits. An action is a scalar."""

    kind = "categorical"
    n: int

    @classmethod
    def for_space(
        cls, space: spaces.Space[Any], *, state_dependent_std: bool, distribution: str
    ) -> Self | None:
        return cls(int(space.n)) if isinstance(space, spaces.Discrete) else None

    @classmethod
    def of_outputs(cls, distribution: Distribution) -> tuple[Self, Tensor] | None:
        found: Any = distribution
        if type(found) not in (Categorical, MaskedCategorical):
            return None
        return cls(found.logits.shape[-1]), found.logits

    @property
    def components(self) -> int:
        return 1

    @property
    def action_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def nvec(self) -> tuple[int, ...]:
        return (self.n,)

    def distribution(self, at: Outputs) -> Distribution:
        if at.mask is None:
            return Categorical(logits=shifted_logits(at.values), validate_args=False)
        return MaskedCategorical(at.values, at.mask, validate_args=False)

    def parts(self, at: Outputs) -> tuple[Tensor, ...]:
        logits = _allowed(at.values, at.mask)
        return (logits - logits.logsumexp(dim=-1, keepdim=True),)


@dataclass(frozen=True)
class MultiCategoricalHead(_Categories):
    """Independent categories, their logits side by side; an action has one number a block."""

    kind = "multi_categorical"
    sizes: tuple[int, ...]

    @classmethod
    def for_space(
        cls, space: spaces.Space[Any], *, state_dependent_std: bool, distribution: str
    ) -> Self | None:
        if not isinstance(space, spaces.MultiDiscrete):
            return None
        return cls(tuple(int(n) for n in space.nvec.ravel()))

    @classmethod
    def of_outputs(cls, distribution: Distribution) -> tuple[Self, Tensor] | None:
        if type(distribution) is not MultiCategorical:
            return None
        return cls(distribution.nvec), distribution.logits

    @property
    def components(self) -> int:
        return len(self.sizes)

    @property
    def nvec(self) -> tuple[int, ...]:
        return self.sizes

    def distribution(self, at: Outputs) -> Distribution:
        return MultiCategorical(at.values, self.sizes, at.mask, validate_args=False)


@dataclass(frozen=True)
class BernoulliHead(Head):
    """Independent bits; the outputs are their logits."""

    kind = "bernoulli"
    clips_to_env = False
    width: int

    @classmethod
    def for_space(
        cls, space: spaces.Space[Any], *, state_dependent_std: bool, distribution: str
    ) -> Self | None:
        return cls(math.prod(space.shape)) if isinstance(space, spaces.MultiBinary) else None

    @classmethod
    def of_outputs(cls, distribution: Distribution) -> tuple[Self, Tensor] | None:
        found: Any = distribution
        if type(found) is not Independent or found.reinterpreted_batch_ndims != 1:
            return None
        if type(found.base_dist) is not Bernoulli:
            return None
        return cls(found.base_dist.logits.shape[-1]), found.base_dist.logits

    @property
    def components(self) -> int:
        return self.width

    def distribution(self, at: Outputs) -> Distribution:
        bits = Bernoulli(logits=at.values, validate_args=False)
        return Independent(bits, 1, validate_args=False)

    def score(self, at: Outputs, actions: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = at.values.double()
        # 1 - p or -p, without the difference
        return torch.where(actions > 0.5, torch.sigmoid(-logits), -torch.sigmoid(logits)), None

    def metric(self, at: Outputs) -> Product:
        # p (1 - p), not cancelled
        variance = torch.sigmoid(at.values) * torch.sigmoid(-at.values)
        return lambda u: variance * u

    def metric_root(self, at: Outputs, signs: Tensor) -> Tensor:
        return (torch.sigmoid(at.values) * torch.sigmoid(-at.values)).sqrt() * signs

    def draw(self, at: Outputs, noise: Tensor) -> Tensor:
        return (noise < at.values.double().sigmoid()).to(at.values.dtype)

    def checked_actions(self, actions: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        if not bool(((actions == 0) | (actions == 1)).all()):
            raise ValueError("actions of a MultiBinary space must be 0 or 1")
        return actions.to(dtype)

    def to_env(self, actions: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return actions.to(torch.int8)


HEADS: list[type[Head]] = [
    GaussianHead,
    StateStdGaussianHead,
    CategoricalHead,
    MultiCategoricalHead,
    BernoulliHead,
    BetaHead,
    JointHead,
]


def head_of_outputs(distribution: Any) -> tuple[Head, Tensor] | None:
    """The head of a distribution made of a layer's bare outputs ``[n, outputs]``, and those."""
    found = (each.of_outputs(distribution) for each in HEADS)
    return next((pair for pair in found if pair is not None), None)


def head_for(
    space: spaces.Space[Any],
    *,
    state_dependent_std: bool = False,
    distribution: str = "gaussian",
) -> Head | None:
    """The head that serves an action space, or None.

    Raises:
        ValueError: a part of a Tuple or Dict that none serves, named by its path.
    """

    def leaf(part: spaces.Space[Any]) -> Head | None:
        found = (
            each.for_space(part, state_dependent_std=state_dependent_std, distribution=distribution)
            for each in HEADS
        )
        return next((head for head in found if head is not None), None)

    def named(name: str, part: spaces.Space[Any]) -> Head:
        head = leaf(part)
        if head is None:
            raise ValueError(f"{name} is {part}, which is not supported: {SUPPORTED_ACTIONS}")
        return head

    if isinstance(space, spaces.Tuple | spaces.Dict):
        return JointHead.of_parts(space, named)
    return leaf(space)
