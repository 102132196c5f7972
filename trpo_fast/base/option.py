"""Tables of options: a dataclass whose fields each carry a row, for whoever checks or lists them.

A row says once what an option means and what it takes. Checks, the command line, the docs and
signatures read it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# What counts and sizes are kept in.
GREATEST_WHOLE = 2**63 - 1


@dataclass(frozen=True)
class Option:
    """What is known about one option; ``table_of`` fills in name, kind and default.

    Attributes:
        text: What it means, in the half line that ``--help`` has for it.
        group: The heading that it is listed under.
        note: What else is to be said, where there is room.
        choices: The words it takes; empty for any.
        minimum: Least value, itself allowed; of each item, where the option is a list.
        above: Greatest value that is too small.
        maximum: Greatest value, itself allowed.
        below: Least value that is too large.
        fixed: It decides shapes or data: a run cannot be resumed with another value.
        kind: bool, int, float, str, tuple (of whole numbers) or dict.
        optional: None is allowed as well.
    """

    text: str
    group: str
    note: str = ""
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    fixed: bool = False
    name: str = ""
    kind: type = object
    optional: bool = False
    default: Any = None

    def checked(self, value: Any) -> Any:
        """``value`` as a plain one of the option's kind.

        Raises:
            ValueError: it is outside the limits, or of another type.
        """
        if value is None and self.optional:
            return None
        found = _READERS[self.kind](self, value)
        if found is None:
            hint = did_you_mean(value, self.choices) if isinstance(value, str) else ""
            raise ValueError(f"{self.name} must be {self.values}, got {value!r}{hint}")
        return found

    def holds(self, number: float) -> bool:
        """Whether a number is within the limits."""
        return (
            (self.minimum is None or number >= self.minimum)
            and (self.above is None or number > self.above)
            and (self.maximum is None or number <= self.maximum)
            and (self.below is None or number < self.below)
        )

    @property
    def values(self) -> str:
        """What it takes, in words."""
        return f"{self._values}, or None" if self.optional else self._values

    @property
    def _values(self) -> str:
        if self.kind is str:
            return f"one of {', '.join(self.choices)}" if self.choices else "a word"
        limits = ((">=", self.minimum), (">", self.above), ("<=", self.maximum), ("<", self.below))
        span = [f"{sign} {_digits(limit)}" for sign, limit in limits if limit is not None]
        if self.kind is float and self.maximum is None and self.below is None:
            if not span:
                return "a finite number"
            span.append("finite")
        noun = _NOUNS[self.kind]
        return f"{noun} {' and '.join(span)}" if span else noun


def _digits(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def option(default: Any, group: str, text: str, **more: Any) -> Any:
    """A dataclass field with its row; a type as default is called for each."""
    metadata = {"option": Option(text, group, **more)}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def table_of(options: type) -> dict[str, Option]:
    """The rows of a dataclass whose fields ``option`` made, by name."""
    hints = typing.get_type_hints(options)
    return {f.name: _row(f, hints[f.name]) for f in dataclasses.fields(options)}


def _row(item: dataclasses.Field[Any], hint: Any) -> Option:
    optional = typing.get_origin(hint) is types.UnionType
    if optional:
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not type(None))
    made = item.default_factory
    row: Option = item.metadata["option"]
    return dataclasses.replace(
        row,
        name=item.name,
        kind=typing.get_origin(hint) or hint,
        optional=optional,
        default=item.default if made is dataclasses.MISSING else made(),
    )


def check_fields(options: Any, table: Mapping[str, Option]) -> None:
    """Check each field of a frozen dataclass, and make its value a plain one.

    Raises:
        ValueError: as ``Option.checked``.
    """
    for name, row in table.items():
        value = getattr(options, name)
        found = row.checked(value)
        if found is not value:
            object.__setattr__(options, name, found)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean ...?"` with the known names nearest to `name`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=0.6)
    return "; did you mean " + " or ".join(map(repr, near)) + "?" if near else ""


# Each gives a plain value, or None where the option does not take it.


def _flag(_row: Option, value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _word(row: Option, value: Any) -> str | None:
    if not isinstance(value, str) or (row.choices and value not in row.choices):
        return None
    return value


def _whole(row: Option, value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        return None
    number = int(value)
    return number if abs(number) <= GREATEST_WHOLE and row.holds(number) else None


def _real(row: Option, value: Any) -> float | None:
    if type(value) is not float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return None
        try:
            value = float(value)
        except OverflowError:
            return None
    return value if math.isfinite(value) and row.holds(value) else None


def _wholes(row: Option, value: Any) -> tuple[int, ...] | None:
    if isinstance(value, str) or not isinstance(value, Iterable):
        return None
    found = tuple(_whole(row, item) for item in value)
    return None if None in found else typing.cast("tuple[int, ...]", found)


def _named_values(_row: Option, value: Any) -> dict[str, Any] | None:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return None
    return dict(value)


_READERS: dict[type, Callable[[Option, Any], Any]] = {
    bool: _flag,
    str: _word,
    int: _whole,
    float: _real,
    tuple: _wholes,
    dict: _named_values,
}
_NOUNS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: "a list of whole numbers",
    dict: "a mapping with text keys",
}
