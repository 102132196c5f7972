"""What is benchmarked: the sizes, one policy and one batch for each, and the right answers.

The answers come from the float64 reference backend. They are for the mean over samples of the KL
divergence of the joint action, KL(old, new), damping 0.1 and ten plain CG iterations from 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import kl_divergence

from trpo_fast import MlpPolicy, TRPOOptimizer, fisher_vector_product, natural_gradient

MAX_KL = 0.01
DAMPING = 0.1
CG_ITERS = 10


@dataclass(frozen=True)
class Size:
    """Samples x observation width x action width x width of both hidden layers."""

    rows: int
    obs: int
    actions: int
    hidden: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.obs}x{self.actions}x{self.hidden}"

    @property
    def _layers(self) -> list[int]:
        widths = (self.obs, self.hidden, self.hidden, self.actions)
        return [n_in * n_out for n_in, n_out in pairwise(widths)]

    @property
    def product_flop(self) -> int:
        """Of one Fisher product: 8 S - 4 p1 a sample, S weights of which p1 in the first layer.

        Two GEMMs forward (tangent of the weights, tangent of the input) and two backward (weights'
        gradient, input's gradient) at 2 flop a weight; the first layer needs one of each pair.
        """
        return self.rows * (8 * sum(self._layers) - 4 * self._layers[0])

    @property
    def solve_flop(self) -> int:
        """Of the forward pass and ten Fisher products."""
        return CG_ITERS * self.product_flop + self.rows * 2 * sum(self._layers)

    @property
    def update_flop(self) -> int:
        """Of forward, gradient, ten Fisher products and one line-search candidate."""
        gradient = self.rows * (4 * sum(self._layers) - 2 * self._layers[0])
        return self.solve_flop + gradient + self.rows * 2 * sum(self._layers)


SMOKE = (Size(64, 17, 6, 64), Size(2048, 17, 6, 64))
FULL = (
    *(Size(rows, 17, 6, 64) for rows in (64, 2048, 8192, 25000, 100000)),
    Size(2048, 376, 17, 64),
    Size(2048, 17, 6, 256),
    Size(8192, 17, 6, 256),
    Size(8192, 348, 17, 256),
    Size(4096, 105, 8, 1024),
)
MEMORY = Size(100000, 17, 6, 64)


@dataclass(frozen=True)
class Case:
    """One policy and one batch, float32. Flat vectors follow ``policy.parameters()``."""

    size: Size
    policy: MlpPolicy
    theta: Tensor  # [P], the weights at the start
    obs: Tensor  # [N, O]
    actions: Tensor  # [N, A]
    advantages: Tensor  # [N], mean 0 and standard deviation 1
    log_prob: Tensor  # [N], of the actions under the policy
    vector: Tensor  # [P], what is multiplied by the Fisher matrix
    gradient: Tensor  # [P], what is solved for, of Euclidean norm 1


@dataclass(frozen=True)
class Answer:
    """What every contender must give, float64."""

    product: Tensor  # [P], (F + damping I) vector
    solution: Tensor  # [P], ten CG iterations on (F + damping I) x = gradient
    step: Tensor  # [P], the update's change of the weights
    kl: float  # mean KL(old, new) of the joint action after the update


@lru_cache(maxsize=1)
def case_of(size: Size) -> Case:
    torch.manual_seed(0)
    observations = spaces.Box(-np.inf, np.inf, (size.obs,))
    bounds = spaces.Box(-1.0, 1.0, (size.actions,))
    policy = MlpPolicy(observations, bounds, (size.hidden, size.hidden), log_std_init=-0.5)
    with torch.no_grad():
        # A fresh policy's last layer is close to 0, and its Fisher matrix close to singular.
        last = list(policy.body.parameters())[-2]
        last.mul_(50)
        obs = torch.randn(size.rows, size.obs)
        distribution = policy(obs)
        actions = distribution.sample()
        log_prob = distribution.log_prob(actions)
        # Actions that matter, a bias that depends on the state, and noise.
        gain = torch.tanh((actions - policy.body(obs)) @ torch.randn(size.actions))
        advantages = gain + 0.5 * obs[:, 0] * actions[:, 0] + torch.randn(size.rows)
        advantages = (advantages - advantages.mean()) / advantages.std()
    theta = torch.cat([p.detach().reshape(-1) for p in policy.parameters()])
    objective = (policy(obs).log_prob(actions) * advantages).mean()
    grads = torch.autograd.grad(objective, list(policy.parameters()))
    gradient = torch.cat([g.reshape(-1) for g in grads])
    return Case(
        size,
        policy,
        theta,
        obs,
        actions,
        advantages,
        log_prob,
        vector=torch.randn(len(theta)),
        gradient=gradient / gradient.norm(),
    )


@cache
def answer_of(size: Size) -> Answer:
    case = case_of(size)
    policy = double_policy(case, case.theta)
    obs = case.obs.double()
    product = fisher_vector_product(
        policy, obs, case.vector.double(), damping=DAMPING, backend="reference"
    )
    solution, _ = natural_gradient(
        policy,
        obs,
        case.gradient.double(),
        damping=DAMPING,
        cg_iters=CG_ITERS,
        cg_tol=0.0,
        preconditioner="none",
        backend="reference",
    )
    optimizer = TRPOOptimizer(
        policy,
        max_kl=MAX_KL,
        damping=DAMPING,
        cg_iters=CG_ITERS,
        cg_tol=0.0,
        preconditioner="none",
        step_size="damped",
        backend="reference",
    )
    optimizer.step(
        obs=obs,
        actions=case.actions.double(),
        advantages=case.advantages.double(),
        old_log_prob=case.log_prob.double(),
    )
    assert optimizer.last_result is not None
    assert optimizer.last_result.accepted
    assert optimizer.last_result.backtracks == 0, "every contender is to need one candidate"
    after = torch.cat([p.detach().reshape(-1) for p in policy.parameters()])
    return Answer(product, solution, after - case.theta.double(), mean_kl(case, after))


def double_policy(case: Case, theta: Tensor) -> MlpPolicy:
    """The case's policy in float64, at the weights ``theta`` ``[P]``."""
    hidden = (case.size.hidden, case.size.hidden)
    observations = spaces.Box(-np.inf, np.inf, (case.size.obs,))
    policy = MlpPolicy(observations, spaces.Box(-1.0, 1.0, (case.size.actions,)), hidden).double()
    torch.nn.utils.vector_to_parameters(theta.double(), policy.parameters())
    return policy


def mean_kl(case: Case, theta: Tensor) -> float:
    """KL(old, new) of the joint action at the weights ``theta`` ``[P]``, in float64."""
    obs = case.obs.double()
    with torch.no_grad():
        old, new = double_policy(case, case.theta)(obs), double_policy(case, theta)(obs)
        return float(kl_divergence(old, new).mean())
