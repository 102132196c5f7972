"""Which code serves: the registry of backends, and the forward pass they share.

A backend is one module with a class that implements ``trust_region.Problem``. Every analytic
backend's class is a ``preconditioner.Preconditioned`` too, and constructed alike:

    SomeProblem(network, parameters, batch, options)

    network     ``network.Network``; its tensors are the module's parameters, any strides
    parameters  ``flat.FlatParameters``: the flat order; a network tensor outside it is frozen.
                The constructor sets ``parameters.used``
    batch       ``batch.Batch`` after ``fused_batch``: dtypes, shapes and ranges are checked,
                rows of weight 0 are gone; ``actions`` is None where only products are needed
    options     ``options.Options``

and it comes with ``refusal(network, batch, options) -> str | None``: why it cannot serve, in words
that end up in front of the user. Both are entered in ``ANALYTIC``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trpo_fast import _native, network
from trpo_fast.backends import cuda
from trpo_fast.backends.cuda import CudaProblem
from trpo_fast.backends.preconditioner import Preconditioned
from trpo_fast.backends.reference import ReferenceProblem
from trpo_fast.batch import Batch
from trpo_fast.errors import say_once
from trpo_fast.flat import FlatParameters
from trpo_fast.options import Options

Refusal = Callable[[network.Network, Batch, Options], str | None]


class Backend(NamedTuple):
    """An analytic backend: its problem class, and why it refuses a batch, or None.

    "auto" considers it only for parameters on ``device``; None is any.
    """

    problem: Callable[[network.Network, FlatParameters, Batch, Options], Preconditioned]
    refusal: Refusal
    device: str | None = None


def _analytic() -> dict[str, Backend]:
    """Fastest first: "auto" takes the first that does not refuse."""
    backends = {
        "cuda": Backend(CudaProblem, cuda.refusal, "cuda"),
        "reference": Backend(ReferenceProblem, lambda *_: None),
    }
    if _native.core is not None:
        from trpo_fast.backends.cpu import CpuProblem, refusal

        backends = {"cpu": Backend(CpuProblem, refusal, "cpu"), **backends}
    return backends


ANALYTIC = _analytic()


def fused_problem(
    net: network.Network, parameters: FlatParameters, batch: Batch, options: Options
) -> Preconditioned:
    """The problem on the backend that the options name; "auto" takes the fastest that serves.

    Raises:
        ValueError: the named backend cannot serve; the text says why.
    """
    named = options.backend != "auto"
    kind = net.layers[0].weight.device.type
    suited = [name for name, backend in ANALYTIC.items() if backend.device in (None, kind)]
    names = [options.backend] if named else suited
    for name in names:
        if name not in ANALYTIC:
            why = _native.load_error if name == "cpu" and _native.core is None else None
            why = why or "it is not part of this build"
            raise ValueError(f"backend={name!r} cannot serve: {why} Use backend='auto'.")
        backend = ANALYTIC[name]
        refusal = backend.refusal(net, batch, options)
        if refusal is None:
            return backend.problem(net, parameters, batch, options)
        if named:
            raise ValueError(f"backend={name!r} cannot serve: {refusal}. Use backend='auto'.")
        say_once(f"the policy update leaves backend {name!r}: {refusal}", stacklevel=6)
    raise ValueError("no backend serves this batch")


def forward_function(layers: Sequence[network.Layer]) -> Callable[[Tensor], Tensor]:
    """``x`` ``[N, in]`` -> outputs ``[N, out]``, outside autograd, at the parameters of now.

    For many calls at fixed parameters, a rollout's: native where the module is there and the
    weights are float32 or float64 on the CPU, the same in pure torch otherwise.
    """
    weight = layers[0].weight
    native = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
    if _native.core is not None and native:
        from trpo_fast.backends import cpu

        return cpu.PackedForward(layers)
    if weight.is_cuda and layers[-1].activation == "identity":
        from trpo_fast.backends import cuda_rollout

        if cuda_rollout.serves_forward(layers):
            return cuda_rollout.DeviceForward(layers)
    return torch.no_grad()(lambda x: network.forward(layers, x))


def mlp_forward(layers: Sequence[network.Layer], x: Tensor) -> Tensor:
    """The layers' output ``[N, out]`` for ``x`` ``[N, in]``, once; see ``forward_function``."""
    return forward_function(layers)(x)
