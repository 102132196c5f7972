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
class Softplus:
    """softplus of a part of a chain's output, which as a whole has an activation of its own."""

    of: Columns


@dataclass(frozen=True)
class Raised:
    """1 + softplus of columns of a chain without a last activation: concentrations of a Beta."""

    of: Columns


@dataclass(frozen=True)
class Stacked:
    """Tensors side by side in a new last dimension."""

    of: tuple[Value | None, ...]


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
class Allowed:
    """Columns start to stop of the action mask, True where an action is allowed."""

    start: int
    stop: int


@dataclass(frozen=True)
class Forbidden:
    """The same, True where an action is not."""

    where: Allowed


@dataclass(frozen=True)
class Masked:
    """Logits, -inf where an action is forbidden."""

    of: Chain | Columns
    by: Allowed


@dataclass(frozen=True)
class Detached:
    """Logits without their gradient."""

    of: Logits


@dataclass(frozen=True)
class RowNumber:
    """A number for each row of logits, ``[N, 1]``: their logsumexp, or the greatest of them."""

    of: Logits


@dataclass(frozen=True)
class Shifted:
    """Logits less such numbers, ``[N, n]``: of the same distribution."""

    of: Chain | Columns | Masked


@dataclass(frozen=True)
class Constant:
    """A tensor with one number in every entry."""

    number: float


@dataclass(frozen=True)
class Unknown:
    """Anything else, with the reason in words."""

    reason: str


Logits = Chain | Columns | Masked | Shifted
Value = (
    Observations
    | Chain
    | Columns
    | Softplus
    | Raised
    | Stacked
    | Slot
    | Row
    | Transposed
    | Exp
    | Allowed
    | Forbidden
    | Masked
    | Detached
    | RowNumber
    | Shifted
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
