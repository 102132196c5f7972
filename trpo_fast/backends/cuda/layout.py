"""How tensors, layers and preconditioners cross to a CUDA device, and in which layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from trpo_fast.backends.codes import ACTIVATION_CODES
from trpo_fast.networks.network import Layer, Network
from trpo_fast.preconditioning.kfac import Block
from trpo_fast.preconditioning.preconditioner import Preconditioner
from trpo_fast.update.parameters import FlatParameters

if TYPE_CHECKING:
    from trpo_fast._core_cuda import LayerArg, TensorArg

# kMaxLayers, kPanelWidth, kMaxBlocks and kMaxParts of csrc/cuda/plan.h.
MAX_LAYERS, PANEL_WIDTH, MAX_BLOCKS, MAX_PARTS = 32, 256, 64, 32
ALIGNMENT = 256  # of the workspace, as torch's allocator gives it


def stream_of(device: torch.device) -> int:
    """Torch's current stream as the native module takes it."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def tensor_arg(tensor: Tensor) -> TensorArg:
    """How a tensor crosses to the native module: no copy, no cast, no check."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def layer_args(layers: Sequence[Layer]) -> list[LayerArg]:
    """Inputs, outputs, activation and its parameter of each layer."""
    return [
        (
            layer.weight.shape[1],
            layer.weight.shape[0],
            ACTIVATION_CODES[layer.activation],
            layer.parameter,
        )
        for layer in layers
    ]


def bound_workspace(native: Any, device: torch.device) -> Tensor:
    """The memory that ``native`` asks for, bound to it: it is read and written while that lives."""
    memory = torch.empty(native.workspace_bytes() + ALIGNMENT, dtype=torch.uint8, device=device)
    native.bind(-(-memory.data_ptr() // ALIGNMENT) * ALIGNMENT)
    return memory


def padded(width: int) -> int:
    """A width in a packed vector: whole 16-byte units of float32."""
    return -(-width // 4) * 4


# Where a tensor starts among (theta, frozen), and its shape.
TensorPlace = tuple[int, tuple[int, ...]]
LayerPlaces = tuple[tuple[TensorPlace, TensorPlace | None], ...]


def appended(tensors: Iterable[Tensor], start: int) -> tuple[dict[int, TensorPlace], list[Tensor]]:
    """The tensors flat, one after the other, and the place of each by its id, from ``start`` on."""
    places: dict[int, TensorPlace] = {}
    pieces = []
    for tensor in tensors:
        places[id(tensor)] = (start, tuple(tensor.shape))
        pieces.append(tensor.detach().reshape(-1))
        start += tensor.numel()
    return places, pieces


def layer_places(layers: Sequence[Layer], places: Mapping[int, TensorPlace]) -> LayerPlaces:
    """Those of each layer's weight and bias."""
    return tuple(
        (places[id(layer.weight)], None if layer.bias is None else places[id(layer.bias)])
        for layer in layers
    )


@lru_cache(maxsize=32)
def packed_map(
    layers: LayerPlaces,
    log_std: TensorPlace | None,
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
    by_start = {(at.weight, at.bias): block for at, block in found.blocks}
    pieces: list[Tensor] = []
    layers: list[tuple[int, bool]] = []
    size = 0
    for layer in network.layers:
        weight, bias = parameters.offset_of(layer.weight), parameters.offset_of(layer.bias)
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
