"""TRPO for rsl_rl: ``class_name = "trpo_fast.rsl_rl:TRPO"`` in the algorithm's configuration.

The class is rsl_rl's ``PPO`` with another ``update``: rollouts, storage, advantages, bootstrapping
on time-outs, observation groups, runner and logs are rsl_rl's, and so is every entry of the
configuration that has a meaning here. Departures: one trust-region step on the whole rollout in
place of epochs over minibatches; the critic alone is regressed in passes of ``num_mini_batches``,
by plain squared errors at a fixed learning rate; no entropy bonus.
"""

from __future__ import annotations

from importlib import metadata
from inspect import signature
from math import inf, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from trpo_fast.adapters.common import stepped
from trpo_fast.base.install import install_line
from trpo_fast.base.output import say
from trpo_fast.base.tensors import all_finite
from trpo_fast.optimizer.optimizer import TRPOOptimizer
from trpo_fast.update.options import TABLE
from trpo_fast.update.result import TrustRegionResult

try:
    import rsl_rl.algorithms
    from rsl_rl.storage import RolloutStorage
    from rsl_rl.utils import resolve_optimizer

    from trpo_fast.adapters.rsl_rl_critic import fit_values
    from trpo_fast.adapters.rsl_rl_models import Inputs, actor_of, distribution_of
except ImportError as error:
    raise ImportError(f"trpo_fast.rsl_rl needs rsl-rl-lib 5: {install_line('rsl-rl')}") from error

# Of PPO's configuration, what a trust region has no use for.
UNUSED = (
    *("clip_param", "entropy_coef", "value_loss_coef", "use_clipped_value_loss", "max_grad_norm"),
    "use_mixed_precision",
)
# With schedule="adaptive" PPO's learning rate slows down where the KL passes this many desired_kl;
# the configured one is where it starts, and says nothing of what the critic's should be. That is
# the fastest that PPO's may become for layers of up to 64, and goes with the root of the width's
# inverse for wider ones (docs/gpu-simulators.md).
KL_ALLOWED, CRITIC_LEARNING_RATE, CRITIC_WIDTH = 2.0, 1e-2, 64
# PPO's passes train its policy, too; so many of a critic alone cost it a third of PPO's update or
# less, and reach the same scores in no more samples (docs/gpu-simulators.md).
CRITIC_PASSES = 2
POLICY_STATE = "policy_optimizer_state_dict"
# From 5.5 on rsl_rl's normalisers learn after an update, before that at each environment step.
NORMALISES_AFTER_UPDATES = tuple(
    int(part) for part in metadata.version("rsl-rl-lib").split(".")[:2]
) >= (5, 5)


def _critic_rate(critic: nn.Module) -> float:
    """The learning rate for a critic of this width."""
    widths = [layer.out_features for layer in critic.modules() if isinstance(layer, nn.Linear)]
    return CRITIC_LEARNING_RATE * sqrt(CRITIC_WIDTH / max(CRITIC_WIDTH, *widths))


def _passes(given: Any, of_ppo: int) -> int:
    """The critic's passes over a rollout, checked."""
    passes = min(CRITIC_PASSES, of_ppo) if given is None else given
    if not isinstance(passes, int) or passes < 0:
        raise ValueError(f"critic_learning_epochs must be an int of 0 or more, got {passes!r}")
    return passes


class TRPO(rsl_rl.algorithms.PPO):  # type: ignore[misc]
    """rsl_rl's on-policy algorithm with a trust-region step of the actor.

    An ``MLPModel`` with ``GaussianDistribution`` (either ``std_type``, any normalisation, any
    observation groups) takes the fused path; state-dependent deviations, Beta, convolutional and
    recurrent actors the generic one. A critic that is an ``MLPModel`` is fitted natively on the
    CPU where ``optimizer`` is "adam".

    Args:
        actor: rsl_rl's model of the policy, with one of rsl_rl's own distributions.
        critic: rsl_rl's model of the values.
        storage: The rollouts'.
        configuration: PPO's, so that one may be kept as it is, and any option of
            ``TRPOOptimizer`` by its name: ``damping``, ``cg_iters`` and so on. ``max_kl``, if not
            given, is twice ``desired_kl``; ``critic_learning_rate`` is ``learning_rate`` where
            ``schedule`` is "fixed", otherwise 0.01 or, with a hidden layer wider than 64, 0.08
            over the root of its width; ``critic_learning_epochs`` is ``num_learning_epochs``, at
            most 2.

    Attributes:
        policy_optimizer: The actor's ``TRPOOptimizer``; its options may be edited.
        optimizer: The critic's.
        learning_rate: The critic's.
        critic_learning_epochs: Passes of the critic over each rollout.
        last_result: The last policy update's ``TrustRegionResult``, or None.

    Raises:
        TypeError: an entry of the configuration is neither PPO's nor an option of the update.
        ValueError: an option out of its limits; several processes; a mirror loss; an actor whose
            distribution or ``forward`` is none of rsl_rl's.
    """

    last_result: TrustRegionResult | None = None
    learning_rate: float

    def __init__(self, actor: Any, critic: Any, storage: Any, **configuration: Any) -> None:
        options = {name: configuration.pop(name) for name in TABLE if name in configuration}
        learning_rate = configuration.pop("critic_learning_rate", None)
        passes = configuration.pop("critic_learning_epochs", None)
        super().__init__(actor, critic, storage, **configuration)
        if self.desired_kl is not None:
            options.setdefault("max_kl", KL_ALLOWED * self.desired_kl)
        if learning_rate is None:
            adaptive = self.schedule == "adaptive"
            learning_rate = _critic_rate(critic) if adaptive else self.learning_rate
        self.critic_learning_epochs = _passes(passes, self.num_learning_epochs)
        self._refuse()
        self._actor = actor_of(self.get_policy())
        self.policy_optimizer = TRPOOptimizer(self._actor.policy, **options)
        held = {id(parameter) for parameter in self.get_policy().parameters()}
        own = [p for p in self.get_critic().parameters() if id(p) not in held]
        make = resolve_optimizer(configuration.get("optimizer", "adam"))
        # A fused one steps or does not without the host knowing; RMSprop has none.
        self._fused = {"fused": True} if "fused" in signature(make).parameters else {}
        self.optimizer = make(own, lr=learning_rate, **self._fused)
        self.learning_rate = learning_rate
        unused = [name for name in UNUSED if name in configuration]
        if unused:
            say(f"trpo_fast.rsl_rl.TRPO has no use for these options of PPO: {', '.join(unused)}")

    def _refuse(self) -> None:
        """ValueError for what a trust-region step of one process does not serve."""
        if self.is_multi_gpu:
            raise ValueError(
                "trpo_fast.rsl_rl.TRPO serves one process: each of several would step by a trust "
                "region of its own. Start one, or use rsl_rl's PPO"
            )
        if self.symmetry and getattr(self.symmetry, "use_mirror_loss", True):
            raise ValueError(
                "a mirror loss is no part of a trust-region step; set use_mirror_loss=False. "
                "use_data_augmentation=True is served from rsl-rl-lib 5.1 on"
            )

    def get_critic(self) -> Any:
        """The critic, not compiled."""
        return getattr(self, "_raw_critic", self.critic)

    def update(self) -> dict[str, float]:
        """One trust-region step of the actor, then the critic's fit; the figures to log.

        Raises:
            ValueError: something in the rollout is not finite. Actor and critic are untouched, and
                the rollout is dropped.
        """
        try:
            self._read_advantages()
            batch = self._batch()
            result = self.last_result = self._step_policy(batch)
            figures = {
                "value": fit_values(self, batch),
                "surrogate": result.loss_after,
                "entropy": self._entropy(),
                "kl": result.kl,
                "step_size": result.step_size,
                "cg_iterations": float(result.cg_iters),
                "accepted": float(result.accepted),
            }
            if self.rnd:
                figures["rnd"] = self._fit_rnd()
            if NORMALISES_AFTER_UPDATES:
                self._learn_normalisers()
        finally:
            self.storage.clear()
        return figures

    @torch.no_grad()
    def _read_advantages(self) -> None:
        # The runner makes them in inference mode, whose tensors autograd refuses: hence the copy.
        if not all_finite(self.storage.returns):
            raise ValueError(
                "the rollout's returns are not all finite: actor and critic are as before; look at "
                "the rewards and at the critic's values"
            )
        advantages = self.storage.advantages.clone()
        if self.normalize_advantage_per_mini_batch:  # there is one
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        self.storage.advantages = advantages

    def _batch(self) -> RolloutStorage.Batch:
        """All rows, with their mirror images where those are asked for."""
        kept = self.storage
        named = {
            "observations": kept.observations,
            "actions": kept.actions,
            "values": kept.values,
            "advantages": kept.advantages,
            "returns": kept.returns,
            "old_actions_log_prob": kept.actions_log_prob,
        }
        batch = RolloutStorage.Batch(**{name: rows.flatten(0, 1) for name, rows in named.items()})
        if self.symmetry:
            self.symmetry.augment_batch(batch, kept.num_envs * kept.num_transitions_per_env)
        return batch

    def _step_policy(self, batch: RolloutStorage.Batch) -> TrustRegionResult:
        group = self.policy_optimizer.param_groups[0]
        self._actor.begin(group["max_kl"] if group["constraint"] == "hard" else inf)
        if self.get_policy().is_recurrent:
            trajectories = next(self.storage.recurrent_mini_batch_generator(1, 1))
            loss = lambda: self._recurrent_loss(trajectories)  # noqa: E731
            result = stepped(self.policy_optimizer, {}, loss)
        else:
            actions, log_prob = self._actor.actions(
                batch.actions, batch.old_actions_log_prob.flatten()
            )
            result = stepped(
                self.policy_optimizer,
                {},
                obs=self._actor.read(batch.observations),
                actions=actions,
                advantages=batch.advantages.flatten(),
                old_log_prob=log_prob,
            )
        if result.accepted:
            self._actor.finish()
        return result

    def _recurrent_loss(self, batch: RolloutStorage.Batch) -> tuple[Tensor, Distribution]:
        """The loss and the distribution over trajectories, from their first hidden states on."""
        distribution = self._actor.policy(
            Inputs(batch.observations, batch.masks, batch.hidden_states[0])
        )
        actions, log_prob = self._actor.actions(
            batch.actions, batch.old_actions_log_prob.squeeze(-1)
        )
        ratio = torch.exp(distribution.log_prob(actions) - log_prob)
        return -(ratio * batch.advantages.squeeze(-1)).mean(), distribution

    @torch.no_grad()
    def _entropy(self) -> float:
        """The mean entropy of the actions in the rollout's first step; in all of a recurrent's.

        The model then has the distribution of after the step, of which the runner logs the
        deviation.
        """
        model = self.get_policy()
        if model.is_recurrent:
            trajectories = next(self.storage.recurrent_mini_batch_generator(1, 1))
            distribution = self._recurrent_loss(trajectories)[1]
        else:
            distribution = distribution_of(model, self.storage.observations[0])
        return float(distribution.entropy().mean())

    def _fit_rnd(self) -> float:
        """The intrinsic reward's predictor, by rsl_rl's own loss and optimizer."""
        losses: list[Tensor] = []
        for batch in self.storage.mini_batch_generator(
            self.num_mini_batches, self.num_learning_epochs
        ):
            loss = self.rnd.compute_loss(batch.observations)
            self.rnd.optimizer.zero_grad()
            loss.backward()
            self.rnd.optimizer.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    def _learn_normalisers(self) -> None:
        rows = self.storage.observations.flatten(0, 1)
        for model in (self.actor, self.critic, *((self.rnd,) if self.rnd else ())):
            model.update_normalization(rows)

    def save(self) -> dict[str, Any]:
        """What a checkpoint holds: rsl_rl's entries, and the policy optimizer's state."""
        return {**super().save(), POLICY_STATE: self.policy_optimizer.state_dict()}

    def load(
        self, loaded_dict: dict[str, Any], load_cfg: dict[str, bool] | None, strict: bool
    ) -> bool:
        """Take over a checkpoint of this class; of PPO's, what ``load_cfg`` names of the networks.

        Raises:
            ValueError: the optimizers' state is asked for and is another algorithm's. Nothing has
                changed then.
        """
        optimizers = load_cfg is None or bool(load_cfg.get("optimizer"))
        if optimizers and POLICY_STATE not in loaded_dict:
            raise ValueError(
                "this checkpoint is of another algorithm than trpo_fast.rsl_rl.TRPO, and so are "
                "its optimizers; take over the networks alone with load_cfg="
                "{'actor': True, 'critic': True, 'iteration': True}"
            )
        iteration = bool(super().load(loaded_dict, load_cfg, strict))
        if optimizers:
            self.policy_optimizer.load_state_dict(loaded_dict[POLICY_STATE])
            for group in self.optimizer.param_groups:  # a file may be older than this choice
                group.update(self._fused)
        return iteration
