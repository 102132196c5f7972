"""Observations as nestings of dicts and tuples of tensors, a row of each for each sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def tree_map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The nesting with ``function`` of each tensor in its place."""
    if isinstance(tree, dict):
        return {key: tree_map(function, item) for key, item in tree.items()}
    if isinstance(tree, tuple):
        return tuple(tree_map(function, item) for item in tree)
    return function(tree)


def tree_rows(tree: Any, rows: slice | Tensor) -> Any:
    """Some rows of a nesting of tensors."""
    return tree_map(lambda leaf: leaf[rows], tree)


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
