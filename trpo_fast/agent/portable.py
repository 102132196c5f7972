"""Python values as JSON and back, exactly: what `env_kwargs` may hold and a file keeps.

JSON has neither tuples nor NumPy's numbers; a node with one key that begins with "$" stands for
what it names. Reading one makes plain values alone and never runs code.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np

_SEQUENCES: dict[type, str] = {tuple: "$tuple", set: "$set", frozenset: "$frozenset"}
WHAT = (
    "text, numbers, None, lists, tuples, sets, dicts, paths, bytes, and NumPy's numbers and arrays"
)


class NotPortable(ValueError):  # noqa: N818
    """A value that no file can hold; its text says where and of what type."""


def to_json(value: Any, where: str) -> Any:
    """The JSON that stands for a value.

    Raises NotPortable with the place, `where` and the keys that lead on from there. A subclass is
    refused like any other class: it would come back as something else.
    """
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind is list:
        return [to_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if kind in _SEQUENCES:
        items = [to_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return {_SEQUENCES[kind]: items if kind is tuple else sorted(items, key=json.dumps)}
    if kind is dict:
        return _dict(value, where)
    if kind is bytes:
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, PurePath) and kind is type(Path()):
        return {"$path": str(value)}
    if kind is complex:
        return {"$complex": [to_json(part, where) for part in (value.real, value.imag)]}
    if (kind is np.ndarray or isinstance(value, np.generic)) and _is_plain(value.dtype):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        shape = list(value.shape) if kind is np.ndarray else None
        return {"$numpy": [value.dtype.str, shape, data]}
    raise NotPortable(f"{where} is a {kind.__module__}.{kind.__qualname__}")


def _is_plain(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "biufcSUmM"


def _dict(value: dict[Any, Any], where: str) -> Any:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return {key: to_json(item, f"{where}[{key!r}]") for key, item in value.items()}
    pairs = [
        [to_json(key, f"{where} (a key)"), to_json(item, f"{where}[{key!r}]")]
        for key, item in value.items()
    ]
    return {"$dict": pairs}


def from_json(node: Any) -> Any:
    """The value that :func:`to_json` wrote. Raises ValueError for what it did not write."""
    if isinstance(node, list):
        return [from_json(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    tag = next(iter(node), "")
    if len(node) != 1 or not str(tag).startswith("$"):
        return {key: from_json(item) for key, item in node.items()}
    try:
        return _tagged(str(tag), node[tag])
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{tag} with {str(node[tag])[:60]} stands for no value: {error}") from None


def _tagged(tag: str, body: Any) -> Any:
    for kind, name in _SEQUENCES.items():
        if tag == name:
            return kind(from_json(item) for item in body)
    if tag == "$float" and body in ("nan", "inf", "-inf"):
        return float(body)
    if tag == "$dict":
        return {from_json(key): from_json(item) for key, item in body}
    if tag == "$bytes":
        return base64.b64decode(body, validate=True)
    if tag == "$path":
        return Path(body)
    if tag == "$complex":
        return complex(*(from_json(part) for part in body))
    if tag == "$numpy":
        return _numpy(*body)
    raise ValueError("it is unknown")


def _numpy(name: str, shape: list[int] | None, data: str) -> Any:
    dtype = np.dtype(str(name))
    if not _is_plain(dtype):
        raise ValueError(f"its type {name!r} is none of plain numbers or text")
    flat = np.frombuffer(base64.b64decode(data, validate=True), dtype)
    return flat.reshape(()).copy()[()] if shape is None else flat.reshape(shape).copy()


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal in type and to the bit, NaN and arrays among them."""
    try:
        first, second = (json.dumps(to_json(value, ""), sort_keys=True) for value in (a, b))
    except NotPortable:
        return bool(a is b or a == b)
    return first == second
