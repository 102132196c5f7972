"""How tensors, layers and preconditioners cross to the native module, and in which layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from trpo_fast.backends.codes import ACTIVATION_CODES
from trpo_fast.networks.network import Layer
from trpo_fast.preconditioning.kfac import Block
from trpo_fast.preconditioning.preconditioner import Place, Preconditioner

if TYPE_CHECKING:
    from trpo_fast._core import BlockArg, LayerArg, PreconditionerArg, TensorArg

SLAB_WIDTH, SLAB_PADDING = 64, 16  # kSlabWidth and kPadding there


def tensor_arg(tensor: Tensor, dtype: torch.dtype) -> TensorArg:
    """How a CPU tensor crosses to the native module; any strides, no copy, no cast.

    Raises:
        TypeError: the tensor has another dtype, is not a dense CPU tensor, or is a lazily negated
            view, whose memory holds the opposite sign.
    """
    if tensor.dtype is not dtype or not tensor.is_cpu or tensor.layout is not torch.strided:
        raise TypeError(
            f"the native CPU backend reads dense {dtype} tensors on the CPU, got {tensor.layout} "
            f"{tensor.dtype} on {tensor.device}; convert it first, or use backend='reference'"
        )
    if tensor.is_neg():
        raise TypeError("a lazily negated view cannot be read in place; call resolve_neg() on it")
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def held_layers(
    layers: Sequence[Layer], held: Callable[[Tensor], Tensor] = Tensor.detach
) -> list[Layer]:
    """The layers on aliases of their tensors.

    What native code is told of them stays readable as long as the aliases live, also where another
    thread gives a parameter other memory (``parameter.data = ...``).
    """
    return [
        layer._replace(
            weight=held(layer.weight), bias=None if layer.bias is None else held(layer.bias)
        )
        for layer in layers
    ]


def layer_args(layers: Sequence[Layer], dtype: torch.dtype) -> list[LayerArg]:
    """The layers, of ``held_layers``, as the native module takes them; valid while those live."""
    return [
        (
            tensor_arg(layer.weight, dtype),
            None if layer.bias is None else tensor_arg(layer.bias, dtype),
            ACTIVATION_CODES[layer.activation],
            layer.parameter,
        )
        for layer in layers
    ]


class SlabPreconditioner(NamedTuple):
    """A preconditioner as the native module takes it, and the tensors that this points into."""

    argument: PreconditionerArg
    tensors: list[Tensor]


def slab_preconditioner(found: Preconditioner) -> SlabPreconditioner:
    """The native layout of a preconditioner, made once and kept with it."""
    if not isinstance(found.packed, SlabPreconditioner):
        tensors: list[Tensor] = []

        def arg(tensor: Tensor) -> TensorArg:
            tensors.append(tensor)
            return tensor_arg(tensor, found.diagonal.dtype)

        blocks = [_block_arg(at, block, arg) for at, block in found.blocks]
        # Two matrices in slabs for each block, as large as its R.
        work = sum(2 * at.outputs * math.prod(slabs_of(at.columns)) for at, _ in found.blocks)
        argument = arg(found.diagonal), blocks, arg(found.diagonal.new_empty(work))
        found.packed = SlabPreconditioner(argument, tensors)
    return found.packed


def _block_arg(at: Place, block: Block, arg: Callable[[Tensor], TensorArg]) -> BlockArg:
    scaled = block.scale is not None
    return (
        -1 if at.weight is None else at.weight,
        -1 if at.bias is None else at.bias,
        at.inputs,
        at.outputs,
        arg(block.left.contiguous() if scaled else in_slabs(block.left)),
        arg(in_slabs(block.right)),
        arg(in_slabs(block.right.T)) if scaled else None,
        None if block.scale is None else arg(in_slabs(block.scale)),
    )


def slabs_of(columns: int) -> tuple[int, int]:
    """How many slabs csrc/cpu/kernels/slabs.h makes of so many columns, and their width."""
    width = SLAB_WIDTH if columns >= SLAB_WIDTH else -(-columns // SLAB_PADDING) * SLAB_PADDING
    return -(-columns // width), width


def in_slabs(matrix: Tensor) -> Tensor:
    """``[slabs, rows, width]``: a matrix ``[rows, columns]`` as the native slabs.h lays it out."""
    if matrix.ndim == 3:
        return matrix
    rows, columns = matrix.shape
    count, width = slabs_of(columns)
    padded = matrix.new_zeros(rows, count * width)
    padded[:, :columns] = matrix
    return padded.view(rows, count, width).transpose(0, 1).contiguous()
