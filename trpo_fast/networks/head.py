"""What a head is: how a network's outputs parametrise the distribution of the joint action."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import Distribution

from trpo_fast.base.trees import is_nested
from trpo_fast.networks.distributions import check_action_mask

Array = npt.NDArray[Any]
# How the actions of a Box may be distributed: a squashed Gaussian is one under a tanh.
BOX_DISTRIBUTIONS = ("gaussian", "squashed", "beta")
Product = Callable[[Tensor], Tensor]  # u -> M u, on rows [n, outputs]


class Outputs(NamedTuple):
    """What a distribution is made of, at some rows."""

    values: Tensor  # [n, outputs], what the last layer gave
    log_std: Tensor | None = None  # [A], a parameter of its own; None for heads without it
    mask: Tensor | None = None  # [n, sum(nvec)] bool, True where allowed


class Head(ABC):
    """One kind of distribution over a network's outputs.

    Attributes:
        kind: Its name, by which native code and messages know it.
        integral: Whether actions are whole numbers (int64).
        gaussian_noise: Whether a draw takes standard normal numbers in the network's dtype; else
            they are uniform in [0, 1), float64.
        clips_to_env: Whether the environment's action is this one, in units of its own, within two
            bounds (for whole numbers, moved by the first), in the same dtype.
    """

    kind: ClassVar[str]
    integral: ClassVar[bool] = False
    gaussian_noise: ClassVar[bool] = False
    clips_to_env: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def for_space(
        cls, space: spaces.Space[Any], *, state_dependent_std: bool, distribution: str
    ) -> Self | None:
        """The head for an action space, or None where it is not this one's to serve.

        Args:
            space: Of one action.
            state_dependent_std: Of a Gaussian.
            distribution: Of a Box: one of ``BOX_DISTRIBUTIONS``.
        """

    @classmethod
    def of_outputs(cls, distribution: Distribution) -> tuple[Self, Tensor] | None:
        """The head of a distribution made of a layer's bare outputs, and those ``[n, outputs]``.

        None where the distribution is of another kind, or of more than bare outputs.
        """
        del distribution
        return None

    @property
    @abstractmethod
    def components(self) -> int:
        """Numbers in one action."""

    @property
    def action_shape(self) -> tuple[int, ...]:
        """Shape of one action."""
        return (self.components,)

    @property
    def inner(self) -> tuple[Head, ...]:
        """The heads that it is made of, in turn; () of a simple one."""
        return ()

    @property
    def nvec(self) -> tuple[int, ...]:
        """Sizes of the blocks of logits that a mask speaks of; empty for heads without masks."""
        return ()

    @property
    def outputs(self) -> int:
        """Width of the last layer."""
        return self.components

    @property
    def log_stds(self) -> int:
        """Entries of a parameter ``log_std`` that stands beside the outputs; 0: there is none."""
        return 0

    @abstractmethod
    def distribution(self, at: Outputs) -> Distribution:
        """The distribution, batch_shape ``[n]``."""

    def parts(self, at: Outputs) -> tuple[Tensor, ...]:
        """The tensors that the distribution is made of, as ``of_outputs`` finds them."""
        return (at.values,)

    @abstractmethod
    def score(self, at: Outputs, actions: Tensor) -> tuple[Tensor, Tensor | None]:
        """D log p / d outputs ``[n, outputs]`` and / d log_std ``[n, A]``, in float64."""

    @abstractmethod
    def metric(self, at: Outputs) -> Product:
        """``u -> M u`` on rows ``[n, outputs]``, M the Fisher matrix over the outputs."""

    @abstractmethod
    def metric_root(self, at: Outputs, signs: Tensor) -> Tensor:
        """``B s`` ``[n, outputs]`` with ``B B' = M`` and ``s`` of +-1."""

    @abstractmethod
    def draw(self, at: Outputs, noise: Tensor) -> Tensor:
        """Actions ``[n, components]`` from ``noise`` ``[n, components]``."""

    def columns(self, actions: Any) -> Tensor:
        """A batch's actions as one tensor; TypeError where they are none."""
        if not isinstance(actions, Tensor):
            raise TypeError(
                f"actions are a {type(actions).__name__}, expected one tensor: the action space is "
                "not nested"
            )
        return actions

    @abstractmethod
    def checked_actions(self, actions: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        """A batch's actions ``[n, *action_shape]`` in the dtype that is computed with.

        Raises:
            ValueError: an action that the kind cannot have, or that the mask forbids.
            IndexError: a category out of range.
        """

    def checked_mask(self, mask: Any, outputs: Tensor) -> Tensor:
        """The mask as bool ``[n, sum(nvec)]``; ValueError where it cannot be one of this head.

        ``outputs`` ``[n, ...]`` says how many rows there are, and where.
        """
        if not self.nvec:
            raise ValueError("action_mask needs a Discrete or MultiDiscrete action space")
        if is_nested(mask):
            raise TypeError(f"action_mask is a {type(mask).__name__}, expected a tensor [N, n]")
        return check_action_mask(mask, outputs, self.nvec)

    def noise(self, rng: np.random.Generator, steps: int, envs: int, *, double: bool) -> Array:
        """What the draws of a rollout take, ``[T, B, components]``.

        Args:
            rng: Where from.
            steps: T.
            envs: B.
            double: Whether Gaussian noise is float64, as a network's outputs may be.
        """
        shape = (steps, envs, self.components)
        if not self.gaussian_noise:
            return rng.random(shape)
        return rng.standard_normal(shape) if double else rng.standard_normal(shape, np.float32)

    def to_env(self, actions: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """What ``env.step`` takes, of the shape of ``actions``: moved to begin at ``low``."""
        del high
        return actions + low.to(actions.dtype)


def clipped(actions: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Actions within the bounds, in their own dtype."""
    return torch.clamp(actions, low.to(actions.dtype), high.to(actions.dtype))


def box_width(space: spaces.Space[Any]) -> int | None:
    """Numbers in an action of a Box of floating-point ones; None for any other space."""
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        return None
    return math.prod(space.shape)
