"""The critic's minibatch Adam in one native call a pass (torch's own is in ``critic.py``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from trpo_fast._native import kernels
from trpo_fast.backends.cpu.arguments import held_layers, layer_args, tensor_arg
from trpo_fast.backends.cpu.workspace import Workspace
from trpo_fast.networks.network import Layer

# Minibatches of one native call, between which Python looks for Ctrl-C.
CALL_BATCHES = 256


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

    Parameters, moments and step counts are read here and written by ``write_back`` alone: until
    then, whatever happens, they are as they were.

    Args:
        layers: of the network; tensors that ``refusal`` accepts, all as many steps old.
        adam: torch.optim.Adam of one group, with neither weight decay nor amsgrad nor maximize;
            its state is that of the fit, and is begun where there is none.
        batch_rows: rows of a minibatch.

    Attributes:
        dtype: the parameters', in which ``epoch`` takes its rows.
    """

    def __init__(self, layers: Sequence[Layer], adam: torch.optim.Adam, batch_rows: int) -> None:
        self._adam, self._own = adam, _parameters(layers)
        self._steps = _steps(adam, self._own[0])
        self._batch_rows = batch_rows
        self._options = _options(adam.param_groups[0])
        self.dtype = layers[0].weight.dtype
        # The native side holds addresses: these keep what they point at alive.
        read = (layers, _moment(layers, adam, 0), _moment(layers, adam, 1))
        self._kept = [held_layers(each) for each in read]
        parameters, exp_avg, exp_avg_sq = (layer_args(each, self.dtype) for each in self._kept)
        native = kernels.ValueFitF32 if self.dtype is torch.float32 else kernels.ValueFitF64
        width, threads = layers[0].weight.shape[1], torch.get_num_threads()
        self._native = native(parameters, exp_avg, exp_avg_sq, width, batch_rows, threads)
        self._memory = Workspace(self._native.workspace_bytes())
        self._native.bind(self._memory.address)

    @classmethod
    def of(
        cls,
        layers: Sequence[Layer],
        adam: torch.optim.Adam,
        movable: Iterable[Tensor],
        batch_rows: int,
    ) -> AdamFit | None:
        """The fit of these layers, or None where torch has to do it.

        Args:
            layers: of a value network.
            adam: As for the class.
            movable: the parameters that the fit may step; without all of the layers' it is None.
            batch_rows: As for the class.
        """
        own, allowed = _parameters(layers), {id(parameter) for parameter in movable}
        if refusal(layers) is not None or any(id(parameter) not in allowed for parameter in own):
            return None
        if len({_steps(adam, parameter) for parameter in own}) != 1:
            return None
        return cls(layers, adam, batch_rows)

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
        for part in order.split(CALL_BATCHES * self._batch_rows):
            squared_error, rows, self._steps = self._native.run(
                tensor_arg(observations, self.dtype),
                tensor_arg(returns, self.dtype),
                tensor_arg(part, torch.int64),
                *self._options,
                self._steps,
            )
            total += squared_error
            refused += rows
        return total, refused

    def write_back(self) -> None:
        """Write parameters, moments and step counts to their tensors."""
        self._native.write_back()
        for parameter in self._own:
            self._adam.state[parameter]["step"].fill_(self._steps)


def _parameters(layers: Sequence[Layer]) -> list[Tensor]:
    return [t for layer in layers for t in (layer.weight, layer.bias) if t is not None]


def _steps(adam: torch.optim.Adam, parameter: Tensor) -> int:
    return int(adam.state[parameter].get("step", 0))


def _options(group: dict[str, object]) -> tuple[float, float, float, float]:
    lr, betas, eps = group["lr"], group["betas"], group["eps"]
    assert isinstance(lr, float | int) and isinstance(betas, tuple)  # noqa: S101, PT018
    assert isinstance(eps, float)  # noqa: S101
    return float(lr), float(betas[0]), float(betas[1]), eps


def _moment(layers: Sequence[Layer], adam: torch.optim.Adam, which: int) -> list[Layer]:
    """The layers with one of the moments in place of each parameter."""
    return [
        layer._replace(
            weight=_moments(adam, layer.weight)[which],
            bias=None if layer.bias is None else _moments(adam, layer.bias)[which],
        )
        for layer in layers
    ]


def _moments(adam: torch.optim.Adam, parameter: Tensor) -> tuple[Tensor, Tensor]:
    """Adam's two moments of a parameter, made as torch makes them where there are none."""
    state = adam.state[parameter]
    if not state:
        state["step"] = torch.zeros((), device="cpu")
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state["exp_avg"], state["exp_avg_sq"]
