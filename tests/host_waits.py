"""Counts what makes the host wait for a device, by watching torch's calls on the CPU."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operators whose result, or its size, is a number on the host; and copies between devices.
WAITING = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "equal",
    "unique",
    "_unique2",
    "repeat_interleave",
}
# Methods that hand memory to Python or NumPy without an operator.
LEAVING = ("numpy", "tolist", "item", "cpu", "__array__", "__dlpack__", "__bool__", "__float__")


class HostWaits:
    """Context that collects the names of waiting calls made within.

    Attributes:
        seen: The names, in order.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._modes = (_Functions(self.seen), _Operators(self.seen))

    def __enter__(self) -> Self:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)


class _Functions(TorchFunctionMode):
    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in LEAVING:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        by_mask = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype is torch.bool for i in args[1]
        )
        moved = name in ("_to_copy", "copy_") and "cpu" not in str(kwargs.get("device", "cpu"))
        if name in WAITING or by_mask or moved:
            self.seen.append(name)
        return func(*args, **kwargs)
