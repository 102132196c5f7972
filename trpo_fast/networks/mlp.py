"""Perceptrons: the policy that the analytic Fisher products know, and the value function.

Initialisation: orthogonal with gain sqrt(2) and a last layer of gain 0.01, so that the first
policy hardly depends on the observation (Engstrom et al. 2020, section 3; Andrychowicz et al.
2021, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Distribution

from trpo_fast.base.spaces import SUPPORTED_ACTIONS, leaves, observation_width
from trpo_fast.base.trees import aligned, named, refilled
from trpo_fast.networks.activations import ACTIVATIONS
from trpo_fast.networks.beta import BetaHead, output_for
from trpo_fast.networks.distributions import mode
from trpo_fast.networks.head import BOX_DISTRIBUTIONS, Head, Outputs
from trpo_fast.networks.heads import StateStdGaussianHead, head_for
from trpo_fast.networks.joint_head import JointHead
from trpo_fast.networks.orthogonal import orthogonal_


def perceptron(
    widths: Sequence[int],
    activation: str,
    *,
    last_gain: float,
    ortho_init: bool = True,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Linear layers of the given widths with an activation between them, none after the last.

    Args:
        widths: Input width, hidden widths, output width.
        activation: A key of ``ACTIVATIONS``.
        last_gain: Gain of the last layer's orthogonal initialisation; the others have sqrt(2).
        ortho_init: False leaves ``torch.nn.Linear``'s own initialisation.
        generator: Source of the random numbers; None is torch's global one.

    Raises:
        ValueError: unknown activation, or a width below 1.
    """
    if activation not in ACTIVATIONS:
        names = ", ".join(ACTIVATIONS)
        raise ValueError(f"activation {activation!r} is unknown; known: {names}")
    if any(int(width) != width or width < 1 for width in widths):
        raise ValueError(f"layer widths must be whole numbers >= 1, got {tuple(widths)}")
    modules: list[nn.Module] = []
    for index, (n_in, n_out) in enumerate(pairwise(widths)):
        last = index == len(widths) - 2
        with torch.random.fork_rng([]):  # what torch draws first is not kept
            linear = nn.Linear(int(n_in), int(n_out))
        initialise(linear, last_gain if last else math.sqrt(2), generator, ortho_init)
        modules.append(linear)
        if not last:
            modules.append(ACTIVATIONS[activation].make())
    return nn.Sequential(*modules)


def hidden_widths(hidden_sizes: Iterable[int]) -> tuple[int, ...]:
    """``hidden_sizes`` as a tuple; ValueError where they are no widths."""
    given: object = hidden_sizes
    widths = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (0,)
    if not all(isinstance(w, Real) and float(w) >= 1 and float(w).is_integer() for w in widths):
        raise ValueError(
            f"hidden_sizes are the widths of the hidden layers, such as (64, 64), got {given!r}"
        )
    return tuple(int(width) for width in widths)


def flat_observations(obs: Tensor, body: nn.Sequential, width: int) -> Tensor:
    """``obs`` as ``[N, width]`` (or ``[width]``) in the dtype and on the device of ``body``.

    Raises:
        ValueError: on another width.
    """
    weight = cast("nn.Linear", body[0]).weight
    obs = torch.as_tensor(obs, device=weight.device).to(weight.dtype)
    flat = obs.flatten(1) if obs.ndim > 2 else obs
    if flat.ndim == 0 or flat.shape[-1] != width:
        raise ValueError(f"obs has shape {tuple(obs.shape)}, expected [N, {width}]")
    return flat


def initialise(
    layer: nn.Linear | nn.Conv2d,
    gain: float,
    generator: torch.Generator | None,
    ortho_init: bool = True,
) -> None:
    """Draw a layer's first weights: orthogonal (of filters as rows), or as torch does."""
    rows = layer.weight.detach().flatten(1)  # a view
    bias = cast("Tensor", layer.bias)
    if ortho_init:
        orthogonal_(rows, gain, generator)
        nn.init.zeros_(bias)
        return
    # torch.nn.Linear.reset_parameters, with a generator.
    bound = 1 / math.sqrt(rows.shape[1])
    nn.init.kaiming_uniform_(rows, a=math.sqrt(5), generator=generator)
    nn.init.uniform_(bias, -bound, bound, generator=generator)


class MlpPolicy(nn.Module):
    """A perceptron policy; ``forward(obs)`` gives the distribution of the joint action.

    Box actions are a diagonal Gaussian, Discrete ones categorical, MultiDiscrete ones independent
    categoricals, MultiBinary ones independent Bernoulli variables. Those of a Tuple or Dict, nested
    to any depth, are all of these side by side: a ``JointDistribution`` over one network's outputs.

    ``distribution="squashed"`` takes a Gaussian to be that of the action before ``tanh``:
    ``sample`` and ``log_prob`` speak of that one, and ``to_env`` applies the tanh. ``"beta"`` is a
    Beta distribution on (0, 1), which ``to_env`` takes to the bounds. KL and Fisher matrix are
    those of the environment's action, because both are invariant under a bijection.

    ``scale_actions`` has a Gaussian in units of the bounds: 0 is their middle and 1 the upper one,
    so that its spread, and the damping of its Fisher matrix, mean the same in every Box.

    Args:
        observation_space: gymnasium space; its flattened width is the input width O.
        action_space: gymnasium Box, Discrete, MultiDiscrete or MultiBinary, or Tuple or Dict.
        hidden_sizes: Widths of the hidden layers.
        activation: A key of ``trpo_fast.networks.activations.ACTIVATIONS``.
        log_std_init: Initial log standard deviation; of a Beta in units of half the distance of
            its bounds, and at least -5 and at most log(1/2).
        scale_actions: ``sample`` and ``log_prob`` of a Gaussian speak of actions in units of the
            bounds, and ``to_env`` of the Box's own. Numbers without two finite bounds stay as they
            are.
        state_dependent_std: The log standard deviation is an output, not a parameter (Gaussian).
        distribution: Of Box actions: "gaussian", "squashed" or "beta"; the last two need finite
            bounds.
        ortho_init: Orthogonal initialisation; False keeps ``torch.nn.Linear``'s own.
        generator: Source of the initial weights; None is torch's global generator.

    Raises:
        ValueError: unsupported space, unknown activation, or bounds that are not finite where the
            distribution needs them. Parts of a nested space are named by their path.
    """

    action_low: Tensor
    action_high: Tensor

    def __init__(
        self,
        observation_space: spaces.Space,  # type: ignore[type-arg]
        action_space: spaces.Space,  # type: ignore[type-arg]
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
        *,
        log_std_init: float = 0.0,
        scale_actions: bool = False,
        state_dependent_std: bool = False,
        distribution: str = "gaussian",
        ortho_init: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_boxes(action_space, distribution, state_dependent_std=state_dependent_std)
        head = head_for(
            action_space, state_dependent_std=state_dependent_std, distribution=distribution
        )
        if head is None:
            raise ValueError(
                f"action space {action_space} is not supported; supported: {SUPPORTED_ACTIONS}"
            )
        self.head = head
        self.obs_width = observation_width(observation_space)
        self.distribution, self.scale_actions = distribution, scale_actions
        widths = [self.obs_width, *hidden_widths(hidden_sizes), self.head.outputs]
        self.body = perceptron(
            widths, activation, last_gain=0.01, ortho_init=ortho_init, generator=generator
        )
        self.log_std: nn.Parameter | None = None
        if self.head.log_stds:
            self.log_std = nn.Parameter(torch.full((self.head.log_stds,), float(log_std_init)))
        elif state_dependent_std:
            log_stds = state_log_stds(self.head)
            cast("nn.Linear", self.body[-1]).bias.detach()[log_stds] = float(log_std_init)
        elif distribution == "beta":
            last = cast("nn.Linear", self.body[-1])
            last.bias.detach()[_concentrations(self.head)] = output_for(float(log_std_init))
        # One for each part; that of a space without parts has its bounds here as well.
        heads = head.heads if isinstance(head, JointHead) else (head,)
        parts = [part for _, part in action_leaves(action_space)]
        pairs = zip(heads, parts, strict=True)
        squash, scale = distribution == "squashed", scale_actions and distribution == "gaussian"
        self.ways_out = [WayOut(own, part, squash=squash, scale=scale) for own, part in pairs]
        for index, part in enumerate(parts):
            name = f"_{index}" if isinstance(head, JointHead) else ""
            low, high = _bounds(part)
            self.register_buffer(f"action_low{name}", low, persistent=False)
            self.register_buffer(f"action_high{name}", high, persistent=False)
            if (found := self.ways_out[index].units) is not None:
                first, span = map(torch.as_tensor, found)
                self.register_buffer(f"action_first{name}", first, persistent=False)
                self.register_buffer(f"action_span{name}", span, persistent=False)

    @property
    def plain(self) -> bool:
        """Whether ``to_env`` does no more than ``squashed``, ``action_units`` and clipping say."""
        return self.head.clips_to_env and "to_env" not in vars(self)

    @property
    def squashed(self) -> bool:
        """Whether a Box's actions go through ``squashed_to_unit`` first."""
        return self.ways_out[0].squash

    @property
    def action_units(self) -> tuple[Tensor, Tensor] | None:
        """What an action of 0 is in a Box, and how much one of 1 is more, where not 0 and 1.

        The middle of its bounds and half their distance, or of a Beta and of what is squashed the
        lower one and the whole; both of its shape. None for a space with parts, too.
        """
        return self._units("") if hasattr(self, "action_span") else None

    def _units(self, name: str) -> tuple[Tensor, Tensor]:
        return getattr(self, f"action_first{name}"), getattr(self, f"action_span{name}")

    def forward(self, obs: Tensor, action_mask: Any = None) -> Distribution:
        """The distribution of the actions, batch_shape ``[N]``.

        Args:
            obs: ``[N, O]``, or ``[N, ...]`` with O entries a row; cast to the parameters' dtype.
            action_mask: ``[N, n]`` bool, True where allowed; n is the number of logits of all
                discrete parts. Of a nested space also a mask a part, nested as it is, with None
                for what is not masked.

        Raises:
            ValueError: wrong width, a mask for a head that has none, or a row that allows nothing.
        """
        outputs = self.body(flat_observations(obs, self.body, self.obs_width))
        if action_mask is not None:
            action_mask = self.head.checked_mask(action_mask, outputs)
        return self.head.distribution(Outputs(outputs, self.log_std, action_mask))

    def to_env(self, actions: Any) -> Any:
        """What ``env.step`` takes, ``[N, *action_space.shape]``, from what ``sample`` gave.

        Squashed Gaussian: tanh, then rescaled to the Box. Beta: rescaled to the Box. Plain
        Gaussian: rescaled with ``scale_actions``, then clipped to the Box. Discrete kinds: shifted
        by the space's ``start``. Of a nested space: that of each part, nested.
        """
        if not isinstance(self.head, JointHead):
            return self._way_out(0, actions, "")
        if isinstance(actions, Tensor):
            actions = self.head.nested(actions)
        found = (
            self._way_out(index, part, f"_{index}")
            for index, part in enumerate(aligned("action", actions, self.head.nesting))
        )
        return refilled(self.head.nesting, found)

    def _way_out(self, index: int, actions: Tensor, name: str) -> Tensor:
        way = self.ways_out[index]
        low, high = getattr(self, f"action_low{name}"), getattr(self, f"action_high{name}")
        return way(actions, low, high, self._units(name) if way.units is not None else None)

    def mode(self, distribution: Distribution) -> Any:
        """The deterministic action of a distribution that ``forward`` gave."""
        return mode(distribution)


class WayOut:
    """From the actions that a head draws to the environment's, for a space without parts.

    Args:
        head: Of the space.
        space: Of one action.
        squash: Whether a Gaussian's actions go through a tanh.
        scale: Whether a Gaussian's are in units of the bounds.
    """

    def __init__(self, head: Head, space: spaces.Space, *, squash: bool, scale: bool) -> None:  # type: ignore[type-arg]
        self.head, self.shape = head, tuple(space.shape or ())
        self.squash = squash and isinstance(space, spaces.Box)
        # What an action of 0 is, and how much one of 1 is more; None where that is 0 and 1.
        self.units: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None
        if isinstance(space, spaces.Box):
            if self.squash or isinstance(head, BetaHead):
                self.units = interval(space)
            elif scale and has_units(space).any():
                self.units = units(space)

    def __call__(
        self, actions: Tensor, low: Tensor, high: Tensor, units: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """``[N, *shape]``, or one action; ``units`` as tensors, where it has them."""
        if self.head.action_shape:
            rows = actions.shape[: 1 if actions.ndim else 0]
            actions = actions.reshape(*rows, *self.shape)
        if self.squash:
            actions = squashed_to_unit(actions)
        if units is not None:
            first, span = (part.to(actions.dtype) for part in units)
            actions = actions * span + first
        return self.head.to_env(actions, low, high)  # rounding may have led past a bound


def squashed_to_unit(actions: Tensor) -> Tensor:
    """To [0, 1] by a tanh."""
    return 0.5 * (torch.tanh(actions) + 1)


def has_units(space: spaces.Box) -> npt.NDArray[np.bool_]:
    """Where a Box has two bounds that are finite (in float32, too) and not -1 and 1."""
    low, high = _float32_bounds(space)
    bounded: npt.NDArray[np.bool_] = np.isfinite(low) & np.isfinite(high)
    own: npt.NDArray[np.bool_] = (space.low != -1) | (space.high != 1)
    return bounded & own


def units(space: spaces.Box) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The middle of a Box's bounds and half their distance, 0 and 1 where it ``has_units`` not.

    Of the Box's shape, in float32 or float64.
    """
    low, high, own = space.low.astype(np.float64), space.high.astype(np.float64), has_units(space)
    middle, half = np.zeros(space.shape), np.ones(space.shape)
    # Each halved first: the difference of two bounds may be beyond the dtype.
    np.add(low / 2, high / 2, out=middle, where=own)
    np.subtract(high / 2, low / 2, out=half, where=own)
    dtype = np.result_type(space.low.dtype, np.float32)
    return middle.astype(dtype), half.astype(dtype)


def interval(space: spaces.Box) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The lower of a Box's bounds and their distance, as ``units``."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    dtype = np.result_type(space.low.dtype, np.float32)
    return low.astype(dtype), (high - low).astype(dtype)


def state_log_stds(head: Head) -> list[int]:
    """The outputs that are log standard deviations."""
    return [
        output
        for part, first in _with_first_output(head)
        if isinstance(part, StateStdGaussianHead)
        for output in range(first + part.width, first + part.outputs)
    ]


def _concentrations(head: Head) -> list[int]:
    """The outputs of which a Beta's concentrations are made."""
    return [
        output
        for part, first in _with_first_output(head)
        if isinstance(part, BetaHead)
        for output in range(first, first + part.outputs)
    ]


def _with_first_output(head: Head) -> Iterator[tuple[Head, int]]:
    """The parts of a head, each with the index of its first output."""
    first = 0
    for part in head.heads if isinstance(head, JointHead) else (head,):
        yield part, first
        first += part.outputs


def action_leaves(space: spaces.Space) -> list[tuple[str, spaces.Space]]:  # type: ignore[type-arg]
    """The parts of an action space in order, with their names in messages."""
    return [(named("action", path), part) for path, part in leaves(space)]


def _check_boxes(
    space: spaces.Space,  # type: ignore[type-arg]
    distribution: str,
    *,
    state_dependent_std: bool,
) -> None:
    """Raise ValueError where a Box cannot have what is asked for, or nothing is a Box."""
    if distribution not in BOX_DISTRIBUTIONS:
        known = ", ".join(BOX_DISTRIBUTIONS)
        raise ValueError(f"distribution is one of {known}, got {distribution!r}")
    if state_dependent_std and distribution == "beta":
        raise ValueError("state_dependent_std is of a Gaussian; a Beta's outputs are its spread")
    boxes = [pair for pair in action_leaves(space) if isinstance(pair[1], spaces.Box)]
    if (distribution != "gaussian" or state_dependent_std) and not boxes:
        what = "state_dependent_std" if state_dependent_std else f"distribution={distribution!r}"
        raise ValueError(f"{what} needs a Box, got {space}")
    for name, box in boxes:
        if distribution != "gaussian" and not spans_float32(cast("spaces.Box", box)):
            raise ValueError(
                f"distribution={distribution!r} needs finite bounds, {name} is {box} (finite as "
                "float32, their difference, too)"
            )


def spans_float32(space: spaces.Box) -> bool:
    """Whether a Box's bounds are finite as float32, and their difference, too."""
    low, high = _float32_bounds(space)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(high - low).all())


def _float32_bounds(space: spaces.Box) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    with np.errstate(over="ignore"):
        return space.low.astype(np.float32), space.high.astype(np.float32)


def _bounds(space: spaces.Space) -> tuple[Tensor, Tensor]:  # type: ignore[type-arg]
    """Bounds of a Box; for discrete kinds the first action, twice."""
    if isinstance(space, spaces.Box):
        return torch.as_tensor(space.low.copy()), torch.as_tensor(space.high.copy())
    start = torch.as_tensor(np.asarray(getattr(space, "start", 0), dtype=np.int64).copy())
    return start, start.clone()


class ValueFunction(nn.Module):
    """State values ``[N]`` from flattened observations ``[N, O]``.

    Args:
        observation_space: gymnasium space; its flattened width is the input width O.
        hidden_sizes: Widths of the hidden layers.
        activation: A key of ``trpo_fast.networks.activations.ACTIVATIONS``.
        ortho_init: Orthogonal initialisation (last layer gain 1); False keeps torch's own.
        generator: Source of the initial weights; None is torch's global generator.

    Raises:
        ValueError: unsupported space or unknown activation.
    """

    def __init__(
        self,
        observation_space: spaces.Space,  # type: ignore[type-arg]
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
        *,
        ortho_init: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.obs_width = observation_width(observation_space)
        self.body = perceptron(
            [self.obs_width, *hidden_widths(hidden_sizes), 1],
            activation,
            last_gain=1.0,
            ortho_init=ortho_init,
            generator=generator,
        )

    def forward(self, obs: Tensor) -> Tensor:
        """Values ``[N]`` of observations ``[N, O]``, cast to the parameters' dtype."""
        values: Tensor = self.body(flat_observations(obs, self.body, self.obs_width))
        return values.squeeze(-1)
