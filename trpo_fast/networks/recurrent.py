"""Policies and value functions with a memory: a recurrent cell between encoder and outputs.

The memory of one step is a tuple of ``[n, size]`` tensors, zeros where an episode begins. A batch
of whole sequences has no padding: its rows are put in the order in which the cell meets them, step
by step, so that no mean over rows has anything to mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from trpo_fast.base.spaces import Space
from trpo_fast.base.trees import first_leaf
from trpo_fast.networks.activations import ACTIVATIONS
from trpo_fast.networks.encoded import EncodedPolicy, features
from trpo_fast.networks.encoders import Encoder
from trpo_fast.networks.mlp import MlpPolicy, ValueFunction, hidden_widths, perceptron
from trpo_fast.networks.orthogonal import orthogonal_
from trpo_fast.networks.structured import COMBINED_FEATURES

Memory = tuple[Tensor, ...]  # (h, c) of an LSTM, (h,) of a GRU, each [n, size]
CELLS: dict[str, tuple[type[nn.LSTM | nn.GRU], int]] = {
    "lstm": (nn.LSTM, 2),
    "gru": (nn.GRU, 1),
}
# Cells of padded sequences for each row, up to which padding them is quicker.
PADDED_AT_MOST = 4


class Sequences(NamedTuple):
    """How ``N`` rows are the steps of ``S`` sequences.

    Attributes:
        order: ``[N]``, the rows as a cell meets them: step by step, the longest sequence first.
        place: ``[N]``, where each row stands in that order.
        batch_sizes: ``[L]``, how many sequences have a first, second, ... step; on the CPU.
        ranked: ``[S]``, the sequences by length, the longest first.
        first: The memory before each sequence's first step, ``[S, size]`` each.
    """

    order: Tensor
    place: Tensor
    batch_sizes: Tensor
    ranked: Tensor
    first: Memory


def sequences_of(
    sequence: npt.NDArray[np.int64], step: npt.NDArray[np.int64], first: Memory
) -> Sequences:
    """The sequences of rows, each numbered from 0 by its sequence and its step within.

    Args:
        sequence: ``[N]``, every number below S at least once.
        step: ``[N]``, 0, 1, ... within each sequence, in any order of rows.
        first: The memory before each sequence's first step, ``[S, size]`` each.
    """
    ranked = np.argsort(-np.bincount(sequence), kind="stable")
    rank = np.empty_like(ranked)
    rank[ranked] = np.arange(len(ranked))
    order = np.lexsort((rank[sequence], step))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    device = first[0].device
    return Sequences(
        torch.from_numpy(order).to(device),
        torch.from_numpy(place).to(device),
        torch.from_numpy(np.bincount(step)),
        torch.from_numpy(ranked).to(device),
        first,
    )


class RecurrentTrunk(nn.Module):
    """Encoder, hidden layers and cell.

    Args:
        observation_space: As of ``MultiInputPolicy``.
        cell: "lstm" (Hochreiter & Schmidhuber 1997) or "gru" (Cho et al. 2014).
        size: Numbers in the cell's output.
        hidden_sizes, activation: Of the layers between encoder and cell.
        image_features: Features of each image.
        generator: Source of the initial weights; None is torch's global one.

    Raises:
        ValueError: unknown cell, or a size below 1.
    """

    def __init__(
        self,
        observation_space: Space,
        cell: str,
        size: int,
        hidden_sizes: Sequence[int],
        activation: str,
        image_features: int | None,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        if cell not in CELLS:
            raise ValueError(f"cell {cell!r} is unknown; known: {', '.join(CELLS)}")
        if not size >= 1:
            raise ValueError(f"the cell's size must be at least 1, got {size!r}")
        self.encoder = Encoder(observation_space, image_features, generator=generator)
        width = self.encoder.width
        self.body = nn.Sequential()
        widths = hidden_widths(hidden_sizes)
        if widths:
            layers = perceptron([width, *widths], activation, last_gain=2**0.5, generator=generator)
            self.body = layers.append(ACTIVATIONS[activation].make())
            width = widths[-1]
        kind, self.parts = CELLS[cell]
        self.size = int(size)
        with torch.random.fork_rng([]):  # what torch draws first is not kept
            self.cell = kind(width, self.size)
        for name, parameter in self.cell.named_parameters():
            if name.startswith("weight"):
                for gate in parameter.detach().split(self.size):
                    orthogonal_(gate, 1.0, generator)
            else:
                nn.init.zeros_(parameter)

    def initial(self, rows: int) -> Memory:
        """The memory ``[rows, size]`` at the beginning of an episode: zeros."""
        like = next(self.cell.parameters())
        return tuple(like.new_zeros(rows, self.size) for _ in range(self.parts))

    def step(self, obs: Any, memory: Memory) -> tuple[Tensor, Memory]:
        """The outputs ``[n, size]`` of one more step each, and the memory after it."""
        inputs = self.body(self.encoder(obs)).unsqueeze(0)
        outputs, after = self.cell(inputs, self._given(memory))
        return outputs[0], self._taken(after)

    def replay(self, obs: Any, sequences: Sequences) -> tuple[Tensor, Memory]:
        """The outputs ``[N, size]`` of the rows of whole sequences, and each one's last memory."""
        packed, first = self._entered(obs, sequences)
        outputs, after = self._run(packed, first)
        rank = torch.argsort(sequences.ranked)
        last = tuple(part[rank] for part in self._taken(after))
        return outputs.data[sequences.place], last

    def outputs(self, obs: Any, sequences: Sequences) -> Tensor:
        """The outputs of ``replay``, by whichever way of two is quicker.

        On a CPU torch has one kernel for an LSTM's sequences of one length, and walks those of
        several lengths operation by operation. But sequences of one length are as many as there are
        times the longest: padding may hold ten times the rows, and their memory.
        """
        sizes = sequences.batch_sizes
        padded = len(sizes) * int(sizes[0])
        kernel = isinstance(self.cell, nn.LSTM) and sequences.place.device.type == "cpu"
        if kernel and padded <= PADDED_AT_MOST * len(sequences.place):
            return self._replay_padded(obs, sequences)
        return self.replay(obs, sequences)[0]

    def _replay_padded(self, obs: Any, sequences: Sequences) -> Tensor:
        """What stands after a sequence's end changes no output of it."""
        packed, first = self._entered(obs, sequences)
        inputs, lengths = pad_packed_sequence(packed)
        outputs, _ = self._run(inputs, first)
        return pack_padded_sequence(outputs, lengths).data[sequences.place]

    def _entered(self, obs: Any, sequences: Sequences) -> tuple[PackedSequence, Memory]:
        """The cell's inputs, and the memory before each sequence, the longest first."""
        inputs = self.body(self.encoder(obs))[sequences.order]
        first = tuple(part[sequences.ranked] for part in sequences.first)
        return PackedSequence(inputs, sequences.batch_sizes), first

    def _run(self, inputs: Any, first: Memory) -> Any:
        # cuDNN's cells have no second derivative
        with torch.backends.cudnn.flags(enabled=False):
            return self.cell(inputs, self._given(first))

    def _given(self, memory: Memory) -> Any:
        parts = [part.unsqueeze(0) for part in memory]
        return tuple(parts) if self.parts > 1 else parts[0]

    def _taken(self, after: Any) -> Memory:
        parts = after if self.parts > 1 else (after,)
        return tuple(part[0] for part in parts)


class _Recurrent(nn.Module):
    """What policy and value function have in common."""

    observation: ClassVar[str] = "structured"
    recurrent: ClassVar[bool] = True
    trunk: RecurrentTrunk

    @property
    def memory_size(self) -> int:
        """Numbers in the memory of one episode."""
        return self.trunk.parts * self.trunk.size

    def initial_memory(self, rows: int) -> Memory:
        """The memory ``[rows, size]`` at the beginning of an episode."""
        return self.trunk.initial(rows)

    def _outputs(self, obs: Any, sequences: Sequences | None) -> Tensor:
        if sequences is None:
            return self.trunk.step(obs, self.trunk.initial(len(first_leaf(obs))))[0]
        return self.trunk.outputs(obs, sequences)


class RecurrentPolicy(_Recurrent, EncodedPolicy):
    """A policy with a memory of its episode: encoder, hidden layers, LSTM or GRU, action head.

    Args:
        observation_space, action_space: As of ``MultiInputPolicy``.
        hidden_sizes, activation: Of the layers between encoder and cell.
        cell: "lstm" or "gru".
        cell_size: Numbers in the cell's output.
        image_features: Features of each image.
        generator: Source of the initial weights; None is torch's global generator.
        options: Further keywords of ``MlpPolicy``.

    Raises:
        UnsupportedSpaceError: a space that is not supported, named by its path.
        ValueError: unknown cell.
    """

    def __init__(
        self,
        observation_space: Space,
        action_space: Space,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
        *,
        cell: str = "lstm",
        cell_size: int = 64,
        image_features: int | None = COMBINED_FEATURES,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.trunk = RecurrentTrunk(
            observation_space, cell, cell_size, hidden_sizes, activation, image_features, generator
        )
        self.actor = MlpPolicy(
            features(cell_size), action_space, (), activation, generator=generator, **options
        )

    def forward(
        self, obs: Any, action_mask: Tensor | None = None, *, sequences: Sequences | None = None
    ) -> Distribution:
        """The distribution of the actions, batch_shape ``[N]``.

        Args:
            obs: The space's nesting of ``[N, ...]`` tensors.
            action_mask: As of ``MlpPolicy``.
            sequences: Whose steps the rows are; without, each is an episode's first step.
        """
        return self.actor(self._outputs(obs, sequences), action_mask)  # type: ignore[no-any-return]

    def step(
        self, obs: Any, memory: Memory, action_mask: Tensor | None = None
    ) -> tuple[Distribution, Memory]:
        """The distribution ``[n]`` of one more step of each episode, and the memory after it."""
        outputs, after = self.trunk.step(obs, memory)
        return self.actor(outputs, action_mask), after


class RecurrentValueFunction(_Recurrent):
    """State values with a memory of the episode, of a cell of its own.

    Args:
        observation_space: As of ``MultiInputPolicy``.
        hidden_sizes, activation: Of the layers between encoder and cell.
        cell: "lstm" or "gru".
        cell_size: Numbers in the cell's output.
        image_features: Features of each image.
        generator: Source of the initial weights; None is torch's global generator.
    """

    def __init__(
        self,
        observation_space: Space,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: str = "tanh",
        *,
        cell: str = "lstm",
        cell_size: int = 64,
        image_features: int | None = COMBINED_FEATURES,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.trunk = RecurrentTrunk(
            observation_space, cell, cell_size, hidden_sizes, activation, image_features, generator
        )
        self.values = ValueFunction(features(cell_size), (), activation, generator=generator)

    def forward(self, obs: Any, *, sequences: Sequences | None = None) -> Tensor:
        """Values ``[N]`` of a batch; the arguments are those of ``RecurrentPolicy.forward``."""
        found: Tensor = self.values(self._outputs(obs, sequences))
        return found

    def replay(self, obs: Any, sequences: Sequences) -> tuple[Tensor, Memory]:
        """Values ``[N]``, and the memory ``[S, size]`` after each sequence."""
        outputs, last = self.trunk.replay(obs, sequences)
        return self.values(outputs), last

    def step(self, obs: Any, memory: Memory) -> tuple[Tensor, Memory]:
        """Values ``[n]`` of one more step of each episode, and the memory after it."""
        outputs, after = self.trunk.step(obs, memory)
        return self.values(outputs), after


def is_recurrent(module: nn.Module) -> bool:
    """Whether a module has a memory that is carried from step to step."""
    return bool(getattr(module, "recurrent", False))
