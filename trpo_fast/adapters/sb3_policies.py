"""Stable-Baselines3's policies as the modules and functions that the rest of the package takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from sb3_contrib.common.maskable.distributions import (
    MaskableBernoulliDistribution,
    MaskableCategoricalDistribution,
    MaskableMultiCategoricalDistribution,
)
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from torch import Tensor, nn
from torch.distributions import Distribution

from trpo_fast.adapters.common import joint
from trpo_fast.backends.forward import forward_function
from trpo_fast.networks.distributions import MaskedCategorical, MultiCategorical
from trpo_fast.recognition.recognizer import layers_of, network_of

# Their KL in SB3 is one number an action dimension; the joint action's is the sum.
BY_DIMENSION = DiagGaussianDistribution | StateDependentNoiseDistribution | BernoulliDistribution
LOG_2PI = math.log(2 * math.pi)
# Masked ones whose logits are a stock policy's outputs; a subclass may make others of them.
OF_OUTPUTS = (
    MaskableCategoricalDistribution,
    MaskableMultiCategoricalDistribution,
    MaskableBernoulliDistribution,
)
Acted = tuple[Tensor, Tensor, Tensor]  # actions [B, ...], values [B, 1], log-probabilities [B]


class Actor(nn.Module):
    """An SB3 policy as ``TRPOOptimizer`` takes one: observations to the joint distribution.

    Args:
        policy: an ``ActorCriticPolicy``.
    """

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, obs: Any, action_mask: Tensor | None = None) -> Distribution:
        """The distribution of the actions, batch_shape ``[N]``.

        Args:
            obs: as the policy takes them.
            action_mask: ``[N, n]`` bool, for a policy of sb3-contrib's that masks.
        """
        policy = self.policy
        if isinstance(policy, MaskableActorCriticPolicy):
            return _masked(policy, obs, action_mask)
        blocks = type(policy.action_dist) is MultiCategoricalDistribution
        if blocks and _is_stock(policy, ActorCriticPolicy):
            return MultiCategorical(_logits(policy, obs), policy.action_dist.action_dims)
        found = policy.get_distribution(obs)
        if isinstance(found, MultiCategoricalDistribution):
            logits = torch.cat([block.logits for block in found.distribution], dim=1)
            return MultiCategorical(logits, found.action_dims)
        return joint(found.distribution)


def _masked(policy: Any, obs: Any, mask: Tensor | None) -> Distribution:
    """sb3-contrib's distribution as one of ours, whose forbidden actions have probability 0."""
    stock = _is_stock(policy, MaskableActorCriticPolicy) and type(policy.action_dist) in OF_OUTPUTS
    found = policy.action_dist if stock else policy.get_distribution(obs)
    if isinstance(found, MaskableMultiCategoricalDistribution):  # of bits as well: two choices each
        logits = (
            _logits(policy, obs)
            if stock
            else torch.cat([block.logits for block in found.distributions], dim=1)
        )
        return MultiCategorical(logits, found.action_dims, mask)
    return MaskedCategorical(_logits(policy, obs) if stock else found.distribution.logits, mask)


def _is_stock(policy: Any, base: type) -> bool:
    """Whether a policy makes its distribution as the library's own class does."""
    names = ("get_distribution", "_get_action_dist_from_latent")
    own = vars(policy)  # where a method may have been replaced in this policy alone
    return all(getattr(type(policy), n) is getattr(base, n) and n not in own for n in names)


def _logits(policy: Any, obs: Any) -> Tensor:
    """A stock policy's outputs before SB3 normalises them, ``[N, n]``: all blocks side by side."""
    features = BasePolicy.extract_features(policy, obs, policy.pi_features_extractor)
    logits: Tensor = policy.action_net(policy.mlp_extractor.forward_actor(features))
    return logits


class Values(nn.Module):
    """An SB3 policy's values of observations, ``[N, 1]``.

    Args:
        policy: an ``ActorCriticPolicy``.
    """

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, obs: Tensor) -> Tensor:
        """The values ``[N, 1]``."""
        values: Tensor = self.policy.predict_values(obs)
        return values


class Acting:
    """``policy(obs)`` for a rollout: natively where it is a perceptron, else itself.

    It draws what the policy draws from torch's generator, and follows a callback that changes the
    parameters.

    Args:
        policy: an ``ActorCriticPolicy`` in eval mode.
        obs: a batch as the policy will see, on which it is recognised.
    """

    def __init__(self, policy: Any, obs: Any) -> None:
        self.policy = policy
        self._parameters = list(policy.parameters())
        self._obs, self._versions = obs, self._now()
        self._fused = self._recognise(obs)

    def __call__(self, obs: Any, **masks: Any) -> Acted:
        """Actions, values and log-probabilities, outside autograd; ``masks`` are the policy's."""
        if self._fused is None:
            acted: Acted = self.policy(obs, **masks)
            return acted
        versions = self._now()
        if versions != self._versions:
            self._versions, self._fused = versions, self._recognise(obs)
            return self(obs, **masks)
        return self._fused(obs.flatten(1).float(), **masks)

    def _now(self) -> list[tuple[int, int]]:
        return [(p._version, p.data_ptr()) for p in self._parameters]

    def _recognise(self, obs: Any) -> Callable[..., Acted] | None:
        """The policy's forward on the recognised networks, or None."""
        policy = self.policy
        masking = isinstance(policy, MaskableActorCriticPolicy)
        base = MaskableActorCriticPolicy if masking else ActorCriticPolicy
        stock = (
            type(policy).forward is base.forward
            and _is_stock(policy, base)
            and isinstance(obs, Tensor)
            and obs.is_cpu
            and obs.is_floating_point()
        )
        if not stock:
            return None
        rows = obs.float()  # as SB3's own preprocessing has it
        actor = network_of(Actor(policy), rows)
        critic = layers_of(Values(policy), rows)
        if isinstance(actor, str) or isinstance(critic, str):
            return None
        if actor.layers[0].weight.dtype != torch.float32:
            return None
        outputs, values = forward_function(actor.layers), forward_function(critic)
        if type(policy.action_dist) is DiagGaussianDistribution:
            return _Gaussian(outputs, values, policy.log_std.detach(), policy.action_space.shape)
        return self._by_distribution(outputs, values)

    def _by_distribution(
        self, outputs: Callable[[Tensor], Tensor], values: Callable[[Tensor], Tensor]
    ) -> Callable[..., Acted]:
        policy = self.policy

        def act(obs: Tensor, action_masks: Any = None) -> Acted:
            distribution = policy.action_dist.proba_distribution(action_logits=outputs(obs))
            if action_masks is not None:
                distribution.apply_masking(action_masks)
            actions = distribution.get_actions()
            log_prob = distribution.log_prob(actions)
            return actions.reshape((-1, *policy.action_space.shape)), values(obs), log_prob

        return act


class _Gaussian:
    """A diagonal Gaussian with its values; the draws are those of ``Normal.rsample``."""

    def __init__(
        self,
        outputs: Callable[[Tensor], Tensor],
        values: Callable[[Tensor], Tensor],
        log_std: Tensor,
        shape: tuple[int, ...],
    ) -> None:
        self._outputs, self._values, self._shape = outputs, values, shape
        self._std = log_std.exp()
        # log N(mean + std e) = -e'e / 2 - sum(log std) - A log(2 pi) / 2
        self._constant = float(log_std.sum()) + 0.5 * len(log_std) * LOG_2PI

    def __call__(self, obs: Tensor) -> Acted:
        mean = self._outputs(obs)
        noise = torch.normal(torch.zeros_like(mean), 1.0)
        log_prob = noise.square().sum(1).mul_(-0.5).sub_(self._constant)
        actions = torch.addcmul(mean, noise, self._std)
        return actions.view(-1, *self._shape), self._values(obs), log_prob
