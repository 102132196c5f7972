"""What a traced value can be known as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Observations:
    """The input, ``[N, ...]``: the entries of a row in their order, in whatever shape."""


@dataclass(frozen=True)
class Step:
    """A layer, its tensors given by their slots."""

    weight: int
    bias: int | None
    activation: str = "identity"
    parameter: float = 0.0


@dataclass(frozen=True)
class Chain:
    """The output ``[N, width]`` of layers; with ``squeezed``, ``[N]`` of width 1."""

    steps: tuple[Step, ...]
    squeezed: bool = False


@dataclass(frozen=True)
class Columns:
    """Columns start to stop of a chain's output."""

    chain: Chain
    start: int
    stop: int


@dataclass(frozen=True)
class Slot:
    """A parameter or buffer, by its number among the module's tensors."""

    index: int


@dataclass(frozen=True)
class Row:
    """A parameter or buffer that is one row of numbers, broadcast over the batch."""

    index: int


@dataclass(frozen=True)
class Transposed:
    """The transpose of the parameter in a slot."""

    index: int


@dataclass(frozen=True)
class Exp:
    """exp of a row of parameters, or of outputs."""

    of: Slot | Row | Columns | Chain


@dataclass(frozen=True)
class LogSumExp:
    """The logsumexp of logits over their rows, ``[N, 1]``."""

    of: Chain | Columns | LogSoftmax


@dataclass(frozen=True)
class LogSoftmax:
    """Logits less their logsumexp, ``[N, n]``."""

    of: Chain | Columns


@dataclass(frozen=True)
class Constant:
    """A tensor with one number in every entry."""

    number: float


@dataclass(frozen=True)
class Unknown:
    """Anything else, with the reason in words."""

    reason: str


Value = (
    Observations
    | Chain
    | Columns
    | Slot
    | Row
    | Transposed
    | Exp
    | LogSumExp
    | LogSoftmax
    | Constant
    | Unknown
)


@dataclass(frozen=True)
class Call:
    """One call of a torch function: its arguments, and what is known of the tensors in them."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]
    values: list[Value | None]
    outputs: list[Tensor]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """The argument, as it was given."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def known(self, argument: Any) -> Value | None:
        """What is known of an argument that is a tensor."""
        for tensor, value in zip(self.tensors, self.values, strict=True):
            if tensor is argument:
                return value
        return None
