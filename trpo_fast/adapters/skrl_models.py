"""skrl's models as ``TRPOOptimizer`` takes them."""

from __future__ import annotations

from typing import Any

import torch
from skrl.models.torch import GaussianMixin
from torch import nn
from torch.distributions import Distribution, Independent, Normal

from trpo_fast.adapters.common import joint

# A Gaussian whose log std moves by 1 has a KL(old, new) of 0.57 or more: within max_kl of 0.5, a
# log std further than 1 from skrl's clipping bounds cannot reach them.
MARGIN, LARGEST_KL = 1.0, 0.5


class Actor(nn.Module):
    """A skrl model as ``TRPOOptimizer`` takes it: observations to the joint distribution.

    Args:
        model: Any model whose ``act`` leaves a ``distribution``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.unclipped = model, False

    def forward(self, obs: Any) -> Distribution:
        """The distribution of the actions, batch_shape ``[N]``; a dict is model inputs."""
        inputs = obs if isinstance(obs, dict) else {"observations": obs, "states": None}
        if self.unclipped:
            mean, extra = self.model.compute(inputs, "policy")
            return Independent(Normal(mean, extra["log_std"].exp()), 1)
        self.model.act(inputs, role="policy")
        return joint(self.model.distribution(role="policy"))

    @torch.no_grad()
    def look(self, inputs: dict[str, Any], max_kl: float) -> None:
        """Note whether no clipping bound of a Gaussian is within a step's reach."""
        model = self.model
        self.unclipped = type(model).act is GaussianMixin.act and not model._g_clip_mean_actions
        if self.unclipped and model._g_clip_log_std:
            log_std = model.compute(inputs, "policy")[1]["log_std"]
            low, high = model._g_min_log_std + MARGIN, model._g_max_log_std - MARGIN
            within = bool(((low < log_std) & (log_std < high)).all()) and max_kl <= LARGEST_KL
            self.unclipped = within and isinstance(log_std, nn.Parameter)
