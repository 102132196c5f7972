"""One step of an optimizer down a loss, refused where something is not finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def step_if_finite(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], loss: Tensor
) -> Tensor:
    """Differentiate ``loss`` and step, unless it or a gradient is not finite.

    An optimizer with ``fused=True`` reads the verdict where the gradients are, as it does for
    ``torch.amp.GradScaler``: the host waits for nothing. Any other one is told by the host.

    Args:
        optimizer: Of ``parameters``, all on one device; others' gradients are not touched.
        parameters: Those that may move; one that the loss does not depend on, or that requires no
            gradient, stays as it is.
        loss: 0-d.

    Returns:
        Whether the step was taken, a 0-d bool on the loss's device.
    """
    moving = [parameter for parameter in parameters if parameter.requires_grad]
    found: list[Tensor | None] = list(torch.autograd.grad(loss, moving, allow_unused=True))
    for parameter, gradient in zip(moving, found, strict=True):
        parameter.grad = gradient
    # One number that is finite only if the loss and every gradient are.
    norms = torch._foreach_norm([gradient for gradient in found if gradient is not None])
    finite = torch.isfinite(torch.stack(norms).sum() + loss.detach())
    if all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf  # type: ignore[attr-defined]
    elif bool(finite):
        optimizer.step()
    return finite
