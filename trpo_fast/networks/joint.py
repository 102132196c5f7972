"""One distribution over a nesting of parts: the actions of gymnasium's Tuple and Dict spaces.

The parts are independent given the observation, so log-probability, entropy, KL and Fisher matrix
are sums over them (Delalleau et al. 2019, "Discrete and continuous action representation for
practical RL in video games").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, kl_divergence, register_kl

from trpo_fast.base.trees import aligned, is_nested, leaves, named, refilled, tree_map


class JointDistribution(Distribution):
    """Independent parts in a nesting of dicts and tuples, as one joint action.

    ``log_prob``, ``entropy`` and the KL are summed over the parts. Actions are nested as the parts
    are, each part's own ``[..., *event_shape]``. A flat tensor ``[..., columns]`` is an action
    too: every part's numbers side by side, in order (``flatten`` makes it). ``event_shape`` is that
    of the flat action.

    Args:
        parts: A dict or tuple of distributions, nested to any depth, all of one ``batch_shape``:
            one joint action a row. A masked part masks itself.
        validate_args: As for every torch distribution; False switches the parts' own checks off.

    Raises:
        ValueError: no parts, or different batch shapes; the part is named by its path.
        TypeError: a part is no distribution.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own is a dict)

    def __init__(self, parts: Any, validate_args: bool | None = None) -> None:
        if not is_nested(parts):
            raise TypeError(f"parts is a {type(parts).__name__}, expected a dict or a tuple")
        self.parts = tree_map(_unwrapped, parts)
        found = list(leaves(self.parts))
        if not found:
            raise ValueError("a joint distribution needs at least one part")
        for path, part in found:
            if not isinstance(part, Distribution):
                raise TypeError(
                    f"{named('parts', path)} is a {type(part).__name__}, expected a Distribution"
                )
            if validate_args is not None:
                part._validate_args = validate_args
        first = found[0][1].batch_shape
        for path, part in found:
            if part.batch_shape != first:
                raise ValueError(
                    f"{named('parts', path)} has batch_shape {tuple(part.batch_shape)}, the first "
                    f"part {tuple(first)}: one action a row in each, so wrap the dimensions of an "
                    "action in torch.distributions.Independent(..., 1)"
                )
        self._sizes = [part.event_shape.numel() for _, part in found]
        super().__init__(first, torch.Size([sum(self._sizes)]), validate_args=False)

    @property
    def leaves(self) -> list[Distribution]:
        """The parts in order."""
        return [part for _, part in leaves(self.parts)]

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether every part has reparametrised samples."""
        return all(part.has_rsample for part in self.leaves)

    @property
    def mean(self) -> Any:
        """Each part's mean, nested."""
        return self.map(lambda part: part.mean)

    @property
    def mode(self) -> Any:
        """Each part's own, nested; a policy's deterministic action has a Beta's mean for it."""
        return self.map(lambda part: part.mode)

    @property
    def variance(self) -> Any:
        """Each part's variance, nested."""
        return self.map(lambda part: part.variance)

    @property
    def support(self) -> Any:
        """Not one constraint, since each part has its own."""
        raise NotImplementedError("the parts of a joint distribution have supports of their own")

    def map(self, function: Callable[[Distribution], Any]) -> Any:
        """``function`` of each part, nested."""
        return tree_map(function, self.parts)

    def of(self, parts: Sequence[Distribution]) -> JointDistribution:
        """The same nesting of other parts, given in order."""
        return JointDistribution(refilled(self.parts, iter(parts)))

    def expand(
        self, batch_shape: Sequence[int], _instance: Distribution | None = None
    ) -> JointDistribution:
        """The same distribution over a larger batch, as every torch distribution has."""
        shape = torch.Size(batch_shape)
        return self.of([part.expand(shape) for part in self.leaves])

    def sample(self, sample_shape: Sequence[int] = ()) -> Any:
        """Nested actions, each ``[*sample_shape, ..., *event_shape]`` of its part."""
        shape = torch.Size(sample_shape)
        return self.map(lambda part: part.sample(shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Any:
        """Reparametrised samples, where every part has them."""
        shape = torch.Size(sample_shape)
        return self.map(lambda part: part.rsample(shape))

    def log_prob(self, value: Any) -> Tensor:
        """Log-probability of joint actions, nested or flat.

        Raises:
            ValueError: another nesting or shape, named by its path.
        """
        return _sum(part.log_prob(action) for _, part, action in self.matched(value))

    def entropy(self) -> Tensor:
        """Entropy of the joint action, in nats."""
        return _sum(part.entropy() for part in self.leaves)

    def matched(self, actions: Any) -> Iterator[tuple[str, Distribution, Tensor]]:
        """Each part with its name in messages and its own of ``actions``, nested or flat.

        Raises:
            ValueError: another nesting, or a part's actions have not its ``event_shape``.
        """
        if isinstance(actions, Tensor):
            actions = self.unflatten(actions)
        values = aligned("action", actions, self.parts)
        for (path, part), value in zip(leaves(self.parts), values, strict=True):
            name, shape = named("action", path), tuple(part.event_shape)
            action = torch.as_tensor(value)
            if tuple(action.shape[action.ndim - len(shape) :]) != shape:
                raise ValueError(
                    f"{name} has shape {tuple(action.shape)}, expected [..., {str(shape)[1:-1]}]"
                )
            yield name, part, action

    def flatten(self, actions: Any) -> Tensor:
        """Nested actions as one tensor ``[..., columns]``, whole numbers among real ones as these.

        Raises:
            ValueError: another nesting or shape, named by its path.
        """
        rows = []
        for _, part, action in self.matched(actions):
            batch = action.shape[: action.ndim - len(part.event_shape)]
            rows.append(action.reshape(*batch, part.event_shape.numel()))
        return torch.cat(rows, dim=-1)

    def unflatten(self, rows: Tensor) -> Any:
        """Flat actions ``[..., columns]`` as nested ones, in the dtype of ``rows``.

        Raises:
            ValueError: another number of columns.
        """
        if rows.ndim == 0 or rows.shape[-1] != sum(self._sizes):
            raise ValueError(
                f"action is a tensor of shape {tuple(rows.shape)}, expected a nesting of them, or "
                f"[..., {sum(self._sizes)}], the numbers of all parts side by side"
            )
        blocks = zip(rows.split(self._sizes, dim=-1), self.leaves, strict=True)
        # Laid out as an action of its own would be: torch rounds a strided block otherwise.
        shaped = (
            block.contiguous().reshape(*rows.shape[:-1], *part.event_shape)
            for block, part in blocks
        )
        return refilled(self.parts, shaped)


def _unwrapped(part: Any) -> Any:
    return part.parts if isinstance(part, JointDistribution) else part


def _sum(terms: Iterator[Tensor]) -> Tensor:
    total = next(terms)
    for term in terms:
        total = total + term
    return total


def _kl_joint(p: JointDistribution, q: JointDistribution) -> Tensor:
    """The sum of the parts' KL.

    Raises:
        ValueError: they are not nested alike.
        NotImplementedError: no KL is registered for a part, which is named.
    """
    return _sum(_kl_parts(p, q))


def _kl_parts(p: JointDistribution, q: JointDistribution) -> Iterator[Tensor]:
    others = aligned("parts", q.parts, p.parts)
    for (path, a), b in zip(leaves(p.parts), others, strict=True):
        try:
            yield kl_divergence(a, b)
        except NotImplementedError as error:
            raise MissingKlError(f"{type(b).__name__}, {named('action', path)}") from error


class MissingKlError(NotImplementedError):
    """No KL is registered for a part; the text says of what type it is and where."""


register_kl(JointDistribution, JointDistribution)(_kl_joint)
