"""What a closure must not do: return what was made before the step, or call ``backward``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor
from torch.distributions import Distribution

from trpo_fast.base.trees import leaves
from trpo_fast.update.trust_region import ANEW


@contextmanager
def backward_named() -> Iterator[None]:
    """Errors that a ``backward()`` inside a closure leads to, in words."""
    try:
        yield
    except RuntimeError as error:
        if "backward through the graph a second time" in str(error):
            raise RuntimeError(
                "the graph of what the closure (or forward) returned is used up: either it calls "
                "loss.backward(), which step does itself and which is to be taken out, or it "
                f"returns what was made before the step. {ANEW}"
            ) from error
        if "does not require grad" in str(error):
            raise RuntimeError(
                "a closure calls no backward(): step differentiates the loss that it returns, and "
                "tries candidates under no_grad; take loss.backward() out of it"
            ) from error
        raise


class Made(NamedTuple):
    """A tensor that the parameters went into; detached, so that it keeps no graph alive."""

    what: str
    tensor: Tensor
    version: int


def made_by(loss: Tensor, distribution: Distribution) -> dict[int, Made]:
    """What one call of a model gave and parameters went into, by address."""
    tensors = [("loss", loss), *(("distribution", t) for t in _tensors(distribution))]
    return {
        t.data_ptr(): Made(what, t.detach(), t._version)
        for what, t in tensors
        if t.requires_grad and t.numel()
    }


def refuse_stale(first: dict[int, Made], now: dict[int, Made]) -> None:
    """Raise where a candidate's call gave a tensor of the first call again.

    A parameter itself, as a Normal's scale, has another version by then.

    Raises:
        ValueError: the loss or the distribution does not follow the parameters.
    """
    for address, made in now.items():
        before = first.get(address)
        if before is not None and before.version == made.version:
            raise ValueError(
                f"the {made.what} was made before the parameters moved, and is the same at each "
                f"call: nothing of the step can be measured by it. {ANEW}"
            )


def _tensors(distribution: Distribution) -> Iterator[Tensor]:
    for item in vars(distribution).values():
        for _, part in leaves(item):
            if isinstance(part, Distribution):
                yield from _tensors(part)
            elif isinstance(part, Tensor):
                yield part
