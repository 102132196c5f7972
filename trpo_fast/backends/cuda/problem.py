"""The CUDA backend: checks in Python, once, then one kernel launch.

Importing this module touches neither the compiled part nor a driver; the first problem does.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trpo_fast import _native
from trpo_fast.backends.codes import head_arguments, head_refusal
from trpo_fast.backends.cuda.layout import (
    MAX_BLOCKS,
    MAX_LAYERS,
    MAX_PARTS,
    PANEL_WIDTH,
    appended,
    bound_workspace,
    layer_args,
    layer_places,
    packed_map,
    packed_preconditioner,
    stream_of,
    tensor_arg,
)
from trpo_fast.backends.native_update import (
    SOLVE_STATUS,
    solve_options,
    update_options,
    update_result,
)
from trpo_fast.base.tensors import strided_rows
from trpo_fast.networks.head import Head
from trpo_fast.networks.network import Network
from trpo_fast.preconditioning.preconditioner import Preconditioner
from trpo_fast.update.batch import Batch
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters
from trpo_fast.update.result import Solution, TrustRegionResult
from trpo_fast.update.trust_region import WholeUpdate

if TYPE_CHECKING:
    from trpo_fast._core_cuda import PreconditionerArg, TensorArg

# The order of Figure in csrc/cuda/plan.h.
FIGURES = 12
# The order of Products there.
PRODUCT_CODES = {"auto": 0, "fp32": 0, "tf32": 1, "bf16": 2, "bf16x3": 3}


def refusal(network: Network, batch: Batch, options: Options) -> str | None:
    """Why ``CudaProblem`` cannot serve, or None."""
    if batch.share is not None:
        return "its kernel makes the whole update and cannot wait for other ranks' sums"
    weight = network.layers[0].weight
    if PRODUCT_CODES[options.precision] and weight.dtype is not torch.float32:
        return f"precision={options.precision!r} needs float32 parameters, these are {weight.dtype}"
    device = weight.device
    if device.type != "cuda" or batch.obs.device.type != "cuda":
        return f"the parameters are on {device}, and it serves CUDA devices"
    core, error = _native.cuda_on(device.index or 0)
    if core is None:
        return error
    capability = torch.cuda.get_device_capability(device)
    if PRODUCT_CODES[options.precision] and capability < (8, 0):
        return (
            f"precision={options.precision!r} needs compute capability 8.0, the device has "
            f"{capability[0]}.{capability[1]}"
        )
    return shape_refusal(network)


def shape_refusal(network: Network) -> str | None:
    """Why the kernel cannot serve a network of this shape, or None."""
    layers = network.layers
    missing = head_refusal(network.head)
    if missing is not None:
        return missing
    if len(layers) > MAX_LAYERS:
        return f"the network has {len(layers)} layers, and its kernel serves {MAX_LAYERS}"
    if len(network.head.nvec) > MAX_BLOCKS:
        return f"the action has {len(network.head.nvec)} parts, and it serves {MAX_BLOCKS}"
    if len(network.head.inner) > MAX_PARTS:
        return f"the action has {len(network.head.inner)} parts, and it serves {MAX_PARTS}"
    return None


def in_tiles(network: Network, options: Options) -> bool:
    """Whether layers must be computed in tiles by the whole grid, not in panels by a block.

    Panels end at ``PANEL_WIDTH``, and know no preconditioner. With little shared memory or with
    tensor cores they end earlier: the native side goes to tiles by itself where a panel, or the
    operands of tensor cores, do not fit.
    """
    widest = max(layer.weight.shape[0] for layer in network.layers)
    return widest > PANEL_WIDTH or options.preconditioner in ("diagonal", "kfac")


class CudaProblem(WholeUpdate):
    """A ``trust_region.Problem`` for a recognised network on a CUDA device.

    Every method is one cooperative kernel on torch's current stream; only figures that the caller
    needs come back to the host. Holds the batch's tensors and the workspace for the time of one
    update.

    Args:
        network: What ``network_of`` gave; its tensors are the module's parameters.
        parameters: The flat order. Network tensors that are not in it are frozen.
        batch: As ``fused_batch`` gave it. Without actions only products are served.
        options: Checked options.

    Raises:
        RuntimeError: CUDA refused; torch's own error where memory does not suffice. The context
            stays usable.
    """

    backend = "cuda"
    preconditioner: Preconditioner | None = None
    gains_known = False

    def __init__(
        self, network: Network, parameters: FlatParameters, batch: Batch, options: Options
    ) -> None:
        self.network, self.parameters, self.options = network, parameters, options
        self._dtype, self._device = parameters.dtype, parameters.device
        self._tensors: list[Tensor] = []
        self._size = parameters.count
        head = network.head
        arguments = self._network_arguments()
        arguments |= self._rows(batch)
        arguments |= self._fisher_rows(batch, options.fisher_fraction)
        arguments |= {
            "parameters": self._size,
            **head_arguments(head),
            "actions": self._actions(batch, head),
            "advantages": self._arg(batch.advantages, self._dtype),
            "old_log_prob": self._arg(batch.old_log_prob, torch.float64),
            "kl_new_old": options.kl_direction == "new_old",
            "tiled": self.tiled(options),
            "products": PRODUCT_CODES[options.precision],
            "device": self._device.index or 0,
        }
        core = self._core()
        native = core.PolicyProblemF32 if self._dtype is torch.float32 else core.PolicyProblemF64
        self._native = native(**arguments)
        self.in_tiles = self._native.tiled()
        self._memory = bound_workspace(self._native, self._device)
        self._figures = torch.zeros(FIGURES, dtype=torch.float64, device=self._device)

    def tiled(self, options: Options) -> bool:
        """Which of the two plans it is."""
        return in_tiles(self.network, options)

    def update(self, options: Options, unit: float) -> TrustRegionResult:
        """``trust_region.update``'s steps up to the accepted parameters, in one launch."""
        candidate = self.parameters.start.clone()
        self._native.update(
            self._flat(candidate),
            self._figure_arg(),
            {
                **update_options(options, unit, self.preconditioner is not None),
                "preconditioner": self._preconditioner(),
            },
            self._stream(),
        )
        result = update_result(self._figures.tolist()[:-1], options, self.backend)
        if result.accepted:
            self.parameters.replace(self.parameters.start, candidate)
        return result

    def surrogate_gradient(self) -> tuple[float, Tensor]:
        """The loss at theta_old, and minus its gradient ``[P]``."""
        g = torch.empty(self._size, dtype=self._dtype, device=self._device)
        self._native.gradient(self._flat(g), self._figure_arg(), self._stream())
        return float(self._figures[1]), g

    def solve(self, g: Tensor, options: Options) -> Solution:
        """Conjugate gradients, whole, in one launch."""
        g = g.contiguous()
        x = torch.empty_like(g)
        self._native.solve(
            self._flat(g),
            self._flat(x),
            self._figure_arg(),
            {
                **solve_options(options, self.preconditioner is not None),
                "preconditioner": self._preconditioner(),
            },
            self._stream(),
        )
        code, iterations, residual, quadratic = self._figures.tolist()[8:]
        return Solution(x, quadratic, int(iterations), residual, SOLVE_STATUS[int(code)])

    def fisher_product(self, v: Tensor) -> Tensor:
        """``F v`` ``[P]``, without damping, over the Fisher's share of the rows."""
        v = v.contiguous()
        out = torch.empty_like(v)
        self._native.fisher_product(
            self._flat(v), self._flat(out), self._figure_arg(), self._stream()
        )
        return out

    def evaluate(self, theta: Tensor) -> tuple[float, float]:
        """Loss and mean KL at ``theta`` ``[P]``; ``gradient`` must have run."""
        self._native.evaluate(self._flat(theta.contiguous()), self._figure_arg(), self._stream())
        loss, kl = self._figures[2:4].tolist()
        return loss, kl

    def _preconditioner(self) -> PreconditionerArg | None:
        if self.preconditioner is None:
            return None
        packed = packed_preconditioner(self.preconditioner, self.network, self.parameters)
        return self._flat(self.preconditioner.diagonal), self._flat(packed.matrices), packed.layers

    def _core(self) -> ModuleType:
        core, error = _native.cuda()
        if core is None:
            raise RuntimeError(error)
        return core

    def _stream(self) -> int:
        return stream_of(self._device)

    def _flat(self, tensor: Tensor) -> TensorArg:
        return self._tensor_arg(tensor, self._dtype)

    def _figure_arg(self) -> TensorArg:
        return self._tensor_arg(self._figures, torch.float64)

    def _tensor_arg(self, tensor: Tensor, dtype: torch.dtype) -> TensorArg:
        """How a tensor crosses: no copy, no cast.

        Raises:
            TypeError: another dtype or device than the problem's, or a lazily negated view.
        """
        if tensor.dtype is not dtype or tensor.device != self._device or tensor.is_neg():
            raise TypeError(
                f"the CUDA backend reads {dtype} tensors on {self._device}, got {tensor.dtype} on "
                f"{tensor.device}{', lazily negated' if tensor.is_neg() else ''}; convert it first"
            )
        return tensor_arg(tensor)

    def _arg(self, tensor: Tensor | None, dtype: torch.dtype) -> TensorArg | None:
        if tensor is None:
            return None
        tensor = tensor.resolve_neg().to(dtype).contiguous()
        self._tensors.append(tensor)
        return self._tensor_arg(tensor, dtype)

    def _network_arguments(self) -> dict[str, Any]:
        """Layers, theta and where packed vectors find their elements; sets ``parameters.used``."""
        network, parameters = self.network, self.parameters
        parameters.use(network.tensors())
        frozen = [t for t in network.tensors() if id(t) not in parameters.place]
        places, pieces = appended(frozen, self._size)
        for tensor in network.tensors():
            offset = parameters.offset_of(tensor)
            if offset is not None:
                places[id(tensor)] = (offset, tuple(tensor.shape))
        unused = tuple(
            (offset, size)
            for offset, size, used in zip(
                parameters.offsets, parameters.sizes, parameters.used, strict=True
            )
            if not used
        )
        log_std = None if network.log_std is None else places[id(network.log_std)]
        self._map = packed_map(layer_places(network.layers, places), log_std, unused, self._device)
        self._theta = torch.cat([parameters.start, *pieces]) if pieces else parameters.start
        return {
            "layers": layer_args(network.layers),
            "log_std": 0 if network.log_std is None else network.log_std.numel(),
            "unused": sum(size for _, size in unused),
            "map": self._tensor_arg(self._map, torch.int32),
            "theta": self._tensor_arg(self._theta, self._dtype),
        }

    def _rows(self, batch: Batch, prefix: str = "") -> dict[str, TensorArg | None]:
        mask = None if batch.action_mask is None else batch.action_mask.contiguous()
        total = None
        if batch.weights is not None:
            total = batch.weights.sum(dtype=torch.float64).reshape(1)
        return {
            f"{prefix}obs": self._arg(batch.obs, self._dtype),
            f"{prefix}weights": self._arg(batch.weights, self._dtype),
            f"{prefix}weight_sum": self._arg(total, torch.float64),
            f"{prefix}action_mask": self._arg(
                None if mask is None else mask.view(torch.uint8), torch.uint8
            ),
        }

    def _fisher_rows(self, batch: Batch, fraction: float) -> dict[str, TensorArg | None]:
        if fraction == 1.0:
            names = ("obs", "weights", "weight_sum", "action_mask")
            return {f"fisher_{name}": None for name in names}
        rows = strided_rows(batch.rows, fraction, batch.obs.device)
        part = Batch(
            len(rows),
            batch.obs[rows],
            weights=None if batch.weights is None else batch.weights[rows],
            action_mask=None if batch.action_mask is None else batch.action_mask[rows],
        )
        return self._rows(part, "fisher_")

    def _actions(self, batch: Batch, head: Head) -> TensorArg | None:
        if batch.actions is None:
            return None
        columns = batch.actions.unsqueeze(1) if batch.actions.ndim == 1 else batch.actions
        return self._arg(columns, torch.int64 if head.integral else self._dtype)
