"""Fitting the value function: mean-squared error on the returns, by minibatch Adam.

A perceptron is fitted by one native call a pass; any other module, and any on another device, by
torch.optim.Adam, whose state is the one state of both. The minibatches are the same.

Nothing that is not finite reaches the parameters: such rows are left out, such gradients are not
stepped on, and both are counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from trpo_fast import _native
from trpo_fast.backends.forward import mlp_forward
from trpo_fast.base.errors import users_level
from trpo_fast.base.finite_step import step_if_finite
from trpo_fast.base.tensors import all_finite
from trpo_fast.base.threads import one_thread_if_small
from trpo_fast.base.trees import finite_in_rows, first_leaf, tree_leaves, tree_rows
from trpo_fast.base.uncompiled import LightOptimizer
from trpo_fast.networks.distributions import mode
from trpo_fast.recognition.recognizer import layers_of

if TYPE_CHECKING:
    from trpo_fast.backends.cpu.value_fit import AdamFit

# Row numbers that a fit draws before it begins: 8 MiB.
ORDERS_AHEAD = 1 << 20
Pass = tuple[float, int]  # summed squared error, rows refused


class _Adam(LightOptimizer, torch.optim.Adam):
    """torch.optim.Adam; what only holds the native fit's state needs no compiler."""


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

    `path` says how the last fit was done: "fused" (native) or "generic" (torch); `parameters` are
    those that it moves.

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
        self.path = "generic"
        left = {id(parameter) for parameter in leave}
        self.parameters = [
            p for p in value_function.parameters() if p.requires_grad and id(p) not in left
        ]
        if not self.parameters:
            raise ValueError("the value function has no parameter of its own to fit")
        self._adam = _Adam(self.parameters, lr=learning_rate, eps=1e-5, fused=True)

    def fit(
        self,
        observations: Any,
        returns: Tensor,
        rng: np.random.Generator,
        epochs: int | None = None,
    ) -> CriticResult:
        """Regress the returns [N] on the observations [N, ...], both as the networks see them.

        `rng` shuffles the rows; the same state of it gives the same bits. `epochs` are the passes
        of this fit, where they are not the critic's.
        """
        epochs = self.epochs if epochs is None else epochs
        skipped = 0
        if not (all_finite(returns) and all(map(all_finite, tree_leaves(observations)))):
            usable = torch.isfinite(returns) & finite_in_rows(observations)
            skipped = int((~usable).sum())
            observations, returns = tree_rows(observations, usable), returns[usable]
        count = len(returns)
        orders: Iterator[Tensor] = (
            torch.from_numpy(rng.permutation(count)) for _ in range(epochs * (count > 0))
        )
        if count * epochs <= ORDERS_AHEAD:
            # Drawn between the passes they would give the native threads time to fall asleep.
            orders = iter(list(orders))
        native = self._native_fit(observations)
        self.path = "generic" if native is None else "fused"
        if native is not None:
            passes = self._fit_fused(native, observations, returns, orders)
        else:
            with one_thread_if_small(self.value_function, self.batch_size):
                passes = self._fit_generic(observations, returns, orders)
        loss = None
        if passes and passes[-1][1] < count:
            loss = passes[-1][0] / (count - passes[-1][1])
        return CriticResult(loss, skipped + max((refused for _, refused in passes), default=0))

    def _fit_generic(
        self, observations: Any, returns: Tensor, orders: Iterable[Tensor]
    ) -> list[Pass]:
        device = returns.device
        figures = [
            self._epoch(observations, returns, order)
            for order in (each.to(device) for each in orders)
        ]
        # The host waits for the device here alone.
        told = torch.stack(figures).tolist() if figures else []
        return [(total, int(rows)) for total, rows in told]

    @staticmethod
    def _fit_fused(
        native: AdamFit, observations: Tensor, returns: Tensor, orders: Iterable[Tensor]
    ) -> list[Pass]:
        observations = observations.to(native.dtype).resolve_neg()
        returns = returns.detach().to(native.dtype).resolve_neg().contiguous()
        passes = [native.epoch(observations, returns, order) for order in orders]
        native.write_back()
        return passes

    def _native_fit(self, observations: Any) -> AdamFit | None:
        """The native fit of the value function, where it can serve these observations."""
        if _native.core is None or not isinstance(observations, Tensor):
            return None
        if observations.ndim != 2 or not observations.is_cpu:
            return None
        from trpo_fast.backends.cpu.value_fit import AdamFit

        layers = layers_of(self.value_function, observations)
        if isinstance(layers, str):
            return None
        return AdamFit.of(layers, self._adam, self.parameters, self.batch_size)

    def _epoch(self, observations: Any, returns: Tensor, order: Tensor) -> Tensor:
        """One pass; the summed squared error and the rows whose step was refused, [2]."""
        figures = torch.zeros(2, dtype=torch.float64, device=returns.device)
        for rows in order.split(self.batch_size):
            batch, targets = tree_rows(observations, rows), returns[rows]
            errors = (self.value_function(batch) - targets).square()
            figures += self._descend(errors)
        self._adam.zero_grad(set_to_none=True)
        return figures

    def _descend(self, errors: Tensor) -> Tensor:
        """One step of Adam down the mean of squared errors [n].

        Returns:
            Their sum and 0, or 0 and n where the step was refused as not finite, [2] in float64.
        """
        loss = errors.mean()
        taken = step_if_finite(self._adam, self.parameters, loss)
        total = (loss.detach().double() * len(errors)).where(taken, 0.0)
        return torch.stack([total, len(errors) * (~taken).double()])

    def state_dict(self) -> dict[str, Any]:
        """Adam's moments and step counts, one entry a parameter (the weights are not in it)."""
        saved = self._adam.state_dict()["state"]
        return {str(index): dict(entry) for index, entry in saved.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave. ValueError when the shapes are those of another net."""
        for index, entry in state.items():
            if not (index.isdecimal() and int(index) < len(self.parameters)):
                raise ValueError(f"critic state: no parameter {index!r}")
            shape = self.parameters[int(index)].shape
            for key in ("exp_avg", "exp_avg_sq"):
                if key not in entry or entry[key].shape != shape:
                    raise ValueError(f"critic state: {key} of parameter {index} is not {shape}")
        groups = self._adam.state_dict()["param_groups"]
        entries = {int(index): dict(entry) for index, entry in state.items()}
        self._adam.load_state_dict({"state": entries, "param_groups": groups})


def shared_parameters(
    policy: nn.Module, value: nn.Module, blank: Any, *, said: bool = False
) -> list[nn.Parameter]:
    """Parameters of both networks on which the policy's distribution depends.

    The critic must not move them: that would move the policy without asking its trust region. A
    warning says that they learn from the policy's step alone.

    Args:
        policy: as the agent has it.
        value: likewise.
        blank: a batch of one observation, as they see it.
        said: no warning, since the user asked for it.
    """
    of_policy = {id(p) for p in policy.parameters()}
    both = [p for p in value.parameters() if id(p) in of_policy and p.requires_grad]
    if not both:
        return []
    distribution = policy(blank)
    probe = distribution.log_prob(mode(distribution)).sum()
    gradients = torch.autograd.grad(probe, both, allow_unused=True)
    used: list[Tensor | None] = list(gradients)
    shared = [p for p, g in zip(both, used, strict=True) if g is not None]
    if shared and not said:
        warnings.warn(
            f"{len(shared)} parameter tensors of the value function belong to the policy: the "
            "trust-region step moves them, the critic's fit does not. Separate networks learn "
            "values better.",
            stacklevel=users_level(),
        )
    return shared


def explained_variance(values: Tensor, returns: Tensor) -> float | None:
    """1 - Var(returns - values) / Var(returns); None where the returns do not vary.

    1 is a perfect critic, 0 one no better than a constant, below 0 worse than that.
    """
    variance = float(returns.double().var(correction=0)) if len(returns) else 0.0
    if not variance > 0:
        return None
    return 1.0 - float((returns - values).double().var(correction=0)) / variance


def state_values(value_function: nn.Module, observations: Any) -> Tensor:
    """Values ``[N]`` of ``observations``, outside autograd, as the module's forward gives them.

    A ``ValueFunction`` is evaluated by ``backends.forward``: torch's own threads, once woken by
    a large product, spin for milliseconds on the cores that the native update wants next.
    """
    layers = layers_of(value_function)
    with torch.no_grad():
        if not isinstance(layers, str):
            return mlp_forward(layers, observations.to(layers[0].weight.dtype)).squeeze(-1)
        with one_thread_if_small(value_function, len(first_leaf(observations))):
            values: Tensor = value_function(observations)
            return values
