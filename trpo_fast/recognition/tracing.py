"""What a module's ``forward`` computes, as layers and a head: one real call, watched.

Every torch function that ``forward`` calls on a few rows is seen by a ``TorchFunctionMode``, and
each tensor gets a value: the observations, a chain of layers, a parameter, or the reason why it is
none of these. A layer's activation is what was applied to it, wherever that was written. Only the
functions in ``rules.RULES`` keep a value known; any other makes the fused path unavailable.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trpo_fast.recognition.rules import ACTIVATION_RULES, RULES
from trpo_fast.recognition.values import (
    Allowed,
    Call,
    Chain,
    Columns,
    Constant,
    Detached,
    Exp,
    Forbidden,
    Observations,
    Row,
    Slot,
    Transposed,
    Unknown,
    Value,
)

# Nothing of a tensor's values is in their answers.
_METADATA = frozenset(
    (
        *("shape", "size", "dim", "ndim", "dtype", "device", "layout", "requires_grad", "is_leaf"),
        *("numel", "nelement", "stride", "element_size", "itemsize", "nbytes"),
        *("is_floating_point", "is_complex", "is_signed", "is_contiguous", "is_inference"),
        *("is_cuda", "is_cpu", "is_meta", "is_sparse", "is_quantized", "is_nested", "get_device"),
        *("__len__", "__hash__"),
    )
)
# Answers whose very shape, or whose other access to the memory, tells of the values.
_READS = frozenset(
    ("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "data", "numpy")
)
_UNFOLLOWED = Unknown(
    "forward uses a tensor that cannot be followed: neither a parameter nor a buffer, or the "
    "result of a custom autograd function or of scripted code"
)
_RANDOM = frozenset(("normal", "bernoulli", "multinomial", "dropout", "uniform", "exponential"))


@dataclass
class _Record:
    tensor: Tensor  # kept, so that its id is not used again
    value: Value
    version: int
    grad_fn: Any


class Tracer(TorchFunctionMode):
    """Watches one call of ``module.forward``, which is to be differentiable if grad mode is on.

    Args:
        module: Names its parts in reasons.
        obs: The rows that ``forward`` gets.
        tensors: The slots: the module's parameters and buffers.
        mask: The rows of an action mask that ``forward`` gets, too; or None.

    Attributes:
        masked: Entries of a row's mask, or None.
        refusal: Why nothing that ``forward`` returns can be trusted, or None.
    """

    def __init__(
        self,
        module: nn.Module,
        obs: Tensor,
        tensors: Sequence[Tensor],
        mask: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.masked = None if mask is None else mask.shape[1]
        self.module, self._slots = module, tensors
        self._differentiable = torch.is_grad_enabled()
        self.refusal: str | None = None
        self._collects = False
        self._records: dict[int, _Record] = {}
        for index, tensor in enumerate(tensors):
            if id(tensor) not in self._records:
                self._record(tensor, Slot(index))
        self._record(obs, Observations())
        if mask is not None:
            self._record(mask, Allowed(0, mask.shape[1]))

    def __enter__(self) -> Self:
        """Watch; what is garbage waits, since its finalizers may look at tensors of their own."""
        self._collects = gc.isenabled()
        gc.disable()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        if self._collects:
            gc.enable()

    def value(self, tensor: Tensor) -> Value:
        """What is known of a tensor's origin; ``Unknown`` with the reason otherwise."""
        value = self._known(tensor) or _UNFOLLOWED
        return self._detached(value.of) if isinstance(value, Detached) else value

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` and note what its outputs hold."""
        kwargs = kwargs or {}
        name = _name(func)
        if name in _METADATA:
            if not all(id(t) in self._records for t in _tensors((args, kwargs))):
                self.refuse(_UNFOLLOWED.reason)
            return func(*args, **kwargs)
        tensors = list(_tensors((args, kwargs)))
        values = [self._known(t) for t in tensors]
        versions = [t._version for t in tensors]
        result = func(*args, **kwargs)
        outputs = list(_tensors(result))
        changed = [t for t, v in zip(tensors, versions, strict=True) if t._version != v]
        call = Call(name, args, kwargs, tensors, values, outputs)
        if name in _READS or not (outputs or changed):
            self._note_read(call)
        elif changed:
            self._note_change(call, changed)
        else:
            self._note(call, [o for o in outputs if all(o is not t for t in tensors)])
        if (
            self._differentiable
            and not torch.is_grad_enabled()
            and any(value is not None for value in values)
        ):
            for output in outputs:
                self._record(output, Unknown("forward computes a part of it under no_grad"))
        return result

    def _note(self, call: Call, fresh: list[Tensor]) -> None:
        if not fresh:
            return
        rule = RULES.get(call.name)
        found = rule(call) if rule is not None else None
        for output in fresh:
            value = None if found is None else found(output)
            self._record(output, value or self._unknown(call))

    def _note_change(self, call: Call, changed: list[Tensor]) -> None:
        """In place: known for an activation that overwrites its argument, else for nothing."""
        for tensor in changed:
            value = call.known(tensor)
            if isinstance(value, Slot | Observations):
                self.refuse(f"forward changes {self._thing(value)} in place ({call.name})")
            self._record(tensor, Unknown(f"forward changes a tensor in place ({call.name})"))
        rule = ACTIVATION_RULES.get(call.name.removesuffix("_"))
        if rule is not None and len(changed) == 1 and call.argument(0, "input") is changed[0]:
            found = rule(call)
            value = None if found is None else found(changed[0])
            self._record(changed[0], value or self._unknown(call))

    def _note_read(self, call: Call) -> None:
        if not call.values or _in_distribution():
            return
        if all(value is None for value in call.values):
            self.refuse(_UNFOLLOWED.reason)
            return
        known = {
            "register_hook": "forward registers a gradient hook on a tensor",
            "data": "forward uses a tensor's .data, past autograd",
        }
        self.refuse(
            known.get(call.name)
            or f"forward reads values of a tensor into Python ({_spoken(call.name)}), so it may "
            "branch on the data"
        )

    def refuse(self, reason: str) -> None:
        """Give the whole call up; the first reason counts."""
        self.refusal = self.refusal or reason

    def _record(self, tensor: Tensor, value: Value) -> None:
        self._records[id(tensor)] = _Record(tensor, value, tensor._version, tensor.grad_fn)

    def _known(self, tensor: Tensor) -> Value | None:
        record = self._records.get(id(tensor))
        if record is None:
            return None
        if tensor._version != record.version:
            return Unknown("forward changes a tensor in place that it uses elsewhere")
        if tensor.grad_fn is not record.grad_fn:
            return Unknown("forward calls a custom autograd function")
        return record.value

    def _unknown(self, call: Call) -> Unknown:
        """The reason of an input that is unknown already, or what this call does."""
        for value in call.values:
            if isinstance(value, Unknown):
                return value
            if isinstance(value, Detached):
                return self._detached(value.of)
        if None in call.values and any(value is not None for value in call.values):
            return _UNFOLLOWED
        module = _calling_module()
        name = next((n for n, m in self.module.named_modules() if m is module), "")
        kind = type(module)
        own = call.name in ACTIVATION_RULES or kind is nn.Linear
        if name and kind.__module__.startswith("torch.nn.") and not own:
            article = "an" if kind.__name__[0] in "AEIOU" else "a"
            return Unknown(f"layer {name!r} is {article} {kind.__name__}")
        where = "forward" if not name else f"forward of {name!r}"
        return Unknown(f"{where} {self._deed(call)}")

    def _detached(self, value: Value) -> Unknown:
        return Unknown(f"forward applies detach to {self._thing(value)}")

    def _deed(self, call: Call) -> str:
        spoken = _spoken(call.name)
        known = [value for value in call.values if value is not None]
        if "rand" in spoken or spoken in _RANDOM:
            return f"draws random numbers ({spoken})"
        if not known:
            return f"makes a tensor of its own ({spoken})"
        first = known[0]
        branches = [v for v in known if isinstance(v, Chain | Observations)]
        if spoken == "add" and len(branches) > 1:
            return "adds the outputs of two branches (a residual connection)"
        if spoken in ACTIVATION_RULES and isinstance(first, Chain) and not first.squeezed:
            if first.steps[-1].activation != "identity":
                return f"applies {spoken} after another activation"
            return f"applies {spoken} with arguments that the fused path does not know"
        if spoken in ("matmul", "mm") and isinstance(known[-1], Slot):
            return f"multiplies by {self._thing(known[-1])}, stored [in, out]; use nn.Linear"
        if spoken.startswith(("broadcast", "expand")):
            row = next((v for v in known if isinstance(v, Slot | Exp)), first)
            return f"broadcasts {self._thing(row)} over the action dimensions"
        return f"applies {spoken} to {self._thing(first)}"

    def _thing(self, value: Value) -> str:
        if isinstance(value, Exp):
            return f"exp of {self._thing(value.of)}"
        if isinstance(value, Slot | Row | Transposed):
            return self.slot_name(value.index)
        if isinstance(value, Observations):
            return "the observations"
        if isinstance(value, Columns):
            return "a part of the output of a layer"
        if isinstance(value, Allowed | Forbidden):
            return "the action mask"
        return "a constant" if isinstance(value, Constant) else "the output of a layer"

    def slot(self, index: int) -> Tensor:
        """The module's parameter or buffer of that number."""
        return self._slots[index]

    def slot_name(self, index: int) -> str:
        """What the user calls a slot's tensor."""
        tensor = self._slots[index]
        for name, parameter in self.module.named_parameters():
            if parameter is tensor:
                return f"parameter {name!r}"
        found = (name for name, buffer in self.module.named_buffers() if buffer is tensor)
        return f"buffer {next(found, '')!r}"


def _name(func: Any) -> str:
    name = str(getattr(func, "__name__", type(func).__name__))
    if name == "__get__":
        return str(getattr(func.__self__, "__name__", "property"))
    return name


def _spoken(name: str) -> str:
    plain = name.strip("_")
    return {"truediv": "div", "bool": "bool()", "float": "float()"}.get(plain, plain)


def _tensors(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, tuple | list):
        for part in item:
            yield from _tensors(part)
    elif isinstance(item, dict):
        for part in item.values():
            yield from _tensors(part)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") != __name__:
            yield frame
        frame = frame.f_back


def _in_distribution() -> bool:
    """Whether a torch distribution is checking its own arguments."""
    homes = ("torch.distributions", "trpo_fast.networks.distributions")
    for frame in _frames():
        if frame.f_globals.get("__name__", "").startswith(homes):
            return True
        if isinstance(frame.f_locals.get("self"), nn.Module):
            return False
    return False


def _calling_module() -> nn.Module | None:
    for frame in _frames():
        found = frame.f_locals.get("self")
        if isinstance(found, nn.Module):
            return found
    return None
