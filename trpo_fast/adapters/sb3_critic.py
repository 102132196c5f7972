"""The critic's fit for Stable-Baselines3's models."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from stable_baselines3.common.buffers import RolloutBuffer
from torch import nn
from torch.nn import functional

from trpo_fast.adapters.sb3_policies import Actor, Values
from trpo_fast.adapters.value_fit import native_fit
from trpo_fast.backends.generic.linearization import depends_on
from trpo_fast.base.modes import twice_differentiable
from trpo_fast.base.trees import tree_rows
from trpo_fast.networks.distribution_parts import parts_of


def critic_parameters(policy: Any, observations: Any) -> list[nn.Parameter]:
    """What the critic's fit may move: everything that the action distribution does not depend on.

    A trunk shared with the policy stays inside the trust region.
    """
    parameters = [p for p in policy.parameters() if p.requires_grad]
    actor, rows = Actor(policy), tree_rows(observations, slice(0, 2))
    with twice_differentiable(policy):
        with torch.enable_grad():
            parts = parts_of(actor(rows))
        with torch.no_grad():
            actor(rows)  # SB3 keeps its last distribution: one with a graph could not be copied
    assert parts is not None  # noqa: S101
    outputs = [t for t in parts.tensors if t.requires_grad]
    by_policy = depends_on(outputs, parameters)
    return [p for p, is_actor in zip(parameters, by_policy, strict=True) if not is_actor]


def fit_values(model: Any, movable: list[nn.Parameter]) -> float:
    """``n_critic_updates`` passes of minibatch regression on the returns; the mean loss.

    The minibatches are sb3-contrib's for the same state of NumPy's generator.
    """
    values, optimizer = Values(model.policy), model.policy.optimizer
    loss = _fit_natively(model, values, movable)
    if loss is not None:
        return loss
    losses = []
    for _ in range(model.n_critic_updates):
        for batch in model.rollout_buffer.get(model.batch_size):
            predicted = values(batch.observations).flatten()
            squared = functional.mse_loss(batch.returns, predicted)
            losses.append(squared.item())
            if not movable:
                continue
            optimizer.zero_grad()
            found = torch.autograd.grad(squared, movable, allow_unused=True)
            for parameter, slope in zip(movable, found, strict=True):
                parameter.grad = slope
            optimizer.step()
    return float(np.mean(losses)) if losses else float("nan")


def _fit_natively(model: Any, values: Values, movable: list[nn.Parameter]) -> float | None:
    """``fit_values`` in one native call a pass, or None where that does not serve."""
    buffer = model.rollout_buffer
    if type(buffer) not in (RolloutBuffer, MaskableRolloutBuffer):
        return None
    observations = buffer.to_torch(buffer.observations).float()  # as SB3's own preprocessing
    fit = native_fit(values, observations, model.policy.optimizer, movable, model.batch_size)
    if fit is None:
        return None
    rows = observations.flatten(1).to(fit.dtype)
    returns = buffer.to_torch(buffer.returns.flatten()).to(fit.dtype)
    total = 0.0
    for _ in range(model.n_critic_updates):
        order = torch.from_numpy(np.random.permutation(len(rows)))  # noqa: NPY002
        total += fit.epoch(rows, returns, order)[0]
    fit.write_back()
    fitted = len(rows) * model.n_critic_updates
    return float(total / fitted) if fitted else float("nan")
