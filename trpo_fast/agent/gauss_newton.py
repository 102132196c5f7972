"""The value function fitted by Gauss-Newton steps in a trust region, on the policy's own solver.

With sigma^2 the mean-squared error before a step, values V are the means of Gaussians N(V, sigma^2)
of the returns: their Fisher matrix is the Gauss-Newton matrix J'J / (N sigma^2), the gradient of
their log-likelihood that of the squared error, and their KL the trust region of Schulman et al.
2016 (arXiv:1506.02438, section 5), mean (V - V_old)^2 / (2 sigma^2) <= max_kl. Unlike there, a step
inside the region is a whole Gauss-Newton step and not stretched to its edge, and it is shortened
until the squared error has fallen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trpo_fast.backends.forward import mlp_forward
from trpo_fast.backends.registry import fused_problem
from trpo_fast.base.tensors import all_finite
from trpo_fast.networks.heads import GaussianHead
from trpo_fast.networks.network import Layer, Network
from trpo_fast.update.batch import Batch
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters

# A critic's targets move at each update: a region ten times the policy's lets it follow them
# (docs/end-to-end.md has the measurement behind it).
MAX_KL = 0.1
DAMPING = 1e-3


@dataclass(frozen=True)
class ValueStep:
    """What one step did: the mean-squared error before and after it, and the KL it moved."""

    accepted: bool
    loss_before: float
    loss_after: float
    kl: float


def gauss_newton_step(
    layers: Sequence[Layer],
    observations: Tensor,
    returns: Tensor,
    *,
    options: Options | None = None,
) -> ValueStep:
    """One step on all rows; the layers' parameters are moved in place, or left bit for bit.

    Args:
        layers: of a network with one output; its tensors are the parameters.
        observations: [N, O] in the parameters' dtype.
        returns: [N], finite.
        options: of the solve and of the line search, with the region's size in ``max_kl``.

    A loss, a gradient or a solve that is not finite leaves the parameters as they are.
    """
    options = options or Options(max_kl=MAX_KL, damping=DAMPING, preconditioner="none")
    targets = returns.detach().to(observations.dtype)
    before = _squared_error(layers, observations, targets)
    if not (math.isfinite(before) and before > 0):
        return ValueStep(False, before, before, 0.0)
    log_sigma = observations.new_full((1,), 0.5 * math.log(before))
    network = Network(tuple(layers), GaussianHead(1), log_sigma)
    tensors = [t for layer in layers for t in (layer.weight, layer.bias) if t is not None]
    parameters = FlatParameters(tensors, [f"parameter {i}" for i in range(len(tensors))])
    rows = len(targets)
    batch = Batch(rows, observations, targets.unsqueeze(1), torch.ones_like(targets))
    problem = fused_problem(network, parameters, batch, options)
    _, gradient = problem.surrogate_gradient()
    solution = problem.solve(gradient, options)
    x, curvature = solution.x, float(solution.quadratic)
    if not (curvature > 0 and all_finite(x)):
        return ValueStep(False, before, before, 0.0)
    theta = parameters.read()
    scale = min(1.0, math.sqrt(2 * options.max_kl / curvature))
    for _ in range(options.max_backtracks + 1):
        candidate = theta + scale * x
        _, kl = problem.evaluate(candidate)
        if kl <= options.max_kl:
            parameters.replace(theta, candidate)
            after = _squared_error(layers, observations, targets)
            if after < before:
                return ValueStep(True, before, after, kl)
            parameters.write(theta)
        scale *= options.backtrack_coeff
    return ValueStep(False, before, before, 0.0)


def _squared_error(layers: Sequence[Layer], observations: Tensor, targets: Tensor) -> float:
    with torch.no_grad():
        values = mlp_forward(layers, observations).squeeze(1)
    return float((values - targets).double().square().mean())
