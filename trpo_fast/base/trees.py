"""Nestings of dicts and tuples: their leaves in order, and the names that messages give them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Path = tuple[Any, ...]


def is_nested(value: Any) -> bool:
    """Whether it is a nesting, not a leaf."""
    return isinstance(value, Mapping | tuple | list)


def leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The leaves in order, each with the keys that lead to it."""
    if isinstance(tree, Mapping):
        for key, item in tree.items():
            yield from leaves(item, (*path, key))
    elif isinstance(tree, tuple | list):
        for index, item in enumerate(tree):
            yield from leaves(item, (*path, index))
    else:
        yield path, tree


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same nesting, of dicts and tuples, with ``function`` of each leaf."""
    if isinstance(tree, Mapping):
        return {key: tree_map(function, item) for key, item in tree.items()}
    if isinstance(tree, tuple | list):
        return tuple(tree_map(function, item) for item in tree)
    return function(tree)


def refilled(tree: Any, values: Iterator[Any]) -> Any:
    """The same nesting with other leaves, taken in order."""
    return tree_map(lambda _: next(values), tree)


def aligned(
    name: str, tree: Any, like: Any, *, leaf: Callable[[Any], bool] | None = None
) -> list[Any]:
    """The leaves of ``tree``, which must be nested as ``like``, in the order of ``like``.

    Args:
        name: What messages call it: "action" makes "action['grip'][1]".
        tree: Dicts by key, in any order; tuples or lists by place.
        like: The nesting expected.
        leaf: What ends a branch of ``tree`` early, its value standing for all below; None: nothing.

    Raises:
        ValueError: a key or a place is missing, or there are others.
    """
    if leaf is not None and leaf(tree):
        return [tree for _ in leaves(like)]
    if isinstance(like, Mapping):
        if not isinstance(tree, Mapping) or set(tree) != set(like):
            given = f"keys {list(tree)}" if isinstance(tree, Mapping) else f"a {_kind(tree)}"
            raise ValueError(f"{name} is expected to be a dict of {list(like)}, got {given}")
        pairs = [(key, tree[key], like[key]) for key in like]
    elif isinstance(like, tuple | list):
        if not isinstance(tree, tuple | list) or len(tree) != len(like):
            given = f"{len(tree)} parts" if isinstance(tree, tuple | list) else f"a {_kind(tree)}"
            raise ValueError(f"{name} is expected to be a tuple of {len(like)} parts, got {given}")
        pairs = [(index, tree[index], part) for index, part in enumerate(like)]
    else:
        return [tree]
    found = (aligned(f"{name}[{key!r}]", item, part, leaf=leaf) for key, item, part in pairs)
    return [item for items in found for item in items]


def named(name: str, path: Path) -> str:
    """What messages call a leaf: action['grip'][1]."""
    return name + "".join(f"[{key!r}]" for key in path)


def _kind(value: Any) -> str:
    return type(value).__name__


def tree_rows(tree: Any, rows: slice | Tensor) -> Any:
    """Some rows of a nesting of tensors; None stays None."""
    return tree_map(lambda leaf: None if leaf is None else leaf[rows], tree)


def tree_leaves(tree: Any) -> list[Tensor]:
    """The tensors of a nesting, in its order."""
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    if isinstance(tree, tuple):
        return [leaf for item in tree for leaf in tree_leaves(item)]
    return [tree]


def first_leaf(tree: Any) -> Tensor:
    """The first tensor of a nesting."""
    while not isinstance(tree, Tensor):
        tree = next(iter(tree.values())) if isinstance(tree, dict) else tree[0]
    return tree


def finite_in_rows(tree: Any) -> Tensor:
    """Whether all that a row ``[N, ...]`` of a nesting holds is finite, ``[N]``."""
    rows = first_leaf(tree)
    finite = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    for leaf in tree_leaves(tree):
        if leaf.is_floating_point():
            finite &= torch.isfinite(leaf).flatten(1).all(1)
    return finite
