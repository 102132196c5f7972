"""Learning with a memory: a rollout as whole sequences, for the policy and the value function.

A sequence is what a rollout has of one episode. It begins with the memory that the network had
there before the rollout, or with none where the episode begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributions import Distribution

from trpo_fast.agent.critic import Critic, CriticResult
from trpo_fast.base.threads import one_thread_if_small
from trpo_fast.base.trees import first_leaf, tree_rows
from trpo_fast.networks.recurrent import Sequences, is_recurrent, sequences_of
from trpo_fast.optimizer.optimizer import TRPOOptimizer
from trpo_fast.rollouts.rollout import Rollout
from trpo_fast.rollouts.samplers import split_memory

# Sequences in a minibatch of the critic at least: few short products are slow.
FEWEST_SEQUENCES = 4


class Numbered(NamedTuple):
    """The valid rows of a rollout, [N], as steps of sequences."""

    sequence: npt.NDArray[np.int64]  # [N], which one
    step: npt.NDArray[np.int64]  # [N], where in it
    of: npt.NDArray[np.int64]  # [T, B], the sequence of every row; -1 where it is not valid
    begins: npt.NDArray[np.bool_]  # [S], with an episode
    env: npt.NDArray[np.int64]  # [S]

    def first(self, memory: Tensor) -> Tensor:
        """The memory [S, M] before each sequence, of the one [B, M] before the rollout."""
        found = memory[torch.from_numpy(self.env).to(memory.device)]
        return torch.where(torch.from_numpy(self.begins).to(memory.device)[:, None], 0.0, found)


def numbered(rollout: Rollout) -> Numbered:
    """The sequences of a rollout."""
    starts, valid = rollout.starts.numpy(), rollout.valid.numpy()
    steps, envs = starts.shape
    cut = starts.copy()
    cut[0] = True
    rows = np.arange(steps)[:, None]
    since = np.maximum.accumulate(np.where(cut, rows, 0), axis=0)  # [T, B], the sequence's row 0
    key = since * envs + np.arange(envs)
    kept, sequence = np.unique(key[valid], return_inverse=True)
    of = np.full((steps, envs), -1, np.int64)
    of[valid] = sequence
    begins = starts[kept // envs, kept % envs]
    return Numbered(sequence, (rows - since)[valid], of, begins, kept % envs)


class RecurrentLearning:
    """What an update does otherwise where the policy has a memory.

    Args:
        policy: with a memory.
        value_function: with or without one.
        num_envs: B.

    Attributes:
        memory: The value function's [B, M] where the last rollout ended; None where it has none.
    """

    def __init__(self, policy: Any, value_function: Any, num_envs: int) -> None:
        self.policy, self.value_function = policy, value_function
        self.memory: Tensor | None = None
        if is_recurrent(value_function):
            self.memory = torch.cat(self.value_function.initial_memory(num_envs), 1).cpu()

    def begin(self, rollout: Rollout) -> None:
        """Number the rows of a rollout; before anything else of an update."""
        self._rows = numbered(rollout)

    def bootstrap(self, shown: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        """As `bootstrap_values`, by a value function with a memory, which is carried on."""
        assert self.memory is not None  # noqa: S101
        rows, value = self._rows, self.value_function
        observations = shown.select(shown.observations)
        device = first_leaf(observations).device
        memory = torch.where(shown.starts[0][:, None], 0.0, self.memory)
        with torch.no_grad(), one_thread_if_small(value, len(memory)):
            given = _sequences(rows, value, memory.to(device))
            self._before = torch.cat(given.first, 1)
            found, last = value.replay(observations, given)
            after = torch.cat(last, 1)  # [S, M]
            values = found.new_zeros(shown.valid.shape)
            values[shown.valid] = found
            ends = torch.from_numpy(rows.of[-1]).to(device)  # [B]
            carried = torch.where(ends[:, None] >= 0, after[ends.clamp_min(0)], 0.0)
            last_values, _ = value.step(shown.last_observations, split_memory(value, carried))
            final_values = torch.zeros_like(values)
            if len(shown.final_index[0]):
                step, env = (index.numpy() for index in shown.final_index)
                at = after[torch.from_numpy(rows.of[step, env]).to(device)]
                final_values[shown.final_index], _ = value.step(
                    shown.final_observations, split_memory(value, at)
                )
        self.memory = carried.cpu()
        return values.cpu(), last_values.cpu(), final_values.cpu()

    def step(
        self,
        optimizer: TRPOOptimizer,
        rollout: Rollout,
        observations: Any,
        actions: Any,
        advantages: Tensor,
        masks: Tensor | None,
    ) -> None:
        """One step of the policy on whole sequences.

        The old log-probabilities are those of the sequences replayed at the parameters before the
        step, so that the ratio is 1 there to the last bit.
        """
        assert rollout.memory is not None  # noqa: S101
        self._sequences = self.sequences(rollout, advantages.device)
        old: list[Tensor] = []

        def closure() -> tuple[Tensor, Distribution]:
            distribution = self.distribution(observations, masks)
            log_prob = distribution.log_prob(actions)
            if not old:
                old.append(log_prob.detach().clone())
            ratio = (log_prob - old[0]).double().exp()
            return -(ratio * advantages.double()).mean(), distribution

        with one_thread_if_small(self.policy, len(rollout.memory)):
            optimizer.step(closure)

    def sequences(self, rollout: Rollout, device: torch.device) -> Sequences:
        """Of a rollout's valid rows, each with the policy's memory before it."""
        assert rollout.memory is not None  # noqa: S101
        return _sequences(self._rows, self.policy, rollout.memory.to(device))

    def distribution(self, observations: Any, masks: Tensor | None) -> Distribution:
        """The policy's of the last step's rows [N], at the parameters of now."""
        given = {} if masks is None else {"action_mask": masks}
        found: Distribution = self.policy(observations, sequences=self._sequences, **given)
        return found

    def prepare(self, critic: Critic) -> None:
        """Before the critic's fit: tell one with a memory of the rollout's sequences."""
        if isinstance(critic, RecurrentCritic):
            critic.begin(self._rows, self._before)

    def state(self) -> dict[str, Tensor]:
        """The value function's memory, {} where it has none."""
        return {} if self.memory is None else {"values": self.memory.clone()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave; of another number of environments, it begins anew."""
        if self.memory is None:
            return
        saved = state["values"]
        fits = saved.shape == self.memory.shape
        self.memory = saved.clone() if fits else torch.zeros_like(self.memory)


class RecurrentCritic(Critic):
    """A value function with a memory: minibatches are whole sequences.

    A minibatch has at least ``batch_size`` rows and four sequences, as far as there are so many.
    The memory before a sequence is that which the value function had there in the rollout.
    """

    def begin(self, rows: Numbered, memory: Tensor) -> None:
        """Before `fit`: the sequences of its rows, and the memory [S, M] before each."""
        self._rows, self._first = rows, memory

    def fit(
        self,
        observations: Any,
        returns: Tensor,
        rng: np.random.Generator,
        epochs: int | None = None,
    ) -> CriticResult:
        """As of `Critic`; rows that are not finite are left out of the means."""
        epochs = self.epochs if epochs is None else epochs
        self.path = "generic"
        usable = torch.isfinite(returns)
        # What is left out must be finite, too: 0, its slope, times infinity is no number.
        targets = returns.where(usable, 0.0)
        skipped, refused, loss = int((~usable).sum()), 0, None
        with one_thread_if_small(self.value_function, len(self._first)):
            for _ in range(epochs if bool(usable.any()) else 0):
                figures = torch.zeros(2, dtype=torch.float64, device=returns.device)
                for group in self._groups(rng):
                    rows, sequences = self._batch(group, returns.device)
                    values = self.value_function(tree_rows(observations, rows), sequences=sequences)
                    errors = (values - targets[rows]).square()
                    errors = errors[usable[rows]] if skipped else errors
                    if len(errors):
                        figures += self._descend(errors)
                total, missed = figures.tolist()
                refused = max(refused, int(missed))
                counted = len(returns) - skipped - int(missed)
                loss = total / counted if counted else None
        self._adam.zero_grad(set_to_none=True)
        return CriticResult(loss, skipped + refused)

    def _groups(self, rng: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
        """The sequences of each minibatch of a pass."""
        lengths = np.bincount(self._rows.sequence)
        group: list[int] = []
        for sequence in rng.permutation(len(lengths)):
            group.append(int(sequence))
            if len(group) >= FEWEST_SEQUENCES and lengths[group].sum() >= self.batch_size:
                yield np.array(group)
                group = []
        if group:
            yield np.array(group)

    def _batch(
        self, group: npt.NDArray[np.int64], device: torch.device
    ) -> tuple[Tensor, Sequences]:
        """The rows of some sequences, and those sequences of them."""
        number = np.full(len(self._first), -1, np.int64)
        number[group] = np.arange(len(group))
        own = number[self._rows.sequence]
        rows = np.flatnonzero(own >= 0)
        memory = split_memory(self.value_function, self._first[torch.from_numpy(group).to(device)])
        sequences = sequences_of(own[rows], self._rows.step[rows], memory)
        return torch.from_numpy(rows).to(device), sequences


def _sequences(rows: Numbered, module: Any, memory: Tensor) -> Sequences:
    """The rows' sequences for a module, whose memory [B, M] was this before the rollout."""
    return sequences_of(rows.sequence, rows.step, split_memory(module, rows.first(memory)))
