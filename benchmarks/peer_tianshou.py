"""tianshou's TRPO, driven through its own methods.

With the ``Independent(Normal)`` distribution of its examples its KL is that of the joint action,
KL(old, new), and its damping is 0.1: the same problem as ours as it stands. Its step length costs
an eleventh product.

Its update cannot go without a critic step, so the critic is one number and the optimizer steps that
one. The batch does not copy itself into a random order (``split``); that is not charged.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from cases import CG_ITERS, DAMPING, MAX_KL, Case
from gymnasium import spaces
from tianshou.algorithm import TRPO
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal, kl_divergence


class _OneNumber(nn.Module):
    """A critic that costs nothing worth measuring."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))

    def forward(self, obs: Tensor) -> Tensor:
        return self.value.expand(len(obs))


class _WholeBatch(Batch):  # type: ignore[misc]
    """A batch that is its own only minibatch."""

    def split(self, *args: Any, **kwargs: Any) -> Iterator[_WholeBatch]:  # noqa: ARG002
        yield self


def _distribution(loc_scale: tuple[Tensor, Tensor]) -> Distribution:
    return Independent(Normal(*loc_scale), 1)


class Peer:
    """tianshou at the case's weights and batch."""

    def __init__(self, case: Case) -> None:
        self.case = case
        hidden, size = case.size.hidden, case.size
        net = Net(state_shape=size.obs, hidden_sizes=[hidden, hidden], activation=nn.Tanh)
        self.actor = ContinuousActorProbabilistic(
            preprocess_net=net, action_shape=size.actions, unbounded=True
        )
        policy = ProbabilisticActorPolicy(
            actor=self.actor,
            dist_fn=_distribution,
            action_space=spaces.Box(-1.0, 1.0, (size.actions,), dtype=np.float32),
            action_scaling=False,
            action_bound_method=None,
        )
        policy.is_within_training_step = True
        self.algorithm = TRPO(
            policy=policy,
            critic=_OneNumber(),
            optim=AdamOptimizerFactory(lr=1e-3),
            max_kl=MAX_KL,
            optim_critic_iters=1,
            advantage_normalization=False,  # they are normalised already
        )
        assert self.algorithm._damping == DAMPING
        self.batch = _WholeBatch(
            obs=case.obs,
            act=case.actions,
            adv=case.advantages,
            logp_old=case.log_prob,
            returns=torch.zeros(size.rows),
            info=Batch(),
        )
        self.params: list[nn.Parameter] = list(self.actor.parameters())
        modules = [*net.modules(), *self.actor.mu.modules()]
        linears = [m for m in modules if isinstance(m, nn.Linear)]
        in_our_order = [self.actor.sigma_param, *(t for m in linears for t in (m.weight, m.bias))]
        places = {id(p): index for index, p in enumerate(self.params)}
        self.order = [places[id(p)] for p in in_our_order]
        assert sorted(self.order) == list(range(len(self.params)))

    def product(self) -> Callable[[], Tensor]:
        grad_kl, vector = self._grad_kl(), self._theirs(self.case.vector)
        return lambda: self.algorithm._MVP(vector, grad_kl)

    def solve(self) -> Callable[[], Tensor]:
        gradient = self._theirs(self.case.gradient)

        def run() -> Tensor:
            x: Tensor = self.algorithm._conjugate_gradients(
                gradient, self._grad_kl(), nsteps=CG_ITERS
            )
            return x

        return run

    def update(self) -> Callable[[], object]:
        def run() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # it warns when it backtracks or fails
                self.algorithm._update_with_batch(self.batch, None, 1)

        return run

    def reset(self) -> None:
        flat = self._theirs(self.case.theta)
        self.algorithm._set_from_flat_params(self.actor, flat)

    def theta(self) -> Tensor:
        return torch.cat([self.params[index].detach().reshape(-1) for index in self.order])

    def ours(self, product: Tensor) -> Tensor:
        pieces = product.split([p.numel() for p in self.params])
        return torch.cat([pieces[index] for index in self.order])

    def our_solution(self, solution: Tensor) -> Tensor:
        return self.ours(solution)

    def _grad_kl(self) -> Tensor:
        """The gradient of the KL, as ``_update_with_batch`` makes it."""
        policy = self.algorithm.policy
        new = policy(self.batch).dist
        with torch.no_grad():
            old = policy(self.batch).dist
        kl = kl_divergence(old, new).mean()
        flat: Tensor = self.algorithm._get_flat_grad(kl, policy.actor, create_graph=True)
        return flat

    def _theirs(self, flat: Tensor) -> Tensor:
        sizes = [self.params[index].numel() for index in self.order]
        pieces = dict(zip(self.order, flat.split(sizes), strict=True))
        return torch.cat([pieces[index] for index in range(len(self.params))])
