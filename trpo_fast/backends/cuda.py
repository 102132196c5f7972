"""The CUDA backend: checks in Python, once, then one kernel launch.

Importing this module touches neither the compiled part nor a driver; the first problem does.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from trpo_fast import _native
from trpo_fast.backends.native_arguments import ACTIVATION_CODES, HEAD_CODES
from trpo_fast.backends.native_update import (
    SOLVE_STATUS,
    solve_options,
    update_options,
    update_result,
)
from trpo_fast.batch import Batch
from trpo_fast.flat import FlatParameters, strided_rows
from trpo_fast.network import Network
from trpo_fast.options import Options
from trpo_fast.trust_region import Solution, TrustRegionResult

if TYPE_CHECKING:
    from trpo_fast._core_cuda import PreconditionerArg, TensorArg
    from trpo_fast.backends.kfac import Block
    from trpo_fast.backends.preconditioner import Preconditioner

# The order of Figure in csrc/cuda/plan.h.
FIGURES = 12
# kMaxLayers, kPanelWidth and kMaxBlocks of csrc/cuda/plan.h.
MAX_LAYERS, PANEL_WIDTH, MAX_BLOCKS = 32, 256, 64
# The order of Products there.
PRODUCT_CODES = {"auto": 0, "fp32": 0, "tf32": 1, "bf16": 2, "bf16x3": 3}
ALIGNMENT = 256  # of the workspace, as torch's allocator gives it


def refusal(network: Network, batch: Batch, options: Options) -> str | None:
    """Why ``CudaProblem`` cannot serve, or None."""
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
    if len(layers) > MAX_LAYERS:
        return f"the network has {len(layers)} layers, and its kernel serves {MAX_LAYERS}"
    if len(network.head.nvec) > MAX_BLOCKS:
        return f"the action has {len(network.head.nvec)} parts, and it serves {MAX_BLOCKS}"
    return None


def in_tiles(network: Network, options: Options) -> bool:
    """Whether layers must be computed in tiles by the whole grid, not in panels by a block.

    Panels end at ``PANEL_WIDTH``, and know no preconditioner. With little shared memory or with
    tensor cores they end earlier: the native side goes to tiles by itself where a panel, or the
    operands of tensor cores, do not fit.
    """
    widest = max(layer.weight.shape[0] for layer in network.layers)
    return widest > PANEL_WIDTH or options.preconditioner in ("diagonal", "kfac")


def padded(width: int) -> int:
    """A width in a packed vector: whole 16-byte units of float32."""
    return -(-width // 4) * 4


Place = tuple[int, tuple[int, ...]]  # where a tensor starts among (theta, frozen), and its shape


@lru_cache(maxsize=32)
def packed_map(
    layers: tuple[tuple[Place, Place | None], ...],
    log_std: Place | None,
    unused: tuple[tuple[int, int], ...],
    device: torch.device,
) -> Tensor:
    """``[packed]`` int32: the element of (theta, frozen) in each place; -1 is padding.

    Layer by layer the weight as ``[in_rows, out_padded]`` with the bias as row ``in``, then log
    std, then the elements of theta that the network does not use.
    """
    parts = []
    for (start, (width_out, width_in)), bias in layers:
        block = torch.full((padded(width_in + 1), padded(width_out)), -1, dtype=torch.int32)
        weight = torch.arange(start, start + width_out * width_in, dtype=torch.int32)
        block[:width_in, :width_out] = weight.view(width_out, width_in).T
        if bias is not None:
            block[width_in, :width_out] = torch.arange(bias[0], bias[0] + width_out)
        parts.append(block.flatten())
    if log_std is not None:
        start, shape = log_std
        parts.append(torch.arange(start, start + torch.Size(shape).numel(), dtype=torch.int32))
    parts += [torch.arange(start, start + size, dtype=torch.int32) for start, size in unused]
    found = torch.cat(parts)
    padding = torch.full((padded(len(found)) - len(found),), -1, dtype=torch.int32)
    return torch.cat([found, padding]).to(device)


class PackedPreconditioner(NamedTuple):
    """A preconditioner's matrices as csrc/cuda/plan.h lays them out."""

    matrices: Tensor
    layers: list[tuple[int, bool]]  # where each layer's start, -1: it has none; in eigenbases


def packed_preconditioner(
    found: Preconditioner, network: Network, parameters: FlatParameters
) -> PackedPreconditioner:
    """The device's layout of a preconditioner, made once and kept with it."""
    packed = found.packed
    if isinstance(packed, PackedPreconditioner):
        return packed
    starts = [0, *accumulate(parameters.sizes)]
    by_start = {(at.weight, at.bias): block for at, block in found.blocks}
    pieces: list[Tensor] = []
    layers: list[tuple[int, bool]] = []
    size = 0
    for layer in network.layers:
        weight, bias = (
            None if t is None or id(t) not in parameters.place else starts[parameters.place[id(t)]]
            for t in (layer.weight, layer.bias)
        )
        block = by_start.get((weight, bias))
        if block is None:
            layers.append((-1, False))
            continue
        out, columns = layer.weight.shape
        # Where the block's columns lie among a packed layer's rows.
        rows = [*range(columns if weight is not None else 0)] + [columns] * (bias is not None)
        added = _packed_block(block, rows, padded(columns + 1), padded(out))
        layers.append((size, block.scale is not None))
        pieces += added
        size += sum(len(piece) for piece in added)
    matrices = torch.cat(pieces) if pieces else found.diagonal[:0]
    packed = found.packed = PackedPreconditioner(matrices, layers)
    return packed


def _packed_block(block: Block, rows: list[int], in_rows: int, out_padded: int) -> list[Tensor]:
    """A block's matrices, padded and flat: U_A, U_G', U_G, scale'; or the two inverses."""
    out = len(block.left)
    at = torch.tensor(rows, device=block.left.device)
    A = block.right.new_zeros(in_rows, in_rows)
    A[at.unsqueeze(1), at] = block.right
    G = block.left.new_zeros(out_padded, out_padded)
    G[:out, :out] = block.left
    found = [A, G.T]
    if block.scale is not None:
        scale = block.scale.new_zeros(in_rows, out_padded)
        scale[at, :out] = block.scale.T
        found += [G, scale]
    return [matrix.reshape(-1) for matrix in found]


class CudaProblem:
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

    def __init__(
        self, network: Network, parameters: FlatParameters, batch: Batch, options: Options
    ) -> None:
        self.network, self.parameters, self.options = network, parameters, options
        self._dtype, self._device = parameters.dtype, parameters.device
        self._tensors: list[Tensor] = []
        self._size = sum(parameters.sizes)
        head = network.head
        arguments = self._network_arguments()
        arguments |= self._rows(batch)
        arguments |= self._fisher_rows(batch, options.fisher_fraction)
        arguments |= {
            "parameters": self._size,
            "head": HEAD_CODES[head.kind],
            "action_dim": len(head.nvec) or head.action_dim,
            "nvec": list(head.nvec),
            "actions": self._actions(batch, head.nvec),
            "advantages": self._arg(batch.advantages, self._dtype),
            "old_log_prob": self._arg(batch.old_log_prob, torch.float64),
            "kl_new_old": options.kl_direction == "new_old",
            "forward_only": False,
            "tiled": self.tiled(options),
            "products": PRODUCT_CODES[options.precision],
            "device": self._device.index or 0,
        }
        core = self._core()
        native = core.PolicyProblemF32 if self._dtype is torch.float32 else core.PolicyProblemF64
        self._native = native(**arguments)
        self.in_tiles = self._native.tiled()
        workspace = self._native.workspace_bytes() + ALIGNMENT
        self._memory = torch.empty(workspace, dtype=torch.uint8, device=self._device)
        self._native.bind(-(-self._memory.data_ptr() // ALIGNMENT) * ALIGNMENT)
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
        result = update_result(self._figures.tolist()[:-1], self.backend)
        if result.accepted:
            self.parameters.replace(self.parameters.start, candidate)
        return result

    def gradient(self) -> tuple[float, Tensor]:
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
        if self._device.type != "cuda":
            return 0
        return torch.cuda.current_stream(self._device).cuda_stream

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
        return tensor.data_ptr(), tensor.shape, tensor.stride()

    def _arg(self, tensor: Tensor | None, dtype: torch.dtype) -> TensorArg | None:
        if tensor is None:
            return None
        tensor = tensor.resolve_neg().to(dtype).contiguous()
        self._tensors.append(tensor)
        return self._tensor_arg(tensor, dtype)

    def _network_arguments(self) -> dict[str, Any]:
        """Layers, theta and where packed vectors find their elements; sets ``parameters.used``."""
        network, parameters = self.network, self.parameters
        starts = [0, *accumulate(parameters.sizes)]
        used: set[int] = set()
        frozen: list[Tensor] = []
        places: dict[int, Place] = {}
        for tensor in network.tensors():
            index = parameters.place.get(id(tensor))
            if index is None:
                places[id(tensor)] = (
                    self._size + sum(t.numel() for t in frozen),
                    tuple(tensor.shape),
                )
                frozen.append(tensor.detach().reshape(-1))
            else:
                places[id(tensor)] = (starts[index], tuple(tensor.shape))
                used.add(index)
        parameters.used = [index in used for index in range(len(parameters.tensors))]
        unused = tuple(
            (starts[i], parameters.sizes[i]) for i, flag in enumerate(parameters.used) if not flag
        )
        layers = tuple(
            (places[id(layer.weight)], None if layer.bias is None else places[id(layer.bias)])
            for layer in network.layers
        )
        log_std = None if network.log_std is None else places[id(network.log_std)]
        self._map = packed_map(layers, log_std, unused, self._device)
        self._theta = torch.cat([parameters.start, *frozen]) if frozen else parameters.start
        return {
            "layers": [
                (
                    layer.weight.shape[1],
                    layer.weight.shape[0],
                    ACTIVATION_CODES[layer.activation],
                    layer.parameter,
                )
                for layer in network.layers
            ],
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

    def _actions(self, batch: Batch, nvec: tuple[int, ...]) -> TensorArg | None:
        if batch.actions is None:
            return None
        columns = batch.actions.unsqueeze(1) if batch.actions.ndim == 1 else batch.actions
        return self._arg(columns, torch.int64 if nvec else self._dtype)
