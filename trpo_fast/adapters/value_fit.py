"""A critic's regression on the returns by the library's own Adam, natively where that serves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trpo_fast import _native
from trpo_fast.recognition.recognizer import layers_of

if TYPE_CHECKING:
    from trpo_fast.backends.cpu.value_fit import AdamFit


def native_fit(
    values: nn.Module,
    observations: Tensor,
    optimizer: torch.optim.Optimizer,
    movable: Iterable[Tensor],
    batch_rows: int,
) -> AdamFit | None:
    """The native fit of a value network, or None where torch has to do it.

    Args:
        values: ``[N, O]`` to ``[N]`` or ``[N, 1]``.
        observations: ``[N, O]``, on which the network is recognised.
        optimizer: The library's; it serves where it is torch's Adam without extras.
        movable: The parameters that the fit may step.
        batch_rows: Rows of a minibatch.
    """
    if _native.core is None or not observations.is_cpu or not _plain_adam(optimizer):
        return None
    from trpo_fast.backends.cpu.value_fit import AdamFit

    layers = layers_of(values, observations)
    if isinstance(layers, str):
        return None
    assert isinstance(optimizer, torch.optim.Adam)  # noqa: S101
    return AdamFit.of(layers, optimizer, movable, batch_rows)


def _plain_adam(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer is torch's Adam as the native fit has it."""
    if type(optimizer) is not torch.optim.Adam or len(optimizer.param_groups) != 1:
        return False
    group = optimizer.param_groups[0]
    plain = not (group["weight_decay"] or group["amsgrad"] or group["maximize"])
    return plain and all(isinstance(x, float) for x in (group["lr"], group["eps"], *group["betas"]))
