"""What torch.compile must leave alone, without importing it where nobody compiles.

torch decorates the bookkeeping of its optimizers such that the first call imports the compiler,
more than a second in every process that makes one.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=Optimizer)


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, called as it is when the caller is being compiled: a break in its graph."""
    kept_out = _disable_dynamo(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return (kept_out if torch.compiler.is_compiling() else function)(*args, **kwargs)

    return call


def _light(method: Callable[Concatenate[Optimizer, P], R]) -> Callable[Concatenate[S, P], R]:
    return uncompiled(inspect.unwrap(method))


class LightOptimizer(Optimizer):
    """An optimizer that imports torch's compiler only when it is being compiled."""

    add_param_group = _light(Optimizer.add_param_group)
    state_dict = _light(Optimizer.state_dict)
    load_state_dict = _light(Optimizer.load_state_dict)
    zero_grad = _light(Optimizer.zero_grad)
