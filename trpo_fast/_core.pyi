# Types of the native module. Functions end in the dtype they serve: _f32 or _f64.
#
# A tensor crosses as ``(address, sizes, strides)``, sizes and strides in elements; a layer as
# ``(weight, bias or None, activation, parameter)``: ``trpo_fast.backends.cpu.arguments``.

from collections.abc import Callable, Sequence
from typing import TypeAlias

TensorArg: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...]]
# Offsets of weight and bias in the flat vector (-1: none), inputs, outputs, then the matrices.
BlockArg: TypeAlias = tuple[
    int, int, int, int, TensorArg, TensorArg, TensorArg | None, TensorArg | None
]
PreconditionerArg: TypeAlias = tuple[TensorArg, Sequence[BlockArg], TensorArg]
LayerArg: TypeAlias = tuple[TensorArg, TensorArg | None, int, float]
# Shares of all rows' weight and of the Fisher's, whether the ranks are alike, three buffers, what
# does a collective by its number.
RankShareArg: TypeAlias = tuple[
    float, float, bool, TensorArg, TensorArg, TensorArg, Callable[[int], None]
]

def isa() -> str: ...
def bf16_instruction() -> bool: ...
def available_isas() -> list[str]: ...
def amx_refusal() -> str: ...
def cpu_has_amx() -> bool: ...
def activate_f32(
    activation: int, parameter: float, z: TensorArg, slope: TensorArg | None
) -> None: ...
def activate_f64(
    activation: int, parameter: float, z: TensorArg, slope: TensorArg | None
) -> None: ...
def all_finite_f32(address: int, count: int) -> bool: ...
def all_finite_f64(address: int, count: int) -> bool: ...
def all_finite_as_f32(address: int, count: int) -> bool: ...  # of float64, once rounded
def copy_blocks(flat: int, blocks: list[tuple[int, int]], entry_bytes: int, read: bool) -> None: ...
def damped_inverse_f32(matrix: TensorArg, damping: float, to: TensorArg, threads: int) -> bool: ...
def damped_inverse_f64(matrix: TensorArg, damping: float, to: TensorArg, threads: int) -> bool: ...

class _MlpForward:
    def __init__(self, layers: Sequence[LayerArg], input_width: int, threads: int) -> None: ...
    def workspace_bytes(self) -> int: ...
    def bind(self, workspace: int) -> None: ...
    def __call__(self, x: TensorArg, out: TensorArg) -> None: ...

class MlpForwardF32(_MlpForward): ...
class MlpForwardF64(_MlpForward): ...

class _Sampling:
    def __init__(
        self,
        layers: Sequence[LayerArg],
        input_width: int,
        head: int,
        action_dim: int,
        nvec: Sequence[int],
        log_std: TensorArg | None,
        threads: int,
    ) -> None: ...
    def workspace_bytes(self) -> int: ...
    def bind(self, workspace: int, buffers: dict[str, TensorArg | float | None]) -> None: ...
    def step(self, t: int) -> None: ...

class SamplingF32(_Sampling): ...
class SamplingF64(_Sampling): ...

class _ValueFit:
    def __init__(
        self,
        parameters: Sequence[LayerArg],
        exp_avg: Sequence[LayerArg],
        exp_avg_sq: Sequence[LayerArg],
        input_width: int,
        batch_rows: int,
        threads: int,
    ) -> None: ...
    def workspace_bytes(self) -> int: ...
    def bind(self, workspace: int) -> None: ...
    def run(
        self,
        x: TensorArg,
        targets: TensorArg,
        order: TensorArg,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        steps: int,
    ) -> tuple[float, int, int]: ...
    def write_back(self) -> None: ...

class ValueFitF32(_ValueFit): ...
class ValueFitF64(_ValueFit): ...

class _PolicyProblem:
    def __init__(
        self,
        *,
        obs: TensorArg | None,
        layers: Sequence[LayerArg],
        offsets: Sequence[tuple[int, int]],
        parameters: int,
        head: int,
        action_dim: int,
        nvec: Sequence[int],
        log_std: TensorArg | None,
        log_std_offset: int,
        actions: TensorArg | None,
        advantages: TensorArg | None,
        old_log_prob: TensorArg | None,
        weights: TensorArg | None,
        action_mask: TensorArg | None,
        fisher_obs: TensorArg | None,
        fisher_weights: TensorArg | None,
        fisher_action_mask: TensorArg | None,
        kl_new_old: bool,
        cache_bytes: int,
        threads: int,
        bf16_parts: int,
    ) -> None: ...
    def workspace_bytes(self) -> int: ...
    def bind(self, workspace: int) -> None: ...
    def gradient(self, g: TensorArg) -> float: ...
    def prepare_fisher(self) -> None: ...
    def fisher_product(self, v: TensorArg, damping: float, out: TensorArg) -> None: ...
    def kept_rows(self) -> int: ...
    def moment_bytes(self, rows: int) -> int: ...
    def input_moments(
        self, rows: int, targets: Sequence[tuple[TensorArg, bool] | None], workspace: int
    ) -> None: ...
    def factor_bytes(self, rows: int) -> int: ...
    def kronecker_factors(
        self,
        signs: TensorArg,
        targets: Sequence[tuple[TensorArg | None, bool, TensorArg | None]],
        workspace: int,
    ) -> None: ...
    def solve(
        self,
        g: TensorArg,
        x: TensorArg,
        work: TensorArg,
        options: dict[str, float],
        preconditioner: PreconditionerArg | None,
    ) -> tuple[int, int, float, float]: ...
    def evaluate(self, theta: TensorArg) -> tuple[float, float]: ...
    def update(
        self,
        theta: TensorArg,
        candidate: TensorArg,
        work: TensorArg,
        options: dict[str, float],
        preconditioner: PreconditionerArg | None,
        loss: float | None,
        ranks: RankShareArg | None,
    ) -> tuple[int, float, float, float, float, float, float, int, int, int, float]: ...

class PolicyProblemF32(_PolicyProblem): ...
class PolicyProblemF64(_PolicyProblem): ...
