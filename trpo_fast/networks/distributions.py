"""Distributions that torch lacks, and three helpers that serve any distribution.

``torch.distributions.kl_divergence`` is registered for the classes defined here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    constraints,
    register_kl,
)
from torch.nn.functional import logsigmoid

from trpo_fast.networks.joint import JointDistribution


def check_action_mask(mask: Tensor, logits: Tensor, nvec: Sequence[int]) -> Tensor:
    """The mask as bool, of the logits' shape, with an allowed action in every row of each block.

    Raises:
        ValueError: on another shape, or where a row forbids every action of a block.
    """
    mask = torch.as_tensor(mask, device=logits.device).to(torch.bool)
    if mask.shape != logits.shape:
        message = f"action_mask has shape {tuple(mask.shape)}, expected {tuple(logits.shape)}"
        raise ValueError(f"{message}: one entry for each logit")
    for block in mask.split(list(nvec), dim=-1):
        allowed = block.any(-1)
        if not bool(allowed.all()):
            row = (~allowed).nonzero()[0].tolist()
            raise ValueError(f"action_mask allows no action at index {row}: allow at least one")
    return mask


def whole_actions(actions: Tensor, nvec: tuple[int, ...]) -> Tensor:
    """Discrete actions ``[N]`` or ``[N, K]`` as int64.

    Raises:
        ValueError: an action is not a whole number.
        IndexError: an action is out of its range.
    """
    whole = actions.to(torch.int64)
    if actions.is_floating_point() and not bool((whole == actions).all()):
        raise ValueError("actions of a discrete space must be whole numbers")
    columns = whole.unsqueeze(-1) if whole.ndim == 1 else whole
    for k, size in enumerate(nvec):
        low, high = columns[:, k].aminmax()
        if int(low) < 0 or int(high) >= size:
            row = int(((columns[:, k] < 0) | (columns[:, k] >= size)).nonzero()[0])
            where = f"actions[{row}]" if whole.ndim == 1 else f"actions[{row}, {k}]"
            raise IndexError(f"{where} is {int(columns[row, k])}, expected 0 to {size - 1}")
    return whole


def check_allowed(actions: Tensor, mask: Tensor, nvec: tuple[int, ...]) -> None:
    """Raise ValueError where a taken action is one that the mask forbids."""
    columns = actions.unsqueeze(-1) if actions.ndim == 1 else actions
    for k, block in enumerate(mask.split(list(nvec), dim=-1)):
        allowed = block.gather(1, columns[:, k : k + 1]).squeeze(1)
        if not bool(allowed.all()):
            row = int((~allowed).nonzero()[0])
            raise ValueError(f"the action at row {row} is one that its action_mask forbids")


def shifted_logits(logits: Tensor) -> Tensor:
    """Logits of the same distribution, moved to have 0 as the greatest of the last dimension.

    torch normalises by ``logits - logsumexp(logits)``, which loses log n where the logits' ulp is
    above it: probabilities would sum to n, and a KL could be negative.
    """
    return logits - logits.detach().amax(-1, keepdim=True)


class MaskedCategorical(Categorical):
    """Categorical over ``n`` actions whose forbidden ones have probability exactly 0.

    Args:
        logits: ``[..., n]``; -inf means forbidden.
        mask: ``[..., n]`` bool, True where the action is allowed; None allows all.
        validate_args: As for every torch distribution.
    """

    def __init__(
        self, logits: Tensor, mask: Tensor | None = None, validate_args: bool | None = None
    ) -> None:
        if mask is not None:
            mask = check_action_mask(mask, logits, [logits.shape[-1]])
            logits = logits.masked_fill(~mask, -torch.inf)
        # torch's own validation would refuse -inf logits.
        super().__init__(logits=shifted_logits(logits), validate_args=False)
        self._validate_args = (
            Distribution._validate_args if validate_args is None else validate_args
        )

    def expand(
        self, batch_shape: Sequence[int], _instance: Distribution | None = None
    ) -> MaskedCategorical:
        """The same distribution over a larger batch, as every torch distribution has."""
        logits = self.logits.expand(*batch_shape, self.logits.shape[-1])
        return MaskedCategorical(logits, validate_args=self._validate_args)

    def _validate_sample(self, value: Tensor) -> None:
        # Categorical's support is the whole range; what it cannot index is an error.
        if value.numel() and (value.min() < 0 or value.max() >= self._num_events):
            raise ValueError(f"actions must lie in [0, {self._num_events})")


def _kl_categories(log_p: Tensor, log_q: Tensor) -> Tensor:
    # Where p is 0 the term is 0, in the value and in every derivative: -inf never meets -inf.
    outside = log_p == -torch.inf
    log_ratio = log_p.masked_fill(outside, 0.0) - log_q.masked_fill(outside, 0.0)
    return (log_p.exp() * log_ratio).sum(-1)


def _kl_masked(p: Categorical, q: Categorical) -> Tensor:
    return _kl_categories(p.logits, q.logits)


register_kl(MaskedCategorical, MaskedCategorical)(_kl_masked)


class _Bits(Bernoulli):
    """Bernoulli variables whose KL is taken from logits.

    torch's own is infinite once a probability rounds to 1, which is at a logit of 37.
    """


def _kl_bits(p: _Bits, q: _Bits) -> Tensor:
    log_p, log_q = (
        torch.stack([logsigmoid(-d.logits), logsigmoid(d.logits)], dim=-1) for d in (p, q)
    )
    return _kl_categories(log_p, log_q)


register_kl(_Bits, _Bits)(_kl_bits)


class MultiCategorical(Distribution):
    """Independent categorical actions: the joint distribution of a MultiDiscrete space.

    ``log_prob``, ``entropy`` and the KL are those of the joint action, summed over its K
    components; ``batch_shape`` is ``logits.shape[:-1]`` and ``event_shape`` is ``[K]``.

    Args:
        logits: ``[..., sum(nvec)]``, the components' logits side by side.
        nvec: The K components' sizes.
        mask: ``[..., sum(nvec)]`` bool, True where allowed; None allows all.
        validate_args: As for every torch distribution.

    Raises:
        ValueError: when the widths of logits, nvec and mask disagree, or a row allows nothing.
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}  # noqa: RUF012
    has_enumerate_support = False

    def __init__(
        self,
        logits: Tensor,
        nvec: Sequence[int],
        mask: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.nvec = tuple(int(n) for n in nvec)
        if not self.nvec or min(self.nvec) < 1 or logits.shape[-1] != sum(self.nvec):
            raise ValueError(
                f"logits have width {logits.shape[-1]}, but nvec {self.nvec} "
                f"sums to {sum(self.nvec)}"
            )
        if mask is not None:
            mask = check_action_mask(mask, logits, self.nvec)
            logits = logits.masked_fill(~mask, -torch.inf)
        self.logits = logits
        self.blocks: list[Categorical] = [
            MaskedCategorical(block, validate_args=False)
            for block in logits.split(list(self.nvec), dim=-1)
        ]
        shape = torch.Size([len(self.nvec)])
        super().__init__(logits.shape[:-1], shape, validate_args=False)
        self._validate_args = (
            Distribution._validate_args if validate_args is None else validate_args
        )

    @property
    def support(self) -> Any:
        """Whole numbers, the k-th below ``nvec[k]``."""
        return constraints.independent(constraints.nonnegative_integer, 1)

    @property
    def mode(self) -> Tensor:
        """The most probable action, ``[..., K]``."""
        return torch.stack([block.mode for block in self.blocks], dim=-1)

    def expand(
        self, batch_shape: Sequence[int], _instance: Distribution | None = None
    ) -> MultiCategorical:
        """The same distribution over a larger batch, as every torch distribution has."""
        logits = self.logits.expand(*batch_shape, self.logits.shape[-1])
        return MultiCategorical(logits, self.nvec, validate_args=self._validate_args)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Actions ``[*sample_shape, ..., K]``, int64."""
        shape = torch.Size(sample_shape)
        return torch.stack([block.sample(shape) for block in self.blocks], dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of the joint actions ``value`` ``[..., K]``."""
        if value.shape[-1] != len(self.nvec):
            raise ValueError(f"actions have width {value.shape[-1]}, expected {len(self.nvec)}")
        parts = zip(self.blocks, value.unbind(-1), strict=True)
        return torch.stack([block.log_prob(v) for block, v in parts]).sum(0)

    def entropy(self) -> Tensor:
        """Entropy of the joint action, in nats."""
        return torch.stack([block.entropy() for block in self.blocks]).sum(0)


def _kl_multi(p: MultiCategorical, q: MultiCategorical) -> Tensor:
    if p.nvec != q.nvec:
        raise ValueError(f"KL between different action spaces: nvec {p.nvec} and {q.nvec}")
    blocks = zip(p.blocks, q.blocks, strict=True)
    return torch.stack([_kl_masked(a, b) for a, b in blocks]).sum(0)


register_kl(MultiCategorical, MultiCategorical)(_kl_multi)


def mode(distribution: Distribution) -> Any:
    """The deterministic action: the distribution's mode, or its mean where it has none.

    A Beta gives its mean: where both concentrations are near 1 its mode goes from end to end with
    their rounding. A Bernoulli of probability exactly one half gives 0 (torch's own mode is NaN
    there); a transformed distribution gives the image of its base's; a joint one the nesting of its
    parts'.
    """
    if isinstance(distribution, JointDistribution):
        return distribution.map(mode)
    if isinstance(distribution, Independent):
        return mode(distribution.base_dist)
    if isinstance(distribution, Beta):
        return distribution.mean
    if isinstance(distribution, Bernoulli):
        return (distribution.probs > 0.5).to(distribution.probs.dtype)
    if isinstance(distribution, TransformedDistribution):
        value = mode(distribution.base_dist)
        for transform in distribution.transforms:
            value = transform(value)
        return value
    try:
        return distribution.mode
    except NotImplementedError:
        return distribution.mean


def detached(distribution: Distribution) -> Distribution:
    """A copy cut from the autograd graph that shares no memory with it, for any distribution.

    A model may hand its own parameters to the distribution; the copy keeps their present values
    when the parameters change.
    """
    clone: Distribution = _detached_value(distribution, {})
    return clone


def _detached_value(value: Any, memo: dict[int, Any]) -> Any:
    # Attributes that are one object stay one object, as copy.deepcopy has it.
    if id(value) in memo:
        return memo[id(value)]
    result = value
    if isinstance(value, Tensor):
        result = value.detach().clone()
    elif isinstance(value, Distribution):
        result = copy.copy(value)
        vars(result).update({k: _detached_value(v, memo) for k, v in vars(value).items()})
    elif isinstance(value, dict):
        result = {key: _detached_value(v, memo) for key, v in value.items()}
    elif type(value) in (list, tuple):
        result = type(value)(_detached_value(v, memo) for v in value)
    memo[id(value)] = result
    return result


def in_double(distribution: Distribution) -> Distribution:
    """The same distribution in float64, where its type is known; else itself.

    Between two of these a KL is finite though a probability rounds to 0 or 1. A KL near 0 is the
    difference of nearly equal terms: in float64 nothing of a float32 model is lost to cancellation.
    """
    d: Any = distribution
    kind = type(distribution)
    if type(distribution) is JointDistribution:
        return distribution.of([in_double(part) for part in distribution.leaves])
    if kind is Independent:
        base = in_double(d.base_dist)
        return Independent(base, d.reinterpreted_batch_ndims, validate_args=False)
    if kind is TransformedDistribution:
        return TransformedDistribution(in_double(d.base_dist), d.transforms, validate_args=False)
    if kind is Normal:
        return Normal(d.loc.double(), d.scale.double(), validate_args=False)
    if kind is Categorical and d._param is d.__dict__.get("probs"):
        return Categorical(probs=d.probs.double(), validate_args=False)
    if kind in (Categorical, MaskedCategorical):
        return MaskedCategorical(d.logits.double(), validate_args=False)
    if kind is MultiCategorical:
        return MultiCategorical(d.logits.double(), d.nvec, validate_args=False)
    if kind is Bernoulli and d._param is d.__dict__.get("logits"):
        return _Bits(logits=d.logits.double(), validate_args=False)
    if kind is MultivariateNormal:
        return MultivariateNormal(
            d.loc.double(), scale_tril=d.scale_tril.double(), validate_args=False
        )
    if kind is Beta:
        return Beta(d.concentration1.double(), d.concentration0.double(), validate_args=False)
    return distribution
