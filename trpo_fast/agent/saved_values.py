"""What a value in a checkpoint must be, in words where it is not.

A check takes a value and its place, and yields a line for each thing that is wrong with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trpo_fast.base.tensors import all_finite

Check = Callable[[Any, str], Iterator[str]]
INT64 = 2**63 - 1


def shown(value: Any) -> str:
    """A value for a message, on one line and short."""
    if isinstance(value, Tensor | np.ndarray):
        kind = "a tensor" if isinstance(value, Tensor) else "an array"
        return f"{kind} of {value.dtype} and shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def whole(least: int = 0, most: int = INT64) -> Check:
    """A whole number within limits."""

    def check(value: Any, where: str) -> Iterator[str]:
        if type(value) is not int or not least <= value <= most:
            yield f"{where} is {shown(value)}, expected a whole number from {least} to {most}"

    return check


def real(least: float = -math.inf, *, finite: bool = True) -> Check:
    """A number, not a NaN or an infinity unless those are allowed."""

    def check(value: Any, where: str) -> Iterator[str]:
        try:
            number = float(value) if type(value) in (int, float) else None
        except OverflowError:  # a whole number of hundreds of digits
            number = math.inf
        if number is None or (finite and not math.isfinite(number)):
            yield f"{where} is {shown(value)}, expected a {'finite ' * finite}number"
        elif number < least:
            yield f"{where} is {shown(value)}, expected at least {least:g}"

    return check


def optional(check: Check) -> Check:
    """None, or what the check takes."""
    return lambda value, where: iter(()) if value is None else check(value, where)


def one_of(*words: str) -> Check:
    """One of these words."""

    def check(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, str) or value not in words:
            yield f"{where} is {shown(value)}, expected {' or '.join(words)}"

    return check


def items(check: Check, *, count: int | None = None, most: int | None = None) -> Check:
    """A list, of so many items or at most so many."""

    def check_all(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, list):
            yield f"{where} is {shown(value)}, expected a list"
        elif (count is not None and len(value) != count) or (most and len(value) > most):
            yield f"{where} has {len(value)} items, expected {count if most is None else most}"
        else:
            for index, item in enumerate(value):
                yield from check(item, f"{where}/{index}")

    return check_all


def parts(
    known: Mapping[str, Check], *, missing: Collection[str] = (), others: Check | None = None
) -> Check:
    """A mapping with these keys, but for those that may be missing.

    Others are refused, or checked by `others`.
    """

    def check_all(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, Mapping):
            yield f"{where} is {shown(value)}, expected a mapping"
            return
        for key in known:
            if key in value:
                yield from known[key](value[key], f"{where}/{key}")
            elif key not in missing:
                yield f"{where}/{key} is missing"
        for key in value:
            if key not in known:
                unknown = iter([f"{where}/{key} is none that is known here"])
                yield from unknown if others is None else others(value[key], f"{where}/{key}")

    return check_all


def plain(value: Any, where: str) -> Iterator[str]:
    """No arrays, at any depth."""
    if isinstance(value, Tensor | np.ndarray):
        yield f"{where} is {shown(value)}, expected none there"
    elif isinstance(value, Mapping | list):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in pairs:
            yield from plain(item, f"{where}/{key}")


def anything(_value: Any, _where: str) -> Iterator[str]:
    """Any value."""
    return iter(())


def array(
    dtype: Any, shape: tuple[int | None, ...], *, least: float | None = None, most: float = math.inf
) -> Check:
    """A NumPy array of finite numbers; a None in the shape is any size."""
    dtypes = [np.dtype(each) for each in (dtype if isinstance(dtype, tuple) else (dtype,))]

    def check(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, np.ndarray):
            yield f"{where} is {shown(value)}, expected an array of {dtypes[0]}"
        elif value.dtype not in dtypes or not _fits(value.shape, shape):
            wanted = f"{' or '.join(map(str, dtypes))} and shape {_sizes(shape)}"
            yield f"{where} is {shown(value)}, expected {wanted}"
        elif value.dtype.kind == "f" and not np.isfinite(value).all():
            yield f"{where} holds a NaN or an infinity"
        elif least is not None and value.size and not least <= value.min() <= value.max() <= most:
            span = f"at least {least:g}" + ("" if most == math.inf else f" and at most {most:g}")
            yield f"{where} holds {value.min()} to {value.max()}, expected {span}"

    return check


def tensor(
    dtype: torch.dtype | None, shape: tuple[int | None, ...], *, least: float | None = None
) -> Check:
    """A tensor of finite numbers; a None in the shape is any size, as dtype any real one."""

    def check(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, Tensor):
            yield f"{where} is {shown(value)}, expected a tensor"
        elif not _fits(tuple(value.shape), shape) or value.dtype != (dtype or value.dtype):
            yield f"{where} is {shown(value)}, expected {dtype or ''} and shape {_sizes(shape)}"
        elif dtype is None and not value.is_floating_point():
            yield f"{where} is {shown(value)}, expected a real dtype"
        elif not all_finite(value):
            yield f"{where} holds a NaN or an infinity"
        elif least is not None and value.numel() and float(value.min()) < least:
            yield f"{where} holds {float(value.min()):g}, expected at least {least:g}"

    return check


def _fits(found: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(found) == len(wanted) and all(
        b in (a, None) for a, b in zip(found, wanted, strict=True)
    )


def _sizes(shape: tuple[int | None, ...]) -> str:
    text = ", ".join("any" if size is None else str(size) for size in shape)
    return f"({text},)" if len(shape) == 1 else f"({text})"
