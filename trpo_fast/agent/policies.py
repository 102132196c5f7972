"""Which policy and value function an agent has: by name, by the spaces, or the user's own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import nn

from trpo_fast.agent.config import Config, ConfigError
from trpo_fast.base.errors import users_level
from trpo_fast.base.images import image_of
from trpo_fast.base.spaces import Space, leaves
from trpo_fast.environments.flattening import ObservationFlattener
from trpo_fast.environments.packing import ObservationPacker
from trpo_fast.environments.row_format import RowFormat
from trpo_fast.networks.beta import GREATEST_LOG_STD, LEAST_LOG_STD
from trpo_fast.networks.encoded import EncodedPolicy
from trpo_fast.networks.mlp import (
    MlpPolicy,
    ValueFunction,
    action_leaves,
    has_units,
    spans_float32,
    state_log_stds,
)
from trpo_fast.networks.recurrent import (
    RecurrentPolicy,
    RecurrentValueFunction,
    is_recurrent,
)
from trpo_fast.networks.structured import (
    CnnPolicy,
    CnnValueFunction,
    MultiInputPolicy,
    MultiInputValueFunction,
    StructuredPolicy,
)

STRUCTURED = "structured"
FLAT = "flat"
# Of a Box's width, below which the first Gaussian reaches next to nothing of it.
NARROW_SHARE = 0.01
# First log standard deviation of one squashed number: docs/choosing-defaults.md.
WIDE_LOG_STD = 1.0
# Policies on observations as they are.
NESTED = ("cnn", "multi_input", "recurrent")


def chosen(name: str, space: Space) -> str:
    """The policy that "auto" is for a space: a perceptron where no part of it is an image."""
    if name != "auto":
        return name
    if image_of(space) is not None:
        return "cnn"
    return "multi_input" if any(image_of(leaf) for _, leaf in leaves(space)) else "mlp"


def observation_kind(module: nn.Module) -> str:
    """Whether a module takes flattened rows or the environment's nesting; it says so itself."""
    kind = getattr(module, "observation", FLAT)
    if kind not in (FLAT, STRUCTURED):
        raise ConfigError(
            f"{type(module).__name__}.observation is {kind!r}; it is {STRUCTURED!r} for the "
            f"environment's own nesting, or {FLAT!r}, as without it, for flattened rows"
        )
    return str(kind)


def row_format(policy: nn.Module | None, name: str) -> Callable[[Space], RowFormat]:
    """What makes the format of observations from their space, for a module or a policy's name."""
    return partial(_format, None if policy is None else observation_kind(policy), name)


def _format(kind: str | None, name: str, space: Space) -> RowFormat:
    nested = chosen(name, space) in NESTED if kind is None else kind == STRUCTURED
    return ObservationPacker(space) if nested else ObservationFlattener(space)


def make_networks(
    config: Config,
    observation_space: Space,
    action_space: Space,
    rows: RowFormat,
    *,
    policy: nn.Module | None,
    value_function: nn.Module | None,
) -> tuple[nn.Module, nn.Module]:
    """The two networks of an agent, those of the user where they are given.

    Raises:
        ValueError: an option or space that the networks asked for cannot serve.
    """
    generator = torch.Generator("cpu").manual_seed(int(config.seed or 0))
    kind = STRUCTURED if isinstance(rows, ObservationPacker) else FLAT
    name = chosen(config.policy, observation_space)
    if policy is None:
        policy = _policy(name, config, observation_space, action_space, generator)
    if value_function is None:
        if kind == FLAT:
            name = "mlp"
        elif is_recurrent(policy):
            name = "recurrent"
        elif name not in NESTED:
            name = "multi_input"
        value_function = _value_function(name, config, observation_space, policy, generator)
    elif observation_kind(value_function) != kind:
        raise ConfigError(
            f"the policy takes {kind} observations, the value function "
            f"{observation_kind(value_function)} ones: both must take the same, as "
            "observation = 'structured' on a module says"
        )
    if is_recurrent(value_function) and not is_recurrent(policy):
        raise ConfigError(
            "the value function has a memory and the policy has none: use policy='recurrent', or a "
            "value function without"
        )
    if kind == FLAT:
        _warn_of_flat_images(policy, observation_space)
    return policy, value_function


def _policy(
    name: str,
    config: Config,
    observation_space: Space,
    action_space: Space,
    generator: torch.Generator,
) -> nn.Module:
    distribution = box_distribution(config, action_space)
    options: dict[str, Any] = {
        "log_std_init": first_log_std(config.log_std_init, action_space, distribution),
        "scale_actions": config.scale_actions,
        "state_dependent_std": config.state_dependent_std,
        "distribution": distribution,
        "generator": generator,
    }
    if name == "cnn":
        return CnnPolicy(observation_space, action_space, **options)
    sizes, activation = config.hidden_sizes, config.activation
    if name == "recurrent":
        options |= {"cell": config.cell, "cell_size": config.cell_size}
        return RecurrentPolicy(observation_space, action_space, sizes, activation, **options)
    kind = MultiInputPolicy if name == "multi_input" else MlpPolicy
    return kind(observation_space, action_space, sizes, activation, **options)


def first_log_std(given: float | None, action_space: Space, distribution: str) -> float:
    """What is given, or that with which the numbers of an action have squares that add up to 1.

    That of one squashed number comes near it with ``WIDE_LOG_STD`` before the tanh.
    """
    if given is not None:
        return given
    numbers = _numbers(action_space)
    if numbers == 1 and distribution == "squashed":
        return WIDE_LOG_STD
    return math.log(1 / max(numbers, 1)) / 2


def box_distribution(config: Config, action_space: Space) -> str:
    """What is given, or what "auto" is for a space.

    Between finite bounds that is a Beta, or for one number, of which a Beta's first actions would
    be too small, a squashed Gaussian. Elsewhere, and where options ask for what these have not, a
    Gaussian.
    """
    if config.distribution != "auto":
        return config.distribution
    boxes = [box for _, box in named_boxes(action_space)]
    if not config.scale_actions or not all(map(spans_float32, boxes)):
        return "gaussian"
    numbers = _numbers(action_space)
    if numbers < 2:
        return "squashed" if numbers else "gaussian"
    given = config.log_std_init
    beyond = given is not None and not LEAST_LOG_STD <= given <= GREATEST_LOG_STD
    return "gaussian" if config.state_dependent_std or beyond else "beta"


def _numbers(action_space: Space) -> int:
    """In the Boxes of an action."""
    return sum(box.low.size for _, box in named_boxes(action_space))


def named_boxes(action_space: Space) -> list[tuple[str, spaces.Box]]:
    """The parts of an action that are Boxes, with their names in messages."""
    parts = action_leaves(action_space)
    return [(name, part) for name, part in parts if isinstance(part, spaces.Box)]


def _value_function(
    name: str,
    config: Config,
    observation_space: Space,
    policy: nn.Module,
    generator: torch.Generator,
) -> nn.Module:
    shared = None
    if config.share_encoder:
        if not isinstance(policy, StructuredPolicy):
            raise ConfigError(
                "share_encoder=True shares the encoder of a policy of kind 'cnn' or "
                f"'multi_input'; this one is a {type(policy).__name__}"
            )
        shared = policy.encoder
    if name == "cnn":
        return CnnValueFunction(observation_space, encoder=shared, generator=generator)
    sizes, activation = config.value_hidden_sizes, config.activation
    if name == "recurrent":
        return RecurrentValueFunction(
            observation_space,
            sizes,
            activation,
            cell=config.cell,
            cell_size=config.cell_size,
            generator=generator,
        )
    if name == "multi_input":
        return MultiInputValueFunction(
            observation_space, sizes, activation, encoder=shared, generator=generator
        )
    return ValueFunction(observation_space, sizes, activation, generator=generator)


def _warn_of_flat_images(policy: nn.Module, space: Space) -> None:
    """Warn where a perceptron of ours is shown an image as a row of numbers."""
    images = [leaf for _, leaf in leaves(space) if image_of(leaf) is not None]
    if images and isinstance(policy, MlpPolicy):
        better = (
            "MultiInputPolicy" if isinstance(space, spaces.Dict | spaces.Tuple) else "CnnPolicy"
        )
        name = "multi_input" if better == "MultiInputPolicy" else "cnn"
        warnings.warn(
            f"images of {images[0].shape} are flattened into a perceptron, which does not see "
            f"what lies beside what: {better} (policy={name!r}) does",
            stacklevel=users_level(),
        )


def warn_of_distant_bounds(policy: nn.Module, space: spaces.Space[Any]) -> None:
    """Warn where the first Gaussian of a policy of ours hardly meets a Box's bounds.

    Its actions are then all clipped to one value, or to a corner of the Box: updates are accepted
    and nothing is learnt. Or they are next to alike, and nothing is tried.
    """
    if isinstance(policy, EncodedPolicy):
        policy = policy.actor
    boxes = named_boxes(space)
    if not isinstance(policy, MlpPolicy) or policy.distribution != "gaussian" or not boxes:
        return
    learnt = policy.log_std
    if learnt is None:  # the last outputs, at first the same everywhere
        log_std = cast("nn.Linear", policy.body[-1]).bias[state_log_stds(policy.head)]
    else:
        log_std = learnt.data
    first = log_std.detach().double().exp().numpy(force=True)
    widths = np.cumsum([part.low.size for _, part in boxes])
    for (name, part), deviations in zip(boxes, np.split(first, widths[:-1]), strict=True):
        scaled = policy.scale_actions & has_units(part).ravel()
        _warn_of_box("action" if part is space else name, part, 2 * deviations, scaled)


def _warn_of_box(
    name: str,
    space: spaces.Box,
    reach: npt.NDArray[np.float64],
    scaled: npt.NDArray[np.bool_],
) -> None:
    """``reach`` is how far actions go, where they are ``scaled`` in units of the bounds."""
    low, high = space.low.ravel().astype(np.float64), space.high.ravel().astype(np.float64)
    least, most = np.where(scaled, -1, low), np.where(scaled, 1, high)
    outside = (least > reach) | (most < -reach)
    with np.errstate(invalid="ignore", over="ignore"):
        narrow = 2 * reach < NARROW_SHARE * (most - least)
        narrow &= np.isfinite(most - least)
    if not (outside | narrow).any():
        return
    index = int(np.flatnonzero(outside | narrow)[0])
    how = "lie outside" if outside[index] else f"span under {NARROW_SHARE:.0%} of"
    unit = " in units of the bounds" if scaled[index] else ""
    if least[index] == -1 and most[index] == 1:
        advice = "Raise log_std_init"
    elif has_units(space).flat[index]:
        advice = (
            "What is clipped there teaches nothing: let the policy's scale_actions be True, which "
            "has it in units of the bounds, or use distribution='squashed'"
        )
    else:
        advice = (
            "What is clipped there teaches nothing: shift and scale actions with "
            "gymnasium.wrappers.TransformAction"
        )
    warnings.warn(
        f"the policy's first actions, within +-{reach[index]:.3g}{unit}, {how} the bounds of "
        f"{name} {index}, [{low[index]:g}, {high[index]:g}]. {advice}",
        stacklevel=users_level(),
    )
