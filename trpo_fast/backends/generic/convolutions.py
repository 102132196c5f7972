"""Convolutions whose backward pass is cheap to differentiate in what it is given.

``u -> J'u`` is linear, and a linearisation differentiates it in u alone. Torch's backward of a
convolution, differentiated, computes derivatives in input and weight as well, asked or not: most
of the work of a Fisher product, for nothing. Here input and weight are constants of a backward pass
that is recorded, so that only its transpose is left to compute: for ``y = conv(x, W) + b``,
``dy = conv(dx, W) + conv(x, dW) + db``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

Sizes = int | Sequence[int]


class Geometry(NamedTuple):
    """What ``torch.convolution`` takes after input, weight and bias."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


class Convolutions(TorchFunctionMode):
    """While entered, makes convolutions whose backward pass can be ``recorded``.

    What they compute, and its derivatives of every order, are torch's own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recording = False

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Around a ``grad(..., create_graph=True)`` to be differentiated in what it is given."""
        self.recording = True
        try:
            yield
        finally:
            self.recording = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call ``func``, or our own form of a convolution that is to be differentiated twice."""
        kwargs = kwargs or {}
        read = _CALLS.get(func)
        call = None if read is None else read(*args, **kwargs)
        if call is None or not _plain(*call[:3]):
            return func(*args, **kwargs)
        return _Convolution.apply(*call, self)  # type: ignore[no-untyped-call]


class _Convolution(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        mode: Convolutions,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.mode = geometry, mode
        return torch.convolution(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        if ctx.mode.recording:
            constants = (x.detach(), weight.detach(), ctx.geometry, wanted)
            found = _PullBack.apply(u, *constants)  # type: ignore[no-untyped-call]
        else:
            found = _pull_back(u, x, weight, ctx.geometry, wanted)
        return *found, None, None


class _PullBack(Function):
    """From the cotangent u of y to those of x, W and b: linear in u, the rest is constant."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: list[bool]
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.shape = geometry, u.shape
        ctx.set_materialize_grads(False)
        return _pull_back(u, x, weight, geometry, wanted)

    @staticmethod
    def backward(
        ctx: Any, dx: Tensor | None, dW: Tensor | None, db: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = None  # dy = conv(x, dW) + conv(dx, W) + db
        if dW is not None:
            dy, db = torch.convolution(x, dW, db, *ctx.geometry), None
        if dx is not None:
            through, db = torch.convolution(dx, weight, db, *ctx.geometry), None
            dy = through if dy is None else dy.add_(through)
        if db is not None:
            dy = db.reshape(-1, *[1] * (len(ctx.shape) - 2)).expand(ctx.shape)
        return dy, None, None, None, None


def _pull_back(
    u: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: list[bool]
) -> tuple[Tensor | None, ...]:
    found: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
        u, x, weight, [u.shape[1]], *geometry, wanted
    )
    return found


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether nothing but reverse mode asks for the call, in one dtype."""
    tensors = [x, weight] if bias is None else [x, weight, bias]
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return (
        torch.is_grad_enabled()
        and all(type(t) in (Tensor, nn.Parameter) for t in tensors)
        and any(t.requires_grad for t in tensors)
        and all(t.dtype == x.dtype and t.layout == torch.strided for t in tensors)
        and x.is_floating_point()
        and x.ndim == weight.ndim
        and not autocast
        and not torch._C._are_functorch_transforms_active()
        and all(forward_ad.unpack_dual(t).tangent is None for t in tensors)
    )


Call = tuple[Tensor, Tensor, Tensor | None, Geometry]


def _direct(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Call | None:
    """The arguments of ``torch.conv2d`` and its like; None where torch has to see to them."""
    n = weight.ndim - 2
    if padding == "valid":
        padding = 0
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(_each(dilation, n), weight.shape[2:], strict=True)]
        if padding != "same" or any(r % 2 for r in reach) or _each(stride, n) != [1] * n:
            return None
        padding = [r // 2 for r in reach]
    sizes = _each(stride, n), _each(padding, n), _each(dilation, n)
    return input, weight, bias, Geometry(*sizes, False, [0] * n, groups)


def _transposed(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Call:
    """The arguments of ``torch.conv_transpose2d`` and its like."""
    n = weight.ndim - 2
    sizes = _each(stride, n), _each(padding, n), _each(dilation, n)
    return input, weight, bias, Geometry(*sizes, True, _each(output_padding, n), groups)


def _each(value: Sizes, n: int) -> list[int]:
    """One for each of ``n`` dimensions, as torch repeats a single one."""
    values = [value] if isinstance(value, int) else list(value)
    return values * n if len(values) == 1 else values


_CALLS: dict[Callable[..., Any], Callable[..., Call | None]] = {
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _direct),
    **dict.fromkeys(
        (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _transposed
    ),
}
