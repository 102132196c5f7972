"""The critic's fit for rsl_rl's models."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any

import torch
from rsl_rl.storage import RolloutStorage
from torch import Tensor
from torch.nn import functional

from trpo_fast.adapters.rsl_rl_models import perceptron_input
from trpo_fast.adapters.value_fit import native_fit
from trpo_fast.base.finite_step import step_if_finite


def fit_values(algorithm: Any, batch: RolloutStorage.Batch) -> float:
    """``critic_learning_epochs`` passes of minibatch regression on the returns; the mean loss.

    Args:
        algorithm: Its ``optimizer`` holds the parameters that the fit may move.
        batch: All rows, with their observations and returns.
    """
    loss = None if algorithm.critic.is_recurrent else _fit_natively(algorithm, batch)
    if loss is not None:
        return loss
    optimizer = algorithm.optimizer
    movable = [p for group in optimizer.param_groups for p in group["params"]]
    losses = []
    for predicted, returns in _predictions(algorithm, batch):
        squared = functional.mse_loss(predicted, returns)
        step_if_finite(optimizer, movable, squared)
        losses.append(squared.detach())
    optimizer.zero_grad()
    return float(torch.stack(losses).mean()) if losses else float("nan")


def _fit_natively(algorithm: Any, batch: RolloutStorage.Batch) -> float | None:
    """``fit_values`` in one native call a pass, or None where that does not serve."""
    critic, optimizer = algorithm.get_critic(), algorithm.optimizer
    rows = perceptron_input(critic, batch.observations)
    if rows is None or critic.distribution is not None:
        return None
    movable = optimizer.param_groups[0]["params"]
    size = _minibatch(len(rows), algorithm)
    fit = native_fit(critic.mlp, rows, optimizer, movable, size)
    if fit is None:
        return None
    rows, returns = rows.to(fit.dtype), batch.returns.flatten().to(fit.dtype)
    total = 0.0
    for _ in range(algorithm.critic_learning_epochs):
        total += fit.epoch(rows, returns, torch.randperm(len(rows)))[0]
    fit.write_back()
    fitted = len(rows) * algorithm.critic_learning_epochs
    return total / fitted if fitted else float("nan")


def _predictions(algorithm: Any, batch: RolloutStorage.Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Values and returns of each minibatch, as the critic is at that moment."""
    critic, epochs = algorithm.critic, algorithm.critic_learning_epochs
    if critic.is_recurrent:
        for part in algorithm.storage.recurrent_mini_batch_generator(
            algorithm.num_mini_batches, epochs
        ):
            states = part.hidden_states[1]
            found = critic(part.observations, masks=part.masks, hidden_state=states)
            yield found, part.returns
        return
    assert batch.returns is not None and batch.observations is not None  # noqa: S101, PT018
    count, device = len(batch.returns), batch.returns.device
    for _ in range(epochs):
        for rows in torch.randperm(count, device=device).split(_minibatch(count, algorithm)):
            yield critic(batch.observations[rows]), batch.returns[rows]


def _minibatch(rows: int, algorithm: Any) -> int:
    return max(1, ceil(rows / int(algorithm.num_mini_batches)))
