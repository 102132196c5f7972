"""Policies and value functions on observations as the environment nests them.

``observation = "structured"`` on a module says that its ``forward`` takes the environment's own
nesting: images as they are (uint8 ``[N, H, W, C]`` or ``[N, C, H, W]``), dicts, tuples, indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from trpo_fast.base.images import image_of
from trpo_fast.base.spaces import Space
from trpo_fast.networks.encoded import EncodedPolicy, features
from trpo_fast.networks.encoders import Encoder
from trpo_fast.networks.mlp import MlpPolicy, ValueFunction

# Features that an image has beside others, as in Stable-Baselines3's CombinedExtractor.
COMBINED_FEATURES = 256


class StructuredPolicy(EncodedPolicy):
    """A perceptron policy on an encoder's features.

    Args:
        encoder: Features of an observation.
        action_space: As of ``MlpPolicy``.
        hidden_sizes, activation: Of the perceptron after the encoder.
        options: Further keywords of ``MlpPolicy``: ``distribution``, ``log_std_init``, ...
    """

    def __init__(
        self,
        encoder: Encoder,
        action_space: Space,
        hidden_sizes: Sequence[int],
        activation: str,
        **options: Any,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.actor = MlpPolicy(
            features(encoder.width), action_space, hidden_sizes, activation, **options
        )

    def forward(self, obs: Any, action_mask: Any = None) -> Distribution:
        """The distribution of the actions, batch_shape ``[N]``.

        Args:
            obs: The space's nesting of ``[N, ...]`` tensors.
            action_mask: As of ``MlpPolicy``.

        Raises:
            ValueError: a leaf that is missing or does not fit, named by its path.
        """
        return self.actor(self.encoder(obs), action_mask)  # type: ignore[no-any-return]


class CnnPolicy(StructuredPolicy):
    """A convolutional policy on images.

    The network is chosen by the images' size, see ``trpo_fast.networks.encoders.ImageEncoder``:
    that of Mnih et al. 2015, or a small one for sides below 36.

    Args:
        observation_space: A Box of images, see ``trpo_fast.base.images.image_of``.
        action_space: As of ``MlpPolicy``.
        hidden_sizes: Widths of further layers after the encoder's own.
        activation: Of those.
        image_features: Width of the encoder's last layer; None for 512, or 128.
        generator: Source of the initial weights; None is torch's global generator.
        options: Further keywords of ``MlpPolicy``.

    Raises:
        ValueError: the space is not one of images.
    """

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        hidden_sizes: Sequence[int] = (),
        activation: str = "tanh",
        *,
        image_features: int | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        require_image(observation_space)
        encoder = Encoder(observation_space, image_features, generator=generator)
        super().__init__(
            encoder, action_space, hidden_sizes, activation, generator=generator, **options
        )


class MultiInputPolicy(StructuredPolicy):
    """A policy on any supported nesting: an encoder for each leaf, then a perceptron on all.

    Args:
        observation_space: Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these.
        action_space, hidden_sizes, activation: As of ``MlpPolicy``.
        image_features: Features of each image.
        generator: Source of the initial weights; None is torch's global generator.
        options: Further keywords of ``MlpPolicy``.

    Raises:
        UnsupportedSpaceError: another kind of space, named by its path.
    """

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
        *,
        image_features: int | None = COMBINED_FEATURES,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        encoder = Encoder(observation_space, image_features, generator=generator)
        super().__init__(
            encoder, action_space, hidden_sizes, activation, generator=generator, **options
        )


class StructuredValueFunction(nn.Module):
    """State values ``[N]`` on an encoder's features.

    Args:
        encoder: Features of an observation. A policy's own is a trunk that both share: the
            trust-region step moves it, the critic's fit does not.
        hidden_sizes, activation: Of the perceptron after it.
        generator: Source of the initial weights; None is torch's global generator.
    """

    observation: ClassVar[str] = "structured"

    def __init__(
        self,
        encoder: Encoder,
        hidden_sizes: Sequence[int],
        activation: str,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.values = ValueFunction(
            features(encoder.width), hidden_sizes, activation, generator=generator
        )

    def forward(self, obs: Any) -> Tensor:
        """Values ``[N]`` of the space's nesting of ``[N, ...]`` tensors."""
        found: Tensor = self.values(self.encoder(obs))
        return found


class CnnValueFunction(StructuredValueFunction):
    """State values ``[N]`` of images; the arguments are those of ``CnnPolicy``.

    Args:
        observation_space: A Box of images.
        hidden_sizes: Widths of further layers after the encoder's own.
        activation: Of those.
        encoder: A policy's, to share; None for one of its own.
        image_features: Width of the encoder's last layer; None for 512, or 128.
        generator: Source of the initial weights; None is torch's global generator.

    Raises:
        ValueError: the space is not one of images.
    """

    def __init__(
        self,
        observation_space: Space,
        hidden_sizes: Sequence[int] = (),
        activation: str = "tanh",
        *,
        encoder: Encoder | None = None,
        image_features: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        require_image(observation_space)
        if encoder is None:
            encoder = Encoder(observation_space, image_features, generator=generator)
        super().__init__(encoder, hidden_sizes, activation, generator=generator)


class MultiInputValueFunction(StructuredValueFunction):
    """State values ``[N]`` of any supported nesting; the arguments are those of the policy.

    Args:
        observation_space: Box, Discrete, MultiDiscrete, MultiBinary, and Dict or Tuple of these.
        hidden_sizes, activation: Of the perceptron after the encoder.
        encoder: A policy's, to share; None for one of its own.
        image_features: Features of each image.
        generator: Source of the initial weights; None is torch's global generator.

    Raises:
        UnsupportedSpaceError: another kind of space, named by its path.
    """

    def __init__(
        self,
        observation_space: Space,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
        *,
        encoder: Encoder | None = None,
        image_features: int | None = COMBINED_FEATURES,
        generator: torch.Generator | None = None,
    ) -> None:
        if encoder is None:
            encoder = Encoder(observation_space, image_features, generator=generator)
        super().__init__(encoder, hidden_sizes, activation, generator=generator)


def require_image(space: Space) -> None:
    """ValueError unless the space is one of images."""
    if image_of(space) is None:
        raise ValueError(
            f"a CnnPolicy is for images, a bounded Box [height, width, channels] or [channels, "
            f"height, width] of 3 pixels a side or more, got {space}. MultiInputPolicy serves "
            "images within a Dict or Tuple, MlpPolicy vectors"
        )
