"""TRPO for tianshou: ``from trpo_fast.tianshou import TRPO`` is the one changed line.

The class is ``tianshou.algorithm.TRPO`` with another policy update; collectors, trainers, critic
fit and statistics are tianshou's. Departures: the KL is that of the joint action where ``dist_fn``
leaves its dimensions apart (a bare ``Normal``); a network that actor and critic share is moved by
the trust region alone; dropout and batch normalisation are in eval mode for the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional

from trpo_fast.adapters.common import joint, stepped
from trpo_fast.base.install import install_line
from trpo_fast.optimizer.optimizer import TRPOOptimizer
from trpo_fast.update.result import TrustRegionResult

try:
    import tianshou.algorithm
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.modelfree.trpo import TRPOTrainingStats
    from tianshou.data import SequenceSummaryStats
except ImportError as error:
    raise ImportError(f"trpo_fast.tianshou needs tianshou 2: {install_line('tianshou')}") from error


class Actor(nn.Module):
    """A tianshou policy as ``TRPOOptimizer`` takes it: observations to the joint distribution.

    Args:
        policy: A ``ProbabilisticActorPolicy``; its actor's parameters are the module's.
    """

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.actor, self._policy = policy.actor, (policy,)  # a tuple hides the policy's other parts

    def forward(self, obs: Any) -> Distribution:
        """The distribution of the actions, batch_shape ``[N]``."""
        return joint(self._policy[0].dist_fn(self.actor(obs, state=None, info={})[0]))


class TRPO(tianshou.algorithm.TRPO):  # type: ignore[misc]
    """``tianshou.algorithm.TRPO`` with the fused update.

    The actor takes the fused path where it is a perceptron (``ContinuousActorProbabilistic`` with
    ``unbounded=True`` and ``DiscreteActor`` with ``softmax_output=False`` on ``Net`` are), and the
    generic path otherwise; a policy with its own ``forward`` or with observations that are no array
    goes through a closure.

    Attributes:
        policy_optimizer: The actor's ``TRPOOptimizer``; ``max_kl``, ``backtrack_coeff`` and
            ``max_backtracks`` in it are this class's own at each update, the rest may be edited.
        last_result: The last policy update's ``TrustRegionResult``, or None.
    """

    last_result: TrustRegionResult | None = None

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.policy_optimizer = TRPOOptimizer(
            Actor(self.policy), damping=self._damping, step_size="damped"
        )

    def _update_with_batch(self, batch: Any, batch_size: int | None, repeat: int) -> Any:
        """One trust-region step and ``optim_critic_iters`` critic steps for each minibatch."""
        results: list[TrustRegionResult] = []
        value_losses: list[float] = []
        for _ in range(repeat):
            for minibatch in batch.split(batch_size or -1, merge_last=True):
                results.append(self._step_policy(minibatch))
                value_losses.append(self._fit_critic(minibatch))
        figures = {
            "actor_loss": [result.loss_before for result in results],
            "vf_loss": value_losses,
            "kl": [result.kl for result in results],
            "step_size": [result.step_size if result.accepted else 0.0 for result in results],
        }
        summary = SequenceSummaryStats.from_sequence
        return TRPOTrainingStats(**{name: summary(found) for name, found in figures.items()})

    def _step_policy(self, batch: Any) -> TrustRegionResult:
        options = {
            "max_kl": float(self.max_kl),
            "backtrack_coeff": float(self.backtrack_coeff),
            "max_backtracks": int(self.max_backtracks) - 1,
        }
        advantages = torch.as_tensor(batch.adv, device=batch.logp_old.device)
        old_log_prob = batch.logp_old.reshape(len(advantages), -1).sum(1)
        own = type(self.policy).forward is not ProbabilisticActorPolicy.forward
        if own or not hasattr(batch.obs, "dtype"):
            closure = lambda: self._evaluate(batch, advantages, old_log_prob)  # noqa: E731
            self.last_result = stepped(self.policy_optimizer, options, closure)
        else:
            self.last_result = stepped(
                self.policy_optimizer,
                options,
                obs=torch.as_tensor(batch.obs, device=advantages.device),
                actions=batch.act,
                advantages=advantages,
                old_log_prob=old_log_prob,
            )
        return self.last_result

    def _evaluate(
        self, batch: Any, advantages: Tensor, old_log_prob: Tensor
    ) -> tuple[Tensor, Distribution]:
        distribution = joint(self.policy(batch).dist)
        ratio = torch.exp(distribution.log_prob(batch.act) - old_log_prob)
        return -(ratio * advantages).mean(), distribution

    def _fit_critic(self, batch: Any) -> float:
        """The last of the losses; 0 without any."""
        losses: list[Tensor] = []
        with _frozen(self.policy.actor):
            for _ in range(self.optim_critic_iters):
                loss = functional.mse_loss(batch.returns, self.critic(batch.obs).flatten())
                self.optim.step(loss)
                losses.append(loss.detach())
        return float(losses[-1]) if losses else 0.0


@contextmanager
def _frozen(actor: nn.Module) -> Iterator[None]:
    """A trunk that the critic shares stays where the trust region put it."""
    stepped = [p for p in actor.parameters() if p.requires_grad]
    for p in stepped:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in stepped:
            p.requires_grad_(True)
