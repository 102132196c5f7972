"""The critic's minibatch Adam in one native call a pass (torch's own is in ``critic.py``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trpo_fast import _core
from trpo_fast.backends.cpu.arguments import held_layers, layer_args, tensor_arg
from trpo_fast.backends.cpu.workspace import Workspace
from trpo_fast.networks.network import Layer

# Minibatches of one native call, and about as many multiplications, between which Python looks for
# Ctrl-C.
CALL_BATCHES, CALL_PRODUCTS = 256, 1 << 32


def refusal(layers: Sequence[Layer]) -> str | None:
    """Why ``AdamFit`` cannot serve these layers, or None."""
    weight = layers[0].weight
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.float64):
        return f"the value function is {weight.dtype} on {weight.device}"
    if layers[-1].activation != "identity":
        return "the value function's last layer has an activation"
    return None


class AdamFit:
    """Adam on the mean-squared error of a value network, its parameters packed once.

    Parameters and moments are read here and written by ``write_back`` alone: until then, whatever
    happens, they are as they were.

    Args:
        layers: of the network; tensors that ``refusal`` accepts.
        moments: gives a parameter's ``(exp_avg, exp_avg_sq)``, contiguous, of its shape and dtype.
        batch_rows: rows of a minibatch.
        steps: Adam's steps so far.
        group: torch.optim.Adam's ``lr``, ``betas`` and ``eps``.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        moments: Callable[[Tensor], tuple[Tensor, Tensor]],
        batch_rows: int,
        steps: int,
        group: dict[str, object],
    ) -> None:
        self.steps = steps
        self._batch_rows = batch_rows
        products = 3 * batch_rows * sum(layer.weight.numel() for layer in layers)
        self._call_batches = min(CALL_BATCHES, max(1, CALL_PRODUCTS // products))
        self._options = _options(group)
        self._dtype = layers[0].weight.dtype
        # The native side holds addresses: these keep what they point at alive.
        read = (layers, _moment(layers, moments, 0), _moment(layers, moments, 1))
        self._kept = [held_layers(each) for each in read]
        parameters, exp_avg, exp_avg_sq = (layer_args(each, self._dtype) for each in self._kept)
        native = _core.ValueFitF32 if self._dtype is torch.float32 else _core.ValueFitF64
        width, threads = layers[0].weight.shape[1], torch.get_num_threads()
        self._native = native(parameters, exp_avg, exp_avg_sq, width, batch_rows, threads)
        self._memory = Workspace(self._native.workspace_bytes())
        self._native.bind(self._memory.address)

    def epoch(self, observations: Tensor, returns: Tensor, order: Tensor) -> tuple[float, int]:
        """One step a minibatch of the rows in ``order`` [N], int64.

        Args:
            observations: [N, O] in the parameters' dtype.
            returns: [N] in the parameters' dtype, contiguous.
            order: which rows, in which order.

        Returns:
            The summed squared error of the rows stepped on, and the number of those refused
            because their minibatch's loss or gradient was not finite.
        """
        total, refused = 0.0, 0
        for part in order.split(self._call_batches * self._batch_rows):
            squared_error, rows, self.steps = self._native.run(
                tensor_arg(observations, self._dtype),
                tensor_arg(returns, self._dtype),
                tensor_arg(part, torch.int64),
                *self._options,
                self.steps,
            )
            total += squared_error
            refused += rows
        return total, refused

    def write_back(self) -> None:
        """Write parameters and moments to their tensors."""
        self._native.write_back()


def _options(group: dict[str, object]) -> tuple[float, float, float, float]:
    lr, betas, eps = group["lr"], group["betas"], group["eps"]
    assert isinstance(lr, float | int) and isinstance(betas, tuple)  # noqa: S101, PT018
    assert isinstance(eps, float)  # noqa: S101
    return float(lr), float(betas[0]), float(betas[1]), eps


def _moment(
    layers: Sequence[Layer], moments: Callable[[Tensor], tuple[Tensor, Tensor]], which: int
) -> list[Layer]:
    """The layers with one of the moments in place of each parameter."""
    return [
        layer._replace(
            weight=moments(layer.weight)[which],
            bias=None if layer.bias is None else moments(layer.bias)[which],
        )
        for layer in layers
    ]
