"""TRPO for skrl: ``from trpo_fast.skrl import TRPO`` in place of ``skrl.agents.torch.trpo``'s.

The class is skrl's agent with another ``update``: memories, models, configuration, advantages and
the value network's epochs are skrl's. Departures: ``accept_ratio`` is of the improvement that the
candidate at hand promises (skrl's promise shrinks twice with each), the KL is measured for every
kind of policy, and an update that finds no candidate leaves the policy bit-identical.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from trpo_fast.optimizer import TRPOOptimizer
from trpo_fast.trust_region import TrustRegionResult

try:
    import skrl
    from skrl.agents.torch.trpo.trpo import TRPO as SkrlTRPO  # noqa: N811
    from skrl.agents.torch.trpo.trpo import compute_gae
    from skrl.models.torch import CategoricalMixin, GaussianMixin
except ImportError as error:
    raise ImportError("trpo_fast.skrl needs skrl 2: pip install 'trpo_fast[skrl]'") from error

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
        found = self.model.distribution(role="policy")
        extra = len(found.batch_shape) - 1
        return Independent(found, extra) if extra > 0 else found

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


class TRPO(SkrlTRPO):  # type: ignore[misc]
    """skrl's TRPO agent with the fused update.

    ``GaussianMixin`` whose ``log_std`` is a parameter and ``CategoricalMixin`` take the fused path
    where ``compute`` is a perceptron of the observations; others the generic one.

    Attributes:
        policy_optimizer: The policy's ``TRPOOptimizer``; what ``cfg`` names is set from there at
            each update, the rest may be edited.
        last_result: The last policy update's ``TrustRegionResult``, or None.

    Raises:
        ValueError: skrl runs distributed; each process would step by its own trust region.
    """

    last_result: TrustRegionResult | None = None

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        if skrl.config.torch.is_distributed:
            raise ValueError("trpo_fast.skrl.TRPO serves one process; use skrl's own TRPO here")
        self._actor = Actor(self.policy)
        self.policy_optimizer = TRPOOptimizer(self._actor)

    def update(self, *, timestep: int, timesteps: int) -> None:  # noqa: ARG002
        """One trust-region step, then ``learning_epochs`` of the value network."""
        self._set_advantages()
        names, rows = self._tensors_names_policy, len(self.memory)
        sampled = self.memory.sample(names=names, batch_size=rows, mini_batches=1)[0]
        inputs = self._inputs(sampled[0], sampled[1], train=True)
        result = self.last_result = self._step_policy(inputs, *sampled[2:])
        self.track_data("Loss / Policy loss", -result.loss_before)
        self.track_data("Loss / Value loss", self._fit_values())
        with torch.no_grad():
            self.policy.act(inputs, role="policy")
        spread = self.policy.distribution(role="policy").stddev.mean().item()
        self.track_data("Policy / Standard deviation", spread)
        if self.value_scheduler:
            rate = self.value_scheduler.get_last_lr()[0]
            self.track_data("Learning / Value learning rate", rate)

    def _inputs(self, observations: Any, states: Any, *, train: bool = False) -> dict[str, Any]:
        return {
            "observations": self._observation_preprocessor(observations, train=train),
            "states": self._state_preprocessor(states, train=train),
        }

    @torch.no_grad()
    def _set_advantages(self) -> None:
        memory, cfg, scaled = self.memory, self.cfg, self._value_preprocessor
        self.value.enable_training_mode(False)
        inputs = self._inputs(self._current_next_observations, self._current_next_states)
        last_values = scaled(self.value.act(inputs, role="value")[0], inverse=True)
        self.value.enable_training_mode(True)
        named = ("rewards", "terminated", "truncated", "values")
        kept = {name: memory.get_tensor_by_name(name) for name in named}
        returns, advantages = compute_gae(
            **kept,
            last_values=last_values,
            discount_factor=cfg.discount_factor,
            lambda_coefficient=cfg.gae_lambda,
            time_limit_bootstrap=cfg.time_limit_bootstrap,
        )
        memory.set_tensor_by_name("values", scaled(kept["values"], train=True))
        memory.set_tensor_by_name("returns", scaled(returns, train=True))
        memory.set_tensor_by_name("advantages", advantages)

    def _step_policy(
        self, inputs: dict[str, Any], actions: Tensor, log_prob: Tensor, advantages: Tensor
    ) -> TrustRegionResult:
        cfg, optimizer = self.cfg, self.policy_optimizer
        optimizer.param_groups[0].update(
            max_kl=float(cfg.max_kl_divergence),
            damping=float(cfg.damping),
            cg_iters=int(cfg.conjugate_gradient_steps),
            backtrack_coeff=0.5,
            max_backtracks=int(cfg.max_backtrack_steps) - 1,
            accept_ratio=float(cfg.accept_ratio),
            lr=float(cfg.step_fraction),
        )
        self._actor.look(inputs, cfg.max_kl_divergence)
        joint = getattr(self.policy, "_g_reduction", torch.sum) is torch.sum
        optimizer.step(
            obs=inputs["observations"] if inputs["states"] is None else inputs,
            actions=actions.flatten() if isinstance(self.policy, CategoricalMixin) else actions,
            advantages=advantages.flatten(),
            old_log_prob=log_prob.flatten() if joint else None,
        )
        assert optimizer.last_result is not None  # noqa: S101
        return optimizer.last_result

    def _fit_values(self) -> float:
        """Minibatch regression on the returns, as skrl has it; the mean loss."""
        cfg, losses = self.cfg, []
        names, rows = self._tensors_names_value, len(self.memory)
        for epoch in range(cfg.learning_epochs):
            for observations, states, returns in self.memory.sample(
                names=names, batch_size=rows, mini_batches=cfg.mini_batches
            ):
                inputs = self._inputs(observations, states, train=not epoch)
                predicted = self.value.act(inputs, role="value")[0]
                loss = cfg.value_loss_scale * nn.functional.mse_loss(returns, predicted)
                self.value_optimizer.zero_grad()
                loss.backward()
                if cfg.grad_norm_clip > 0:
                    nn.utils.clip_grad_norm_(self.value.parameters(), cfg.grad_norm_clip)
                self.value_optimizer.step()
                losses.append(loss.item())
            if self.value_scheduler:
                self.value_scheduler.step()
        return float(sum(losses) / max(1, len(losses)))
