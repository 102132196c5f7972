"""Fitting the value function: mean-squared error on the returns, by minibatch Adam.

Nothing that is not finite reaches the parameters: such rows are left out, such gradients are not
stepped on, and both are counted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trpo_fast.threads import one_thread_if_small


@dataclass(frozen=True)
class CriticResult:
    """What one fit did.

    `loss` is the mean-squared error over the last pass, None when no row could be used;
    `skipped_rows` counts rows left out of at least one step because something was not finite.
    """

    loss: float | None
    skipped_rows: int


class Critic:
    """A value function and its optimiser.

    Args:
        value_function: module with forward(observations [N, O]) -> values [N].
        learning_rate: of torch.optim.Adam.
        epochs: passes over the rows of each fit.
        batch_size: rows in a minibatch.
        leave: parameters that are not this optimiser's to move.

    Raises ValueError when nothing is left to fit.
    """

    def __init__(
        self,
        value_function: nn.Module,
        *,
        learning_rate: float,
        epochs: int,
        batch_size: int,
        leave: Collection[nn.Parameter] = (),
    ) -> None:
        self.value_function = value_function
        self.epochs = epochs
        self.batch_size = batch_size
        left = {id(parameter) for parameter in leave}
        self._parameters = [
            p for p in value_function.parameters() if p.requires_grad and id(p) not in left
        ]
        if not self._parameters:
            raise ValueError("the value function has no parameter of its own to fit")
        self._adam = torch.optim.Adam(self._parameters, lr=learning_rate, eps=1e-5, fused=True)

    def fit(self, observations: Tensor, returns: Tensor, rng: np.random.Generator) -> CriticResult:
        """Regress the returns [N] on the observations [N, O], both as the networks see them.

        `rng` shuffles the rows; the same state of it gives the same bits.
        """
        usable = torch.isfinite(returns) & torch.isfinite(observations.flatten(1)).all(1)
        skipped = int((~usable).sum())
        if skipped:
            observations, returns = observations[usable], returns[usable]
        with one_thread_if_small(self.value_function, self.batch_size):
            loss, refused = self._fit(observations, returns, rng)
        return CriticResult(loss, skipped + refused)

    def _fit(
        self, observations: Tensor, returns: Tensor, rng: np.random.Generator
    ) -> tuple[float | None, int]:
        """All passes: the last one's mean loss, and the most rows refused in one of them."""
        loss, most_refused = None, 0
        count = len(returns)
        for _ in range(self.epochs if count else 0):
            order = torch.from_numpy(rng.permutation(count)).to(returns.device)
            total, refused = self._epoch(observations[order], returns[order])
            most_refused = max(most_refused, refused)
            loss = total / (count - refused) if refused < count else None
        return loss, most_refused

    def _epoch(self, observations: Tensor, returns: Tensor) -> tuple[float, int]:
        """One pass; returns the summed squared error and the rows whose step was refused."""
        total, refused = 0.0, 0
        batches = zip(
            observations.split(self.batch_size), returns.split(self.batch_size), strict=True
        )
        for batch, targets in batches:
            loss = (self.value_function(batch) - targets).square().mean()
            found: list[Tensor | None] = list(
                torch.autograd.grad(loss, self._parameters, allow_unused=True)
            )
            gradients = [gradient for gradient in found if gradient is not None]
            # One number that is finite only if the loss and every gradient are.
            norm = torch.stack(torch._foreach_norm(gradients)).sum() + loss.detach()
            if not bool(torch.isfinite(norm)):
                refused += len(targets)
                continue
            for parameter, gradient in zip(self._parameters, found, strict=True):
                parameter.grad = gradient
            self._adam.step()
            total += float(loss.detach()) * len(targets)
        self._adam.zero_grad(set_to_none=True)
        return total, refused

    def state_dict(self) -> dict[str, Any]:
        """Adam's moments and step counts, one entry a parameter (the weights are not in it)."""
        saved = self._adam.state_dict()["state"]
        return {str(index): dict(entry) for index, entry in saved.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave. ValueError when the shapes are those of another net."""
        for index, entry in state.items():
            if not (index.isdecimal() and int(index) < len(self._parameters)):
                raise ValueError(f"critic state: no parameter {index!r}")
            shape = self._parameters[int(index)].shape
            for key in ("exp_avg", "exp_avg_sq"):
                if key not in entry or entry[key].shape != shape:
                    raise ValueError(f"critic state: {key} of parameter {index} is not {shape}")
        groups = self._adam.state_dict()["param_groups"]
        entries = {int(index): dict(entry) for index, entry in state.items()}
        self._adam.load_state_dict({"state": entries, "param_groups": groups})


def explained_variance(values: Tensor, returns: Tensor) -> float | None:
    """1 - Var(returns - values) / Var(returns); None where the returns do not vary.

    1 is a perfect critic, 0 one no better than a constant, below 0 worse than that.
    """
    variance = float(returns.double().var(correction=0)) if len(returns) else 0.0
    if not variance > 0:
        return None
    return 1.0 - float((returns - values).double().var(correction=0)) / variance
