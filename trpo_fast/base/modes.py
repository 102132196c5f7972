"""The modes of torch and of modules that a step must not inherit, and puts back afterwards."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
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
def made_on_cpu(dtype: torch.dtype | None = None) -> Iterator[None]:
    """Tensors made within are the CPU's, whatever the default device, and of ``dtype`` if given."""
    before = torch.get_default_dtype()
    # The mode slows every call of torch within: it is entered only where it changes something.
    on_cpu = torch.get_default_device().type == "cpu"
    with nullcontext() if on_cpu else torch.device("cpu"):
        try:
            torch.set_default_dtype(dtype or before)
            yield
        finally:
            torch.set_default_dtype(before)


@contextmanager
def twice_differentiable(module: nn.Module | None, noise: str = "eval") -> Iterator[None]:
    """Eval mode, uncompiled, with attention kernels that autograd can differentiate twice.

    With ``noise="fixed"`` only normalisation by statistics of the batch is in eval mode.
    """
    with ExitStack() as stack:
        stack.enter_context(_math_attention)
        if module is not None:
            if _is_compiled(module):
                stack.enter_context(_eager)
            kinds = nn.Module if noise == "eval" else nn.modules.batchnorm._NormBase
            stack.enter_context(_eval_mode(module, kinds))
        yield


@contextmanager
def _eval_mode(module: nn.Module, kinds: type[nn.Module]) -> Iterator[None]:
    """Each submodule's flag by itself: a mix of modes comes back as it was."""
    training = [c for c in module.modules() if c.training and isinstance(c, kinds)]
    try:
        for child in training:
            child.training = False
        yield
    finally:
        for child in training:
            child.training = True


class Draws:
    """Where a model's random numbers come from within one step.

    Args:
        noise: "eval" leaves the generator alone; with "fixed" every ``same`` call draws the same
            numbers, and the generators are then as they were.
        device: Whose generator the model uses, beside the CPU's.
    """

    def __init__(self, noise: str, device: torch.device) -> None:
        self._cuda = [device] if device.type == "cuda" else []
        self._seed: int | None = None
        if noise == "fixed":  # what the generator would draw next, without drawing it
            with torch.random.fork_rng([]):
                self._seed = int(torch.randint(1 << 62, (), device="cpu"))

    @contextmanager
    def same(self, index: int = 0) -> Iterator[None]:
        """Around a call of the model on the rows number ``index``."""
        if self._seed is None:
            yield
            return
        with seeded_generators(self._seed + index, self._cuda):
            yield


@contextmanager
def seeded_generators(seed: int, devices: Sequence[torch.device]) -> Iterator[None]:
    """The CPU's generator and those of CUDA ``devices`` at a seed; as they were afterwards."""
    with torch.random.fork_rng(list(devices)):
        # Not torch.manual_seed: for each kind of device not in use yet it formats a stack trace,
        # half a millisecond in all, and keeps it.
        torch.default_generator.manual_seed(seed)
        for device in devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _is_compiled(module: nn.Module) -> bool:
    if "torch._dynamo" not in sys.modules:
        return False
    from torch._dynamo import OptimizedModule

    return any(
        isinstance(child, OptimizedModule)
        or getattr(child, "_compiled_call_impl", None) is not None
        for child in module.modules()
    )
