"""The modes of torch and of modules that a step must not inherit, and puts back afterwards."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# torch.compiler's stance belongs to the process, so only one step at a time may change it.
_stance_lock = threading.RLock()


@contextmanager
def own_precision(device: torch.device) -> Iterator[None]:
    """Outside inference mode and autocast, so that the parameters' own dtype decides."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


@contextmanager
def twice_differentiable(module: nn.Module | None) -> Iterator[None]:
    """Eval mode, uncompiled, with attention kernels that autograd can differentiate twice."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if module is not None:
            if _is_compiled(module):
                stack.enter_context(_stance_lock)
                stack.enter_context(torch.compiler.set_stance("force_eager"))
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
