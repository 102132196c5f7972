"""What the closure form of ``step`` gets from its closure, checked at each call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from trpo_fast.backends.generic.problem import ModelCall

ClosureResult = tuple[Tensor, Distribution] | tuple[Tensor, Distribution, Tensor | None]
CLOSURE_ADVICE = (
    "the closure must return (loss, distribution) or (loss, distribution, weights): without the "
    "policy's distribution there is no trust region"
)


def read_closure(found: Any, sign: float, *, shared: bool = False) -> ModelCall:
    """What a closure returned, checked; its loss times ``sign`` is to fall.

    With ``shared`` the weights may all be 0: other ranks have rows that count.

    Raises:
        TypeError: it is not (loss, distribution) or (loss, distribution, weights).
        ValueError: the loss is no scalar or has no graph; the weights are not finite, negative, or
            all 0.
    """
    if not (isinstance(found, tuple | list) and len(found) in (2, 3)):
        raise TypeError(f"{CLOSURE_ADVICE}; got {type(found).__name__}")
    loss, distribution, weights = (*found, None)[:3]
    if not isinstance(loss, Tensor) or not isinstance(distribution, Distribution):
        kinds = ", ".join(type(item).__name__ for item in found)
        raise TypeError(f"{CLOSURE_ADVICE}; got ({kinds})")
    if loss.numel() != 1:
        raise ValueError(f"the closure's loss has shape {tuple(loss.shape)}, expected a scalar")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise ValueError(
            "the closure's loss has no graph to the parameters; compute it without no_grad, "
            "detach or inference_mode"
        )
    if weights is not None:
        if not isinstance(weights, Tensor) or weights.numel() == 0:
            raise TypeError(
                "the closure's weights must be a tensor like the distribution's batch_shape, got "
                f"{'an empty one' if isinstance(weights, Tensor) else type(weights).__name__}"
            )
        low, high = (float(bound) for bound in weights.detach().aminmax())
        if not (0 <= low <= high < float("inf") and (high > 0 or shared)):
            raise ValueError(
                f"the closure's weights lie in [{low}, {high}]; they must be finite, >= 0 and "
                "not all 0"
            )
        weights = weights.detach()
    loss = loss.reshape(())  # a view: a loss made before the step is known by its memory
    return ModelCall(loss if sign > 0 else -loss, distribution, weights)
