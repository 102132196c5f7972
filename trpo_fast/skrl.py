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

from trpo_fast.adapters.common import stepped
from trpo_fast.base.install import install_line
from trpo_fast.optimizer.optimizer import TRPOOptimizer
from trpo_fast.update.result import TrustRegionResult

try:
    import skrl
    from skrl.agents.torch.trpo.trpo import TRPO as SkrlTRPO  # noqa: N811
    from skrl.agents.torch.trpo.trpo import compute_gae
    from skrl.models.torch import CategoricalMixin

    from trpo_fast.adapters.skrl_models import Actor
except ImportError as error:
    raise ImportError(f"trpo_fast.skrl needs skrl 2: {install_line('skrl')}") from error


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
        self.policy_optimizer = TRPOOptimizer(self._actor, step_size="damped")

    def update(self, *, timestep: int, timesteps: int) -> None:  # noqa: ARG002
        """One trust-region step, then ``learning_epochs`` of the value network."""
        self._set_advantages()
        names, rows = self._tensors_names_policy, len(self.memory)
        sampled = self.memory.sample(names=names, batch_size=rows, mini_batches=1)[0]
        inputs = self._inputs(*sampled[:2], train=True)
        result = self.last_result = self._step_policy(inputs, *sampled[2:])
        self.track_data("Loss / Policy loss", -result.loss_before)
        self.track_data("Loss / Value loss", self._fit_values())
        with torch.no_grad():
            spread = self._actor(inputs).stddev.mean().item()
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
        cfg = self.cfg
        self._actor.look(inputs, cfg.max_kl_divergence)
        summed = getattr(self.policy, "_g_reduction", torch.sum) is torch.sum
        options = {
            "max_kl": float(cfg.max_kl_divergence),
            "damping": float(cfg.damping),
            "cg_iters": int(cfg.conjugate_gradient_steps),
            "backtrack_coeff": 0.5,
            "max_backtracks": int(cfg.max_backtrack_steps) - 1,
            "accept_ratio": float(cfg.accept_ratio),
            "lr": float(cfg.step_fraction),
        }
        return stepped(
            self.policy_optimizer,
            options,
            obs=inputs["observations"] if inputs["states"] is None else inputs,
            actions=actions.flatten() if isinstance(self.policy, CategoricalMixin) else actions,
            advantages=advantages.flatten(),
            old_log_prob=log_prob.flatten() if summed else None,
        )

    def _fit_values(self) -> float:
        """Minibatch regression on the returns, as skrl has it; the mean loss."""
        cfg, names, rows = self.cfg, self._tensors_names_value, len(self.memory)
        losses: list[Tensor] = []
        for epoch in range(cfg.learning_epochs):
            for *seen, returns in self.memory.sample(
                names=names, batch_size=rows, mini_batches=cfg.mini_batches
            ):
                inputs = self._inputs(*seen, train=not epoch)
                predicted = self.value.act(inputs, role="value")[0]
                loss = cfg.value_loss_scale * nn.functional.mse_loss(returns, predicted)
                self.value_optimizer.zero_grad()
                loss.backward()
                if cfg.grad_norm_clip > 0:
                    nn.utils.clip_grad_norm_(self.value.parameters(), cfg.grad_norm_clip)
                self.value_optimizer.step()
                losses.append(loss.detach())
            if self.value_scheduler:
                self.value_scheduler.step()
        return float(torch.stack(losses).mean()) if losses else 0.0
