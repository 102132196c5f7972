"""The modes of torch and of modules that a step must not inherit, and puts back afterwards."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class _ProcessWide:
    """A setting of the whole process that several threads' steps need at once.

    The first step to need it sets it, the last one puts it back: each by itself would put back
    what another had set.
    """

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._users = 0
        self._context: AbstractContextManager[Any] = nullcontext()

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._context = self._make()
                self._context.__enter__()
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._context.__exit__(None, None, None)


_math_attention = _ProcessWide(lambda: sdpa_kernel(SDPBackend.MATH))
_eager = _ProcessWide(lambda: torch.compiler.set_stance("force_eager"))


def own_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Outside inference mode and autocast, so that the parameters' own dtype decides."""
    inference, autocast = torch.is_inference_mode_enabled(), torch.is_autocast_enabled(device.type)
    if not (inference or autocast):
        return nullcontext()
    stack = ExitStack()
    if inference:
        stack.enter_context(torch.inference_mode(False))
    if autocast:
        stack.enter_context(torch.autocast(device.type, enabled=False))
    return stack


@contextmanager
def twice_differentiable(module: nn.Module | None) -> Iterator[None]:
    """Eval mode, uncompiled, with attention kernels that autograd can differentiate twice."""
    with ExitStack() as stack:
        stack.enter_context(_math_attention)
        if module is not None:
            if _is_compiled(module):
                stack.enter_context(_eager)
            stack.enter_context(_eval_mode(module))
        yield


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Each submodule's flag by itself: a mix of modes comes back as it was."""
    training = [child for child in module.modules() if child.training]
    try:
        for child in training:
            child.training = False
        yield
    finally:
        for child in training:
            child.training = True


def _is_compiled(module: nn.Module) -> bool:
    if "torch._dynamo" not in sys.modules:
        return False
    from torch._dynamo import OptimizedModule

    return any(
        isinstance(child, OptimizedModule)
        or getattr(child, "_compiled_call_impl", None) is not None
        for child in module.modules()
    )
