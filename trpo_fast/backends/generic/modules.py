"""The keyword form of ``step`` for any policy module, as terms of the generic problem."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

from trpo_fast.backends.generic.problem import FisherTerm, ModelCall, Term
from trpo_fast.base.modes import Draws
from trpo_fast.base.tensors import strided_rows, weighted_mean
from trpo_fast.base.trees import first_leaf
from trpo_fast.networks.distributions import MultiCategorical, whole_actions
from trpo_fast.networks.joint import JointDistribution
from trpo_fast.update.batch import Batch, batch_rows
from trpo_fast.update.options import Options

CHUNK_ROWS = 1 << 17


class ModuleTerm:
    """Some rows of a batch through a policy module: loss, distribution and weights at each call.

    Raises:
        TypeError: ``forward`` does not return a distribution.
        ValueError: its ``batch_shape`` is not [N], or the actions do not have its shape.
        IndexError: a categorical action is out of range.
    """

    def __init__(self, module: nn.Module, batch: Batch, draws: Draws, index: int) -> None:
        self.module, self.batch, self._draws, self._index = module, batch, draws, index
        self.old_log_prob: Tensor | None = batch.old_log_prob

    def rows(self) -> tuple[Distribution, Tensor | None]:
        """The distribution at the current parameters, and the weights."""
        batch = self.batch
        masks = {} if batch.action_mask is None else {"action_mask": batch.action_mask}
        with self._draws.same(self._index):
            distribution = self.module(batch.obs, **masks)
        if not isinstance(distribution, Distribution):
            raise TypeError(
                f"forward returned a {type(distribution).__name__}; the policy's forward must "
                "return a torch.distributions.Distribution"
            )
        if tuple(distribution.batch_shape) != (batch.rows,):
            shape = tuple(distribution.batch_shape)
            raise ValueError(
                f"the policy's distribution has batch_shape {shape}, expected ({batch.rows},): "
                "one joint action a row; wrap it in torch.distributions.Independent(..., 1)"
            )
        return distribution, batch.weights

    def __call__(self) -> ModelCall:
        """Loss, distribution and weights at the current parameters."""
        distribution, weights = self.rows()
        batch = self.batch
        if batch.actions is None or batch.advantages is None:
            raise ValueError("actions and advantages are needed for a loss")
        _check_actions(distribution, batch.actions)
        log_prob = distribution.log_prob(batch.actions)
        if tuple(log_prob.shape) != (batch.rows,):
            raise ValueError(
                f"log_prob has shape {tuple(log_prob.shape)}, expected ({batch.rows},)"
            )
        if self.old_log_prob is None:
            self.old_log_prob = log_prob.detach().clone()
        ratio = (log_prob - self.old_log_prob).double().exp()
        loss = -weighted_mean(ratio * batch.advantages.double(), weights)
        return ModelCall(loss, distribution, weights)


def _check_actions(distribution: Distribution, actions: Any) -> None:
    if isinstance(distribution, JointDistribution):
        for name, part, action in distribution.matched(actions):
            try:
                _check_actions(part, action)
            except (ValueError, IndexError) as error:
                raise type(error)(f"{name}: {error}") from error
        return
    if not isinstance(actions, Tensor):
        raise TypeError(
            f"actions are a {type(actions).__name__}, which is for a JointDistribution; forward "
            f"gives a {type(distribution).__name__}"
        )
    expected = tuple(distribution.batch_shape + distribution.event_shape)
    if tuple(actions.shape) != expected:
        raise ValueError(f"actions have shape {tuple(actions.shape)}, expected {expected}")
    if isinstance(distribution, Categorical):
        whole_actions(actions, (int(distribution._num_events),))
    elif isinstance(distribution, MultiCategorical):
        whole_actions(actions, distribution.nvec)


def module_terms(
    module: nn.Module, batch: Batch, options: Options
) -> tuple[list[Term], list[FisherTerm] | None]:
    """The batch, and the rows of its Fisher matrix, in chunks of bounded memory.

    The second is None where the Fisher's rows are those of the only term.
    """
    draws = Draws(options.noise, first_leaf(batch.obs).device)
    terms = []
    for index, (part, share) in enumerate(_parts(batch)):
        call = ModuleTerm(module, part, draws, index)
        terms.append(Term(call, share, call.rows))
    if len(terms) == 1 and options.fisher_fraction == 1:
        return terms, None
    return terms, fisher_terms(module, batch, options)


def fisher_terms(module: nn.Module, batch: Batch, options: Options) -> list[FisherTerm]:
    """The strided rows of the Fisher matrix, in chunks."""
    if options.fisher_fraction < 1:
        device = first_leaf(batch.obs).device
        batch = batch_rows(batch, strided_rows(batch.rows, options.fisher_fraction, device))
    draws = Draws(options.noise, first_leaf(batch.obs).device)
    return [
        FisherTerm(ModuleTerm(module, part, draws, index).rows, share)
        for index, (part, share) in enumerate(_parts(batch))
    ]


def _parts(batch: Batch) -> Iterator[tuple[Batch, float]]:
    if batch.rows <= CHUNK_ROWS:
        yield batch, 1.0
        return
    weights = batch.weights
    whole = float(batch.rows if weights is None else weights.sum(dtype=torch.float64))
    for start in range(0, batch.rows, CHUNK_ROWS):
        part = batch_rows(batch, slice(start, start + CHUNK_ROWS))
        own = part.rows if part.weights is None else part.weights.sum(dtype=torch.float64)
        yield part, float(own) / whole
