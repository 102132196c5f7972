"""The head made of heads: one network's outputs split among the parts of a Tuple or Dict space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import Distribution

from trpo_fast.base.trees import aligned, is_nested, leaves, named, refilled
from trpo_fast.networks.distributions import check_action_mask
from trpo_fast.networks.head import Array, Head, Outputs, Product
from trpo_fast.networks.joint import JointDistribution

# Category numbers stand in columns of the network's dtype: float32 has every whole number to here.
MOST_CATEGORIES = 1 << 24


@dataclass(frozen=True)
class JointHead(Head):
    """Independent parts, each with its own columns of outputs, actions, mask and log std.

    An action is one row of numbers, ``[components]``: those of each part side by side, category
    numbers as floating-point ones. ``nesting`` has the same leaves as the space, in its order, each
    with its part's place in ``heads``.
    """

    kind = "joint"
    clips_to_env = False
    heads: tuple[Head, ...]
    nesting: Any

    @classmethod
    def for_space(
        cls, space: spaces.Space[Any], *, state_dependent_std: bool, distribution: str
    ) -> Self | None:
        return None  # `of_parts`: what serves a part is not this head's to know

    @classmethod
    def of_parts(
        cls, space: spaces.Space[Any], head_of: Callable[[str, spaces.Space[Any]], Head]
    ) -> Self:
        """The head of a Tuple or Dict space.

        Args:
            space: Not empty, and no part of it.
            head_of: The head of a part, given its name in messages and its space.
        """
        heads: list[Head] = []

        def nested(name: str, part: spaces.Space[Any]) -> Any:
            if isinstance(part, spaces.Dict):
                items = part.spaces.items()
                return {key: nested(f"{name}[{key!r}]", inner) for key, inner in items}
            if isinstance(part, spaces.Tuple):
                places = enumerate(part.spaces)
                return tuple(nested(f"{name}[{index}]", inner) for index, inner in places)
            head = head_of(name, part)
            if max(head.nvec, default=0) > MOST_CATEGORIES:
                raise ValueError(
                    f"{name} has {max(head.nvec)} categories; beside other parts at most "
                    f"{MOST_CATEGORIES} can be told apart"
                )
            heads.append(head)
            return len(heads) - 1

        nesting = nested("action", space)
        return cls(tuple(heads), nesting)

    @property
    def inner(self) -> tuple[Head, ...]:
        return self.heads

    @property
    def components(self) -> int:
        return sum(head.components for head in self.heads)

    @property
    def nvec(self) -> tuple[int, ...]:
        return tuple(size for head in self.heads for size in head.nvec)

    @property
    def outputs(self) -> int:
        return sum(head.outputs for head in self.heads)

    @property
    def log_stds(self) -> int:
        return sum(head.log_stds for head in self.heads)

    def split(self, at: Outputs) -> Iterator[tuple[Head, Outputs]]:
        """Each part with its own of the outputs."""
        values = at.values.split([head.outputs for head in self.heads], dim=-1)
        scales: Sequence[Any] = [None] * len(self.heads)
        if at.log_std is not None:
            scales = at.log_std.split([head.log_stds for head in self.heads])
        masks: Sequence[Any] = [None] * len(self.heads)
        if at.mask is not None:
            masks = at.mask.split([sum(head.nvec) for head in self.heads], dim=-1)
        for head, own, scale, mask in zip(self.heads, values, scales, masks, strict=True):
            yield (
                head,
                Outputs(own, scale if head.log_stds else None, mask if head.nvec else None),
            )

    def distribution(self, at: Outputs) -> Distribution:
        parts = (head.distribution(own) for head, own in self.split(at))
        return JointDistribution(refilled(self.nesting, parts))

    def parts(self, at: Outputs) -> tuple[Tensor, ...]:
        return tuple(tensor for head, own in self.split(at) for tensor in head.parts(own))

    def score(self, at: Outputs, actions: Tensor) -> tuple[Tensor, Tensor | None]:
        pairs = zip(self.split(at), self._shaped(actions), strict=True)
        scores = [head.score(own, action) for (head, own), action in pairs]
        scales = [scale for _, scale in scores if scale is not None]
        return torch.cat([score for score, _ in scores], 1), torch.cat(
            scales, 1
        ) if scales else None

    def metric(self, at: Outputs) -> Product:
        products = [head.metric(own) for head, own in self.split(at)]
        sizes = [head.outputs for head in self.heads]

        def product(u: Tensor) -> Tensor:
            blocks = zip(products, u.split(sizes, 1), strict=True)
            return torch.cat([of(block).expand(len(u), -1) for of, block in blocks], 1)

        return product

    def metric_root(self, at: Outputs, signs: Tensor) -> Tensor:
        blocks = signs.split([head.outputs for head in self.heads], 1)
        pairs = zip(self.split(at), blocks, strict=True)
        return torch.cat([head.metric_root(own, block) for (head, own), block in pairs], 1)

    def draw(self, at: Outputs, noise: Tensor) -> Tensor:
        blocks = noise.split([head.components for head in self.heads], dim=-1)
        drawn = []
        for (head, own), block in zip(self.split(at), blocks, strict=True):
            given = block.to(own.values.dtype) if head.gaussian_noise else block
            drawn.append(head.draw(own, given).to(at.values.dtype))
        return torch.cat(drawn, dim=-1)

    def noise(self, rng: np.random.Generator, steps: int, envs: int, *, double: bool) -> Array:
        parts = [head.noise(rng, steps, envs, double=double) for head in self.heads]
        return np.concatenate([part.astype(np.float64) for part in parts], axis=-1)

    def columns(self, actions: Any) -> Tensor:
        if isinstance(actions, Tensor):
            return actions
        rows = []
        for name, head, action in zip(
            self._names("action"), self.heads, self._leaves(actions), strict=True
        ):
            expected = head.action_shape
            if tuple(action.shape[1:]) != expected:
                raise ValueError(
                    f"{name} has shape {tuple(action.shape)}, expected {(len(action), *expected)}"
                )
            rows.append(action.reshape(len(action), head.components))
        return torch.cat(rows, 1)

    def checked_actions(self, actions: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        masks: Sequence[Any] = [None] * len(self.heads)
        if mask is not None:
            masks = mask.split([sum(head.nvec) for head in self.heads], dim=-1)
        checked = []
        parts = zip(self._names("action"), self.heads, self._shaped(actions), masks, strict=True)
        for name, head, action, own in parts:
            try:
                given = head.checked_actions(action, own if head.nvec else None, dtype)
            except (ValueError, IndexError) as error:
                raise type(error)(f"{name}: {error}") from error
            checked.append(given.reshape(len(given), head.components).to(dtype))
        return torch.cat(checked, 1)

    def checked_mask(self, mask: Any, outputs: Tensor) -> Tensor:
        """The mask as bool ``[n, sum(nvec)]``, from that, or nested: None where all is allowed."""
        if not self.nvec:
            raise ValueError("action_mask needs a part that is Discrete or MultiDiscrete")
        wide = outputs.new_empty(*outputs.shape[:-1], sum(self.nvec))
        if is_nested(mask):
            mask = self._mask_columns(mask, wide)
        return check_action_mask(mask, wide, self.nvec)

    def _mask_columns(self, mask: Any, wide: Tensor) -> Tensor:
        given = aligned("action_mask", mask, self.nesting, leaf=lambda part: part is None)
        columns = []
        for name, head, own in zip(self._names("action_mask"), self.heads, given, strict=True):
            shape = (*wide.shape[:-1], sum(head.nvec))
            if own is None:
                own = torch.ones(shape, dtype=torch.bool, device=wide.device)
            own = torch.as_tensor(own, device=wide.device)
            if tuple(own.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(own.shape)}, expected {shape}")
            columns.append(own.to(torch.bool))
        return torch.cat(columns, -1)

    def nested(self, rows: Tensor) -> Any:
        """Rows of actions ``[n, components]`` nested as the space, each of its own shape."""
        return refilled(self.nesting, iter(self._shaped(rows)))

    def _leaves(self, actions: Any) -> list[Tensor]:
        return aligned("action", actions, self.nesting)

    def _shaped(self, rows: Tensor) -> list[Tensor]:
        """Each part's actions ``[n, *action_shape]``, whole numbers as int64."""
        shaped = []
        blocks = rows.split([head.components for head in self.heads], dim=-1)
        for head, block in zip(self.heads, blocks, strict=True):
            action = block.reshape(*rows.shape[:-1], *head.action_shape)
            whole = head.integral and bool((action == action.round()).all())
            shaped.append(action.to(torch.int64) if whole else action)
        return shaped

    def _names(self, name: str) -> list[str]:
        return [named(name, path) for path, _ in leaves(self.nesting)]
