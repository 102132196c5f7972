"""What environments may share with the program that makes them.

Other processes get copies. What a program changes in an object that its environments hold (a
curriculum's level, a list that they append to) reaches those in this process alone, so `auto`
leaves such environments here. Modules, their classes, numbers and names are taken to stay as they
are.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

_SCRIPT = "__main__"
_FIXED = (type(None), bool, int, float, complex, str, bytes, range, np.generic, np.dtype)
_CODE = (types.ModuleType, types.BuiltinFunctionType)


def shared_object(source: Any, made: gym.Env[Any, Any], kwargs: Mapping[str, Any]) -> str | None:
    """What environments may share with this program, in words; None where nothing is seen.

    Args:
        source: an id, its specification, or a function that makes them.
        made: one that it made.
        kwargs: what it was made with; containers among them are taken not to change.
    """
    for name, value in kwargs.items():
        found = _shared(value, set(), given=True)
        if found is not None:
            return f"{found} (env_kwargs, {name})"
    spec = made.unwrapped.spec
    entry: Any = None if spec is None else spec.entry_point
    if isinstance(entry, str):
        module, _, name = entry.partition(":")
        if module == _SCRIPT:
            return f"the class {name} of this script"
    maker = source if callable(source) else None
    # Behind a function or a wrapper's name may stand an id, and behind that a class of the script.
    parts = (_shared(part, set()) for part in (maker, entry, *_layers(made)))
    return next((what for what in parts if what is not None), None)


def _layers(made: gym.Env[Any, Any]) -> Iterator[type]:
    """The classes of an environment and of what is around it."""
    while isinstance(made, gym.Wrapper):
        yield type(made)
        made = made.env
    yield type(made)


def _shared(value: Any, seen: set[int], *, given: bool = False) -> str | None:
    """The first thing that could change in a value and in what it refers to."""
    if isinstance(value, (*_FIXED, *_CODE)) or id(value) in seen:
        return None
    seen.add(id(value))
    if isinstance(value, type) and value.__module__ == _SCRIPT:
        return f"the class {value.__qualname__} of this script"
    parts = _parts(value, given=given)
    if parts is None:
        return f"a {type(value).__name__}"
    found = (_shared(part, seen, given=given) for part in parts)
    return next((what for what in found if what is not None), None)


def _parts(value: Any, *, given: bool) -> Iterator[Any] | None:
    """What a value refers to; None where it could itself be changed."""
    if isinstance(value, types.FunctionType):
        return _reach(value)
    if isinstance(value, partial):
        return iter((value.func, *value.args, *value.keywords.values()))
    if isinstance(value, type):
        local = "<locals>" in value.__qualname__  # whose methods may hold what is around it
        return (f for f in vars(value).values() if local and isinstance(f, types.FunctionType))
    if isinstance(value, (tuple, frozenset)) or (given and isinstance(value, (list, set))):
        return iter(value)
    if given and isinstance(value, dict):
        return iter(value.values())
    if given and isinstance(value, np.ndarray):
        return iter(())
    return None


def _reach(function: types.FunctionType) -> Iterator[Any]:
    """What a function holds, and what one of a script reads of it."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    if function.__module__ == _SCRIPT:
        known = function.__globals__
        yield from (known[name] for name in _names(function.__code__) if name in known)


def _names(code: types.CodeType) -> Iterator[str]:
    """Names that code reads, with those of functions within it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names(inner)
