# Types of the native CUDA module. A tensor crosses as ``(address, sizes, strides)``, contiguous, on
# the device; ``trpo_fast.backends.cuda.layout`` makes these.

from collections.abc import Sequence
from typing import Any, TypeAlias

TensorArg: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...]]
LayerArg: TypeAlias = tuple[int, int, int, float]  # inputs, outputs, activation, its parameter
PreconditionerArg: TypeAlias = tuple[TensorArg, TensorArg, list[tuple[int, bool]]]
SolveOptions: TypeAlias = dict[str, float | PreconditionerArg | None]

architectures: str  # what it was compiled for: "80-real, 90"

def facts() -> dict[str, Any]: ...
def device_error(device: int) -> str: ...
def plan(
    layers: Sequence[LayerArg],
    log_std: int,
    unused: int,
    rows: int,
    actions: int,
    element: int,
    multiprocessors: int,
    shared_bytes: int,
    blocks_each: int = 0,
    products: int = 0,
) -> dict[str, int]: ...
def gae_f32(
    rewards: TensorArg,
    values: TensorArg,
    terminated: TensorArg,
    truncated: TensorArg,
    last_values: TensorArg,
    final_values: TensorArg | None,
    advantages: TensorArg,
    returns: TensorArg,
    gamma: float,
    lam: float,
    device: int,
    stream: int,
) -> None: ...

gae_f64 = gae_f32

class _PolicyProblem:
    def __init__(self, **arguments: Any) -> None: ...
    def workspace_bytes(self) -> int: ...
    def tiled(self) -> bool: ...
    def bind(self, workspace: int) -> None: ...
    def gradient(self, g: TensorArg, figures: TensorArg, stream: int) -> None: ...
    def fisher_product(
        self, v: TensorArg, out: TensorArg, figures: TensorArg, stream: int
    ) -> None: ...
    def solve(
        self,
        g: TensorArg,
        x: TensorArg,
        figures: TensorArg,
        options: SolveOptions,
        stream: int,
    ) -> None: ...
    def evaluate(self, theta: TensorArg, figures: TensorArg, stream: int) -> None: ...
    def update(
        self, candidate: TensorArg, figures: TensorArg, options: SolveOptions, stream: int
    ) -> None: ...

class _Forward:
    def __init__(self, **arguments: Any) -> None: ...
    def workspace_bytes(self) -> int: ...
    def bind(self, workspace: int) -> None: ...
    def forward(self, out: TensorArg, stream: int) -> None: ...

class ForwardF32(_Forward): ...
class ForwardF64(_Forward): ...
class PolicyProblemF32(_PolicyProblem): ...
class PolicyProblemF64(_PolicyProblem): ...
