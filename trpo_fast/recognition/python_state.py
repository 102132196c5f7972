"""The Python state that a module's ``forward`` can read: attributes, class attributes, globals.

A step's function is one thing only while this stays as it was. Everything is compared by value and
nothing is held alive but immutable values, types and code, so that no module outlives its user.
Tensors are left out: the tracer refuses a ``forward`` that looks into any but the parameters.
"""

from __future__ import annotations

import builtins
import enum
import functools
import logging
import random
import re
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

MOST_ITEMS = 4096  # of one module tree: what is compared at each step stays cheap
MOST_BYTES = 1 << 16  # of one NumPy array

_INTERNAL_NAMES = list(nn.Module().__dict__)
_INTERNAL = frozenset(_INTERNAL_NAMES)
_FIXED_ROOTS = frozenset((*sys.stdlib_module_names, "torch", "numpy", "gymnasium", "trpo_fast"))
_ATOMS = frozenset(
    (
        *(type(None), bool, int, str, bytes, complex, type(...), range, slice),
        *(torch.dtype, torch.device, torch.Size, torch.layout, np.dtype),
    )
)
# By identity: state inside is none that forward would read, or none at all.
_OPAQUE: tuple[Any, ...] = (
    enum.Enum,
    *(types.BuiltinFunctionType, types.ModuleType, types.GetSetDescriptorType, re.Pattern),
    *(types.WrapperDescriptorType, types.MethodDescriptorType, types.MemberDescriptorType),
    *(torch.Generator, torch.optim.Optimizer, torch.UntypedStorage),
    *(gymnasium.Space, logging.Logger, np.ufunc),
)
_UNREAD = frozenset(
    (
        *("__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__qualname__"),
        *("__parameters__", "__abstractmethods__", "_abc_impl", "__orig_bases__", "__slots__"),
        *("__dataclass_fields__", "__dataclass_params__", "__match_args__"),
        *("__static_attributes__", "__firstlineno__", "__type_params__", "T_destination"),
    )
)


class UnreadableError(Exception):
    """State that cannot be compared; the text says which and why."""


def python_state(parts: Iterable[nn.Module]) -> list[Any] | str:
    """What ``forward`` can read of the modules' Python state, or why that cannot be told.

    Args:
        parts: The modules of a tree, in an order of their own.
    """
    reader = _Reader()
    try:
        for part in parts:
            reader.module(part)
    except UnreadableError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - an attribute may do anything when it is read
        return f"{reader.where} cannot be read ({type(error).__name__}: {error})"
    return reader.key


def changed_by_call(module: nn.Module, call: Callable[[], Any]) -> str:
    """Which attributes of a module a call changes, in words."""
    before = _states(module)
    call()
    after = _states(module)
    changed = sorted(name for name in after if before.get(name) != after[name])
    names = ", ".join(map(repr, changed[:3])) or "a class attribute or a global variable"
    return f"forward changes Python state that it may read: {names}"


def _states(module: nn.Module) -> dict[str, list[Any]]:
    found = {}
    for prefix, part in module.named_modules():
        for name, value in list(part.__dict__.items()):
            if name not in _INTERNAL:
                reader = _Reader()
                reader.value(value)
                found[f"{prefix}.{name}" if prefix else name] = reader.key
    return found


@contextmanager
def kept_generators(device: torch.device) -> Iterator[Callable[[], bool]]:
    """Torch's, Python's and NumPy's generators as they were; gives whether one of the latter drew.

    Args:
        device: Whose generator torch uses, beside the CPU's.
    """

    def now() -> str:
        return repr((random.getstate(), np.random.get_state(legacy=False)))  # noqa: NPY002

    old, numpy_old, before = random.getstate(), np.random.get_state(), now()  # noqa: NPY002
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield lambda: now() != before
        finally:
            random.setstate(old)
            np.random.set_state(numpy_old)  # noqa: NPY002


def global_modes() -> tuple[Any, ...]:
    """Settings of the whole process that change what torch functions do."""
    return (
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch.get_num_threads(),
        nn.Module.__call__,
    )


class _Reader:
    """Appends to ``key`` whatever is read; equal keys mean equal state."""

    def __init__(self) -> None:
        self.key: list[Any] = []
        self._seen: set[int] = set()
        self._kinds: set[int] = set()  # of modules
        self.where = "the module"

    def module(self, part: nn.Module) -> None:
        key = self.key
        kind = type(part)
        own = part.__dict__
        names = list(own)
        # As Module.__init__ leaves them: first, and in this order.
        usual = names[: len(_INTERNAL_NAMES)] == _INTERNAL_NAMES
        for name in names[len(_INTERNAL_NAMES) :] if usual else names:
            if name in _INTERNAL or name not in own:
                continue
            value = own[name]
            key.append(name)
            if type(value) in _ATOMS:
                key += (type(value), value)
            else:
                self.where = f"attribute {name!r} of {kind.__name__}"
                self.value(value)
        if id(kind) in self._kinds:
            key.append(kind)
        else:
            self._kinds.add(id(kind))
            self.type(kind)
        if len(key) > MOST_ITEMS:
            raise UnreadableError(
                f"{kind.__name__} and its attributes hold more than {MOST_ITEMS} Python values, "
                "too many to compare at each step; keep what forward does not need elsewhere"
            )

    def value(self, value: Any) -> None:
        key, kind = self.key, type(value)
        if kind in _ATOMS:
            key += (kind, value)
        elif kind is float:
            key += (kind, value.hex())
        elif isinstance(value, Tensor | Distribution):
            key.append(Tensor)
        elif id(value) in self._seen:
            key.append("again")
        elif len(key) > MOST_ITEMS:
            raise UnreadableError(f"{self.where} holds too many values to be compared at each step")
        else:
            self._seen.add(id(value))
            self._large(value, kind)

    def _large(self, value: Any, kind: type) -> None:
        read = _READERS.get(kind)
        if read is not None:
            read(self, value)
        elif isinstance(value, type):
            self.type(value)
        elif isinstance(value, np.generic):
            self.key += (kind, value.tobytes())
        elif isinstance(value, _OPAQUE):
            self.key += (kind, id(value))
        else:
            for base, other in _BASES:
                if isinstance(value, base):
                    other(self, value)
                    break
            self._instance(value, kind)

    def _instance(self, value: Any, kind: type) -> None:
        own = getattr(value, "__dict__", None)
        slots = [
            name for base in kind.__mro__ for name in _names_of(base.__dict__.get("__slots__", ()))
        ]
        if own is None and not slots and not isinstance(value, _CONTAINERS):
            if kind.__module__ not in ("builtins", "torch._C") or hasattr(kind, "__next__"):
                raise UnreadableError(
                    f"{self.where} holds a {kind.__module__}.{kind.__name__}, whose state Python "
                    "cannot compare; keep it outside the policy, or make it a buffer"
                )
            self.key += (kind, id(value))
            return
        self.key.append(kind)
        if own:
            self.mapping(own)
        for name in slots:
            self.value(getattr(value, name, None))
        self.type(kind)

    def mapping(self, value: Any) -> None:
        self.key += (dict, len(value))
        for name, item in list(value.items()):
            self.value(name)
            self.value(item)

    def items(self, value: Any) -> None:
        self.key += (type(value), len(value))
        for item in list(value):
            self.value(item)

    def array(self, value: np.ndarray[Any, Any]) -> None:
        if value.nbytes > MOST_BYTES or value.dtype.hasobject:
            raise UnreadableError(
                f"{self.where} holds a NumPy array of {value.size} entries, too many to be "
                "compared at each step; make it a buffer"
            )
        self.key += (np.ndarray, value.shape, value.dtype, value.tobytes())

    def number(self, value: complex | str | bytes) -> None:
        self.key.append(value)

    def memory(self, value: bytearray | memoryview) -> None:
        self.array(np.frombuffer(value, dtype=np.uint8))

    def random(self, value: random.Random) -> None:
        self.key += (type(value), value.getstate())

    def numpy_random(self, value: np.random.Generator) -> None:
        self.key += (type(value), repr(value.bit_generator.state))

    def old_numpy_random(self, value: np.random.RandomState) -> None:
        self.key += (type(value), repr(value.get_state(legacy=False)))

    def partial(self, value: functools.partial[Any]) -> None:
        for item in (value.func, value.args, value.keywords):
            self.value(item)

    def method(self, value: types.MethodType) -> None:
        self.value(value.__func__)
        self.value(value.__self__)

    def reference(self, value: weakref.ref[Any]) -> None:
        self.value(value())

    def wrapped(self, value: Any) -> None:
        self.value(value.__func__)

    def property(self, value: Any) -> None:
        self.value(getattr(value, "fget", None) or getattr(value, "func", None))

    def function(self, value: types.FunctionType) -> None:
        """Its code, and what that can read: defaults, closure, globals by name."""
        code = value.__code__
        self.key.append(code)
        if value.__defaults__:
            self.value(value.__defaults__)
        if value.__kwdefaults__:
            self.value(value.__kwdefaults__)
        for cell in value.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # not assigned yet
                content = None
            self.value(content)
        if _is_installed(value.__module__):
            return
        names, known = _global_names(code), value.__globals__
        for name in names:
            found = known.get(name, _MISSING)
            if type(found) is types.ModuleType:
                self._python_module(found, names)
            elif found is not _MISSING:
                self.value(found)

    def _python_module(self, module: types.ModuleType, names: tuple[str, ...]) -> None:
        """What code that names a Python module may find in it."""
        self.key.append(module.__name__)
        own = module.__dict__
        if _is_installed(module.__name__) or id(module) in self._seen:
            # That nobody put another function in a library's place.
            self.key += [id(own[name]) for name in names if name in own]
            return
        self._seen.add(id(module))
        for name in names:
            found = own.get(name, _MISSING)
            if found is not _MISSING:
                self.value(found)

    def type(self, kind: type) -> None:
        """A class, and its attributes and methods where they are the user's."""
        self.key.append(kind)
        for base in _users_own(kind.__mro__):
            if id(base) in self._seen:
                continue
            self._seen.add(id(base))
            for name, value in list(base.__dict__.items()):
                if name not in _UNREAD:
                    self.key.append(name)
                    self.value(value)


def _root(name: str | None) -> str:
    return (name or "").partition(".")[0]


@functools.lru_cache(maxsize=4096)
def _users_own(bases: tuple[type, ...]) -> tuple[type, ...]:
    """Those of a class's bases whose attributes may change: not of torch and its like."""
    return tuple(base for base in bases if _root(base.__module__) not in _FIXED_ROOTS)


@functools.lru_cache(maxsize=4096)
def _is_installed(name: str | None) -> bool:
    root = _root(name)
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    return root in _FIXED_ROOTS or "site-packages" in file or "dist-packages" in file


def _names_of(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """Names that the code, or code within it, may look up outside of itself."""
    known = _NAMES.get(id(code))
    if known is not None and known[0] is code:
        return known[1]
    found = {name: None for name in code.co_names if not hasattr(builtins, name)}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found.update(dict.fromkeys(_global_names(constant)))
    if len(_NAMES) >= MOST_ITEMS:
        _NAMES.clear()
    _NAMES[id(code)] = code, tuple(found)
    return tuple(found)


# By id, since the hash of code takes longer than all the rest.
_NAMES: dict[int, tuple[types.CodeType, tuple[str, ...]]] = {}
_MISSING: Any = object()
_CONTAINERS = (
    int,
    float,
    complex,
    str,
    bytes,
    dict,
    list,
    tuple,
    set,
    frozenset,
    deque,
    np.ndarray,
)
_Read = Callable[[_Reader, Any], None]
_READERS: dict[type, _Read] = {
    dict: _Reader.mapping,
    types.MappingProxyType: _Reader.mapping,
    **dict.fromkeys((list, tuple, set, frozenset, deque), _Reader.items),
    np.ndarray: _Reader.array,
    **dict.fromkeys((bytearray, memoryview), _Reader.memory),
    np.random.Generator: _Reader.numpy_random,
    np.random.RandomState: _Reader.old_numpy_random,
    types.FunctionType: _Reader.function,
    types.MethodType: _Reader.method,
    weakref.ref: _Reader.reference,
    functools.partial: _Reader.partial,
    **dict.fromkeys((property, functools.cached_property), _Reader.property),
    **dict.fromkeys((staticmethod, classmethod), _Reader.wrapped),
}
_BASES: tuple[tuple[Any, _Read], ...] = (
    ((int, float, complex, str, bytes), _Reader.number),
    (random.Random, _Reader.random),
    (dict, _Reader.mapping),
    ((list, tuple, set, frozenset, deque), _Reader.items),
    (np.ndarray, _Reader.array),
)
