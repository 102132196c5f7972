"""sb3-contrib's TRPO, driven through its own methods.

Its mean KL runs over samples *and* action dimensions (Stable-Baselines3's diagonal Gaussian gives
one KL a dimension), so it is the joint KL divided by A. The same problem is therefore
``target_kl = max_kl / A`` and ``cg_damping = damping / A``: then its matrix is ours divided by A,
its direction ours times A, and its step ours. Its search judges KL(new, old), which agrees with
KL(old, new) to second order. Its CG starts at random noise of size 1e-4, which costs one product
more and moves the answer a little; its step length costs another. That is its own code and stays.

``n_critic_updates = 0`` leaves the critic out. A buffer that hands over the whole batch as it is
stands in for the rollout buffer, whose shuffling is not charged.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import torch
from cases import CG_ITERS, DAMPING, MAX_KL, Case
from gymnasium import spaces
from sb3_contrib import TRPO
from sb3_contrib.common.utils import conjugate_gradient_solver, flat_grad
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.logger import Logger
from torch import Tensor, nn


class _Spaces(gymnasium.Env[Any, Any]):
    """The spaces of the case; never stepped."""

    def __init__(self, obs: int, actions: int) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (obs,))
        self.action_space = spaces.Box(-1.0, 1.0, (actions,))


class _WholeBatch:
    """The rollout buffer as ``train`` sees it."""

    values = returns = np.zeros(2)

    def __init__(self, case: Case) -> None:
        self.samples = SimpleNamespace(
            observations=case.obs,
            actions=case.actions,
            old_log_prob=case.log_prob,
            advantages=case.advantages,
        )

    def get(self, batch_size: int | None = None) -> Iterator[SimpleNamespace]:  # noqa: ARG002
        yield self.samples


class Peer:
    """sb3-contrib at the case's weights and batch."""

    def __init__(self, case: Case) -> None:
        self.case = case
        hidden, actions = case.size.hidden, case.size.actions
        self.model = TRPO(
            "MlpPolicy",
            _Spaces(case.size.obs, actions),
            n_steps=2,
            batch_size=2,
            target_kl=MAX_KL / actions,
            cg_damping=DAMPING / actions,
            cg_max_steps=CG_ITERS,
            n_critic_updates=0,
            normalize_advantage=False,  # they are normalised already
            policy_kwargs={"net_arch": {"pi": [hidden, hidden], "vf": [1]}},
            device="cpu",
        )
        self.model.set_logger(Logger(folder=None, output_formats=[]))
        self.model.rollout_buffer = _WholeBatch(case)
        # _compute_actor_grad's order: named_parameters without those named "value".
        self.params: list[nn.Parameter] = [
            p for name, p in self.model.policy.named_parameters() if "value" not in name
        ]
        policy = self.model.policy
        net = [m for m in policy.mlp_extractor.policy_net if isinstance(m, nn.Linear)]
        linears = [*net, policy.action_net]
        in_our_order = [policy.log_std, *(t for m in linears for t in (m.weight, m.bias))]
        places = {id(p): index for index, p in enumerate(self.params)}
        self.order = [places[id(p)] for p in in_our_order]

    def product(self) -> Callable[[], Tensor]:
        product = self._fisher()
        vector = self._theirs(self.case.vector)
        return lambda: product(vector)

    def solve(self) -> Callable[[], Tensor]:
        gradient = self._theirs(self.case.gradient)

        def run() -> Tensor:
            x: Tensor = conjugate_gradient_solver(self._fisher(), gradient, max_iter=CG_ITERS)
            return x

        return run

    def update(self) -> Callable[[], object]:
        def run() -> None:
            with warnings.catch_warnings():
                # The mean of no value losses.
                warnings.simplefilter("ignore", RuntimeWarning)
                self.model.train()

        return run

    def reset(self) -> None:
        pieces = self._theirs(self.case.theta).split([p.numel() for p in self.params])
        for p, piece in zip(self.params, pieces, strict=True):
            p.data = piece.clone().view(p.shape)

    def theta(self) -> Tensor:
        return torch.cat([self.params[index].detach().reshape(-1) for index in self.order])

    def ours(self, product: Tensor) -> Tensor:
        return self._reordered(product) * self.case.size.actions

    def our_solution(self, solution: Tensor) -> Tensor:
        return self._reordered(solution) / self.case.size.actions

    def _fisher(self) -> Callable[[Tensor], Tensor]:
        """The Fisher product as ``train`` makes it, with the gradient of the KL alone."""
        policy, obs = self.model.policy, self.case.obs
        with torch.no_grad():
            old = copy.copy(policy.get_distribution(obs))
        new = policy.get_distribution(obs)
        kl = kl_divergence(new, old).mean()
        grad_kl = flat_grad(kl, self.params, create_graph=True, retain_graph=True)
        return lambda v: self.model.hessian_vector_product(self.params, grad_kl, v)

    def _theirs(self, flat: Tensor) -> Tensor:
        sizes = [self.params[index].numel() for index in self.order]
        pieces = dict(zip(self.order, flat.split(sizes), strict=True))
        return torch.cat([pieces[index] for index in range(len(self.params))])

    def _reordered(self, flat: Tensor) -> Tensor:
        pieces = flat.split([p.numel() for p in self.params])
        return torch.cat([pieces[index] for index in self.order])
