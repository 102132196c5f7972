"""rsl_rl's models as ``TRPOOptimizer`` and the critic's fit take them."""

from __future__ import annotations

from math import exp, inf, log
from typing import Any, NamedTuple

import torch
from rsl_rl.models import MLPModel
from rsl_rl.modules import distribution as heads
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from trpo_fast.adapters.common import joint

# A Gaussian whose log std moves by 1 has a KL(old, new) of 0.57 or more: within max_kl of 0.5, a
# log std further than 1 from the bounds of std_range cannot reach them.
MARGIN, LARGEST_KL = 1.0, 0.5
BETA = getattr(heads, "BetaDistribution", None)  # not in every release of rsl-rl-lib 5
SERVED = tuple(
    kind
    for kind in (heads.GaussianDistribution, heads.HeteroscedasticGaussianDistribution, BETA)
    if kind is not None
)


class Inputs(NamedTuple):
    """What a recurrent model is given: padded trajectories and the states that they begin with."""

    observations: Any
    masks: Tensor
    hidden_state: Any


def perceptron_input(model: Any, observations: Any) -> Tensor | None:
    """What the model's perceptron reads, ``[N, W]``; None where another network stands before it.

    Args:
        model: An ``MLPModel``. Its groups side by side, normalised, are constants of an update.
        observations: Groups of ``[N, ...]`` tensors.
    """
    if not _plain(model):
        return None
    with torch.no_grad():
        latent: Tensor = model.get_latent(observations)
    return latent


def _plain(model: Any) -> bool:
    kind = type(model)
    return kind.get_latent is MLPModel.get_latent and kind.forward is MLPModel.forward


def distribution_of(model: Any, *given: Any) -> Distribution:
    """What a model makes of its inputs, which it keeps as its distribution of now."""
    head = model.distribution
    head.update(model.mlp(model.get_latent(*given)))
    return Independent(head._distribution, 1)


def actor_of(model: Any) -> Actor:
    """The actor that serves the model.

    Raises:
        ValueError: its distribution is none of rsl_rl's own, or its ``forward``.
    """
    head = model.distribution
    if type(model).forward is not MLPModel.forward:
        raise ValueError(
            f"{type(model).__name__} has a forward of its own; trpo_fast.rsl_rl.TRPO serves models "
            "whose forward is MLPModel's: override get_latent in its place"
        )
    if type(head) not in SERVED:
        names = ", ".join(kind.__name__ for kind in SERVED)
        raise ValueError(
            f"the actor's distribution is {type(head).__name__}; trpo_fast.rsl_rl.TRPO serves "
            f"{names}: choose one as class_name of the actor's distribution_cfg"
        )
    return GaussianActor(model) if _plain(model) and type(head) is SERVED[0] else Actor(model)


class Actor:
    """An rsl_rl model as a policy of its observation groups, or of ``Inputs``.

    Args:
        model: With one of the distributions ``SERVED``.

    Attributes:
        policy: What ``TRPOOptimizer`` steps.
    """

    policy: nn.Module

    def __init__(self, model: Any) -> None:
        self.model, self.policy = model, ModelPolicy(model)

    def read(self, observations: Any) -> Any:
        """What ``policy`` takes for these groups of ``[N, ...]`` tensors."""
        return dict(observations.items())  # a model of the user's own may read any of them

    def actions(self, actions: Tensor, log_prob: Tensor) -> tuple[Tensor, Tensor]:
        """Actions and their log-probabilities in the distribution's own terms."""
        head = self.model.distribution
        if type(head) is not BETA:
            return actions, log_prob
        low, high = head.action_range
        # rsl_rl keeps the ends out of reach by as much
        inside = ((actions - low) / (high - low)).clamp(1e-6, 1 - 1e-6)
        return inside, log_prob + actions.shape[-1] * log(high - low)

    def begin(self, max_kl: float) -> None:
        """Get ready for a step."""

    def finish(self) -> None:
        """Take over what an accepted step has changed."""


class ModelPolicy(nn.Module):
    """An rsl_rl model as it is.

    Args:
        model: With one of the distributions ``SERVED``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, obs: Any) -> Distribution:
        """The distribution of the actions, batch_shape ``[N]`` or that of the trajectories."""
        return distribution_of(self.model, *(obs if isinstance(obs, Inputs) else (obs,)))


class GaussianActor(Actor):
    """A perceptron of the observations with rsl_rl's Gaussian: the fused path serves it.

    The standard deviation is stepped by its logarithm, also where rsl_rl's parameter is the
    deviation itself (``std_type="scalar"``): the steps are relative, and none leads below 0.
    """

    policy: GaussianPolicy

    def __init__(self, model: Any) -> None:
        self.model, self.policy = model, GaussianPolicy(model)

    def read(self, observations: Any) -> Tensor:
        """The perceptron's input, ``[N, W]``."""
        latent = perceptron_input(self.model, observations)
        assert latent is not None  # noqa: S101
        return latent

    @torch.no_grad()
    def begin(self, max_kl: float) -> None:
        """Read the deviation, and note whether a bound of its range is within a step's reach."""
        head, log_std = self.model.distribution, self.policy.log_std
        if head.std_type == "scalar":
            log_std.copy_(head.std_param.clamp_min(exp(self.policy.bounds[0])).log())
        low, high = self.policy.bounds[0] + MARGIN, self.policy.bounds[1] - MARGIN
        within = bool(((low < log_std) & (log_std < high)).all())
        self.policy.clamped = not (within and max_kl <= LARGEST_KL)

    @torch.no_grad()
    def finish(self) -> None:
        """Write the deviation."""
        head = self.model.distribution
        if head.std_type == "scalar":
            head.std_param.copy_(self.policy.log_std.exp())


class GaussianPolicy(nn.Module):
    """A model's perceptron and the logarithm of its standard deviation.

    Args:
        model: With ``GaussianDistribution``.

    Attributes:
        bounds: Of the logarithm, within which the model clamps it.
        clamped: Whether ``forward`` does so, too.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.mlp, head = model.mlp, model.distribution
        if head.std_type == "scalar":
            self.log_std = nn.Parameter(
                torch.zeros_like(head.std_param), requires_grad=head.std_param.requires_grad
            )
        else:
            self.log_std = head.log_std_param
        self.bounds = tuple(getattr(head, "log_std_range", (-inf, inf)))
        self.clamped = True

    def forward(self, obs: Tensor) -> Distribution:
        """The distribution of the actions for ``perceptron_input``, batch_shape ``[N]``."""
        log_std = self.log_std.clamp(*self.bounds) if self.clamped else self.log_std
        return joint(Normal(self.mlp(obs), log_std.exp()))
