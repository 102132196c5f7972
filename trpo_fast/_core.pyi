# Types of the native module. Functions end in the dtype they serve: _f32 or _f64.
#
# A tensor crosses as ``(address, sizes, strides)``, sizes and strides in elements; a layer as
# ``(weight, bias or None, activation, parameter)``. ``trpo_fast.backends.cpu`` makes these.

from collections.abc import Sequence
from typing import TypeAlias

TensorArg: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...]]
LayerArg: TypeAlias = tuple[TensorArg, TensorArg | None, int, float]

def isa() -> str: ...
def available_isas() -> list[str]: ...
def activate_f32(
    activation: int, parameter: float, z: TensorArg, slope: TensorArg | None
) -> None: ...
def activate_f64(
    activation: int, parameter: float, z: TensorArg, slope: TensorArg | None
) -> None: ...
def mlp_forward_workspace_f32(layers: Sequence[LayerArg], input_width: int) -> int: ...
def mlp_forward_workspace_f64(layers: Sequence[LayerArg], input_width: int) -> int: ...
def mlp_forward_f32(
    layers: Sequence[LayerArg], x: TensorArg, out: TensorArg, workspace: int
) -> None: ...
def mlp_forward_f64(
    layers: Sequence[LayerArg], x: TensorArg, out: TensorArg, workspace: int
) -> None: ...
