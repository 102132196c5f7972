"""Times the CUDA backend beside torch on the same device, after checking its answers.

    python benchmarks/gpu.py [--out FILE.json] [--rows-limit N]

Every line is one operation at one size, in one process: microseconds as the median of repeated
calls. "kernel" is the device's own time by CUDA events; "call" is the wall clock around the Python
call with a synchronisation, checks included. The peer is torch.autograd twice through the mean KL
(``double_backward.py``), in float32 without TF32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import double_backward
import torch
from cases import CG_ITERS, DAMPING, MAX_KL, Case, Size, case_of, double_policy
from torch import Tensor

from trpo_fast import TRPOOptimizer, _native, fisher_vector_product
from trpo_fast.backends.cuda import CudaProblem, refusal
from trpo_fast.batch import BatchReader, fused_batch
from trpo_fast.flat import FlatParameters
from trpo_fast.network import Network, network_of
from trpo_fast.options import Options

SIZES = (
    Size(2048, 17, 6, 64),
    Size(8192, 17, 6, 64),
    Size(100_000, 17, 6, 64),
    Size(2048, 376, 17, 64),
    Size(25_000, 17, 6, 128),
    Size(25_000, 17, 6, 1024),
)
WARM_UP = 3
SECONDS = 0.3  # of one measurement
# Relative error of a product; also the step's, which CG amplifies, times 100.
TOLERANCE = {"fp32": 3e-5, "tf32": 2**-10, "bf16": 2**-7, "bf16x3": 2**-15}


@dataclass(frozen=True)
class Line:
    """One measurement: microseconds, and how far the answer is from float64."""

    operation: str
    size: str
    contender: str
    kernel_us: float
    call_us: float
    error: float | None


def on_device(case: Case) -> Case:
    tensors = ("theta", "obs", "actions", "advantages", "log_prob", "vector", "gradient")
    moved = {name: getattr(case, name).cuda() for name in tensors}
    return replace(case, policy=deepcopy(case.policy).cuda(), **moved)


def times(call: Callable[[], object], reset: Callable[[], None]) -> tuple[float, float]:
    """Median microseconds of ``call``: between CUDA events, and on the wall."""
    for _ in range(WARM_UP):
        reset()
        call()
    kernel: list[float] = []
    wall: list[float] = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(wall) < 3:
        reset()
        torch.cuda.synchronize()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start = time.perf_counter()
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
        wall.append((time.perf_counter() - start) * 1e6)
        kernel.append(first.elapsed_time(last) * 1e3)
    return statistics.median(kernel), statistics.median(wall)


def error_of(found: Tensor, exact: Tensor, tolerance: float) -> float:
    error = float((found.double() - exact).norm() / exact.norm())
    if not error <= tolerance:
        raise SystemExit(f"wrong answer: relative error {error:.3g}, allowed {tolerance:.3g}")
    return error


def problem_of(case: Case, precision: str = "fp32") -> CudaProblem | None:
    """The case on the CUDA backend; None where it does not serve it on this device."""
    parameters = FlatParameters(list(case.policy.parameters()), [])
    reader = BatchReader(case.obs, None, dtype=torch.float32, device=case.obs.device)
    batch = reader.batch(case.actions, case.advantages, case.log_prob, None)
    network = network_of(case.policy)
    assert isinstance(network, Network)
    fused = fused_batch(batch, network.head, case.size.obs, torch.float32)
    options = Options(precision=precision)
    if refusal(network, fused, options) is not None:
        return None
    return CudaProblem(network, parameters, fused, options)


def reset_of(case: Case) -> Callable[[], None]:
    def reset() -> None:
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(case.theta, case.policy.parameters())

    return reset


def product_lines(case: Case) -> list[Line]:
    exact = fisher_vector_product(
        double_policy(case, case.theta.cpu()).cuda(),
        case.obs.double(),
        case.vector.double(),
        backend="reference",
    )
    calls: dict[str, Callable[[], Tensor]] = {}
    for precision in TOLERANCE:
        problem = problem_of(case, precision)
        if problem is not None:
            calls[f"trpo_fast cuda {precision}"] = partial(problem.fisher_product, case.vector)
    calls["trpo_fast reference"] = lambda: fisher_vector_product(
        case.policy, case.obs, case.vector, backend="reference"
    )
    torch_product = double_backward.fisher(case)
    calls["torch double backward"] = lambda: torch_product(case.vector) - DAMPING * case.vector
    lines = []
    for name, call in calls.items():
        error = error_of(call(), exact, tolerance_of(name))
        lines.append(Line("product", str(case.size), name, *times(call, lambda: None), error))
    return lines


def tolerance_of(contender: str) -> float:
    return TOLERANCE.get(contender.rsplit(" ", 1)[-1], TOLERANCE["fp32"])


def update_lines(case: Case) -> list[Line]:
    reset = reset_of(case)

    def ours(backend: str, precision: str = "fp32") -> Callable[[], object]:
        optimizer = TRPOOptimizer(
            case.policy,
            max_kl=MAX_KL,
            damping=DAMPING,
            cg_iters=CG_ITERS,
            cg_tol=0.0,
            preconditioner="none",
            precision=precision,
            backend=backend,
        )
        return lambda: optimizer.step(
            obs=case.obs,
            actions=case.actions,
            advantages=case.advantages,
            old_log_prob=case.log_prob,
        )

    calls: dict[str, Callable[[], object]] = {}
    for precision in TOLERANCE:
        if problem_of(case, precision) is not None:
            calls[f"trpo_fast cuda {precision}"] = ours("cuda", precision)
    calls["trpo_fast reference"] = ours("reference")
    calls["torch double backward"] = lambda: double_backward.update(case)
    reset()
    ours("reference")()
    flat = torch.nn.utils.parameters_to_vector
    exact = flat(case.policy.parameters()).detach().double() - case.theta.double()
    lines = []
    for name, call in calls.items():
        reset()
        call()
        step = flat(case.policy.parameters()).detach() - case.theta
        error = error_of(step, exact, 100 * tolerance_of(name))
        lines.append(Line("update", str(case.size), name, *times(call, reset), error))
    reset()
    return lines


def show(lines: list[Line]) -> None:
    print(
        f"{'operation':<9} {'size':<18} {'contender':<22} {'kernel us':>10} {'call us':>10} error"
    )
    slowest = {(x.operation, x.size): x.call_us for x in lines if x.contender.startswith("torch")}
    for x in lines:
        ratio = slowest[x.operation, x.size] / x.call_us
        print(
            f"{x.operation:<9} {x.size:<18} {x.contender:<22} {x.kernel_us:>10.1f} "
            f"{x.call_us:>10.1f} {x.error:.1e}  {ratio:.1f}x"
        )


def main() -> None:
    """Measure every size and print the table last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="write the lines and the device as JSON")
    parser.add_argument("--rows-limit", type=int, help="leave out sizes with more rows")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device: nothing can be timed here")
    core, error = _native.cuda()
    if core is None:
        sys.exit(str(error))
    lines = []
    for size in SIZES:
        if args.rows_limit is not None and size.rows > args.rows_limit:
            continue
        case = on_device(case_of(size))
        lines += product_lines(case) + update_lines(case)
    properties = torch.cuda.get_device_properties(0)
    facts = {"device": properties.name, "torch": torch.__version__, **core.facts()}
    if args.out is not None:
        args.out.write_text(json.dumps({**facts, "lines": [asdict(x) for x in lines]}, indent=1))
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    show(lines)


if __name__ == "__main__":
    main()
