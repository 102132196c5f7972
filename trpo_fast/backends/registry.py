"""Which code serves: the registry of analytic backends.

A backend is one module with a class that implements ``trust_region.Problem``. Every analytic
backend's class is a ``preconditioner.Preconditioned`` too, and constructed alike:

    SomeProblem(network, parameters, batch, options)

    network     ``networks.Network``; its tensors are the module's parameters, any strides
    parameters  ``FlatParameters``: the flat order; a network tensor outside it is frozen. The
                constructor sets ``parameters.used``
    batch       ``Batch`` after ``fused_batch``: dtypes, shapes and ranges are checked, rows of
                weight 0 are gone; ``actions`` is None where only products are needed
    options     ``update.options.Options``

and it comes with ``refusal(network, batch, options) -> str | None``: why it cannot serve, in words
that end up in front of the user. Both are entered in ``ANALYTIC``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from trpo_fast import _native
from trpo_fast.backends.cuda import problem as cuda
from trpo_fast.backends.cuda.problem import CudaProblem
from trpo_fast.backends.reference.problem import ReferenceProblem
from trpo_fast.base.errors import say_once
from trpo_fast.networks.network import Network
from trpo_fast.preconditioning.preconditioner import Preconditioned
from trpo_fast.update.batch import Batch
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters

Refusal = Callable[[Network, Batch, Options], str | None]


class Backend(NamedTuple):
    """An analytic backend: its problem class, and why it refuses a batch, or None.

    "auto" considers it only for parameters on ``device``; None is any.
    """

    problem: Callable[[Network, FlatParameters, Batch, Options], Preconditioned]
    refusal: Refusal
    device: str | None = None


def _analytic() -> dict[str, Backend]:
    """Fastest first: "auto" takes the first that does not refuse."""
    backends = {
        "cuda": Backend(CudaProblem, cuda.refusal, "cuda"),
        "reference": Backend(ReferenceProblem, lambda *_: None),
    }
    if _native.core is not None:
        from trpo_fast.backends.cpu.problem import CpuProblem, refusal

        backends = {"cpu": Backend(CpuProblem, refusal, "cpu"), **backends}
    return backends


ANALYTIC = _analytic()


def fused_problem(
    net: Network, parameters: FlatParameters, batch: Batch, options: Options
) -> Preconditioned:
    """The problem on the backend that the options name; "auto" takes the fastest that serves.

    Raises:
        ValueError: the named backend cannot serve; the text says why.
    """
    return ANALYTIC[serving(net, batch, options)].problem(net, parameters, batch, options)


def serving(net: Network, batch: Batch, options: Options) -> str:
    """The name of that backend.

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
            return name
        if named:
            raise ValueError(f"backend={name!r} cannot serve: {refusal}. Use backend='auto'.")
        say_once(
            f"the policy update leaves backend {name!r}: {refusal}. The step is as exact in torch, "
            "and takes longer"
        )
    raise ValueError("no backend serves this batch")
