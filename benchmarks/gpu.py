"""Times the CUDA backend beside torch on the same device, after checking its answers.

    python benchmarks/gpu.py [--only N] [--out FILE.json]   measure all sizes, or the Nth
    python benchmarks/gpu.py --show FILE.json ...           one table of what was measured
    python benchmarks/gpu.py --dry-run                      the same steps on the CPU, one tiny size

Every line is one operation at one size, in one process: microseconds as the median of repeated
calls. "kernel" is between CUDA events: of a product the device's own time; an update waits for the
device in between, so that parts of the host's checks are in. "call" is the wall clock around the
Python call with a synchronisation, checks included. The peer is torch.autograd twice through the
mean KL (``double_backward.py``), in float32 without TF32. What fails is a line too, and the rest
goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import double_backward
import torch
from cases import CG_ITERS, DAMPING, MAX_KL, Case, Size, case_of, double_policy
from torch import Tensor

from trpo_fast import TRPOOptimizer, _native, fisher_vector_product
from trpo_fast.backends.registry import ANALYTIC
from trpo_fast.networks.network import Network
from trpo_fast.optimizer.batch_reader import BatchReader, fused_batch
from trpo_fast.recognition.recognizer import network_of
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters

# What matters most comes first: time may run out.
SIZES = (
    Size(100_000, 17, 6, 64),
    Size(2048, 17, 6, 64),
    Size(25_000, 17, 6, 1024),
    Size(25_000, 17, 6, 128),
    Size(2048, 376, 17, 64),
    Size(8192, 17, 6, 64),
)
DRY_SIZE = Size(500, 11, 3, 32)
PAUSE_CYCLES = 1_000_000  # half a millisecond, more than a launch takes the host
SECONDS = 0.2  # of one measurement, of its warm-up, and of that by events
# Relative error of a product; also the step's, which CG amplifies, times 100.
TOLERANCE = {"fp32": 3e-5, "tf32": 2**-10, "bf16": 2**-7, "bf16x3": 2**-15}
TORCH = "torch double backward"
FAILURES = (RuntimeError, ValueError, TypeError)  # torch's own are RuntimeErrors


@dataclass(frozen=True)
class Line:
    """One measurement: microseconds, and how far the answer is from float64; or why there is none.

    ``kernel_us`` is None where no CUDA events are.
    """

    operation: str
    size: str
    contender: str
    kernel_us: float | None = None
    call_us: float | None = None
    error: float | None = None
    failure: str | None = None


def on_device(case: Case, device: torch.device) -> Case:
    tensors = ("theta", "obs", "actions", "advantages", "log_prob", "vector", "gradient")
    moved = {name: getattr(case, name).to(device) for name in tensors}
    return replace(case, policy=deepcopy(case.policy).to(device), **moved)


def times(
    call: Callable[[], object], reset: Callable[[], None], cuda: bool
) -> tuple[float | None, float]:
    """Median microseconds of ``call``: between CUDA events, and on the wall."""

    def prepared() -> None:
        reset()
        if cuda:
            torch.cuda.synchronize()

    def on_the_wall() -> float:
        prepared()
        start = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e6

    def between_events() -> float:
        prepared()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # The device waits, so that the events do not measure how long the host takes to launch.
        torch.cuda._sleep(PAUSE_CYCLES)
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
        return float(first.elapsed_time(last)) * 1e3

    for _ in repeats():  # an idle device also has to raise its clocks
        on_the_wall()
    wall = [on_the_wall() for _ in repeats()]
    kernel = [between_events() for _ in repeats()] if cuda else []
    return statistics.median(kernel) if cuda else None, statistics.median(wall)


def repeats() -> Iterator[None]:
    """As many turns as ``SECONDS`` have room for, and three at least."""
    end = time.perf_counter() + SECONDS
    turns = 0
    while turns < 3 or time.perf_counter() < end:
        turns += 1
        yield


def measured(
    line: Line,
    call: Callable[[], object],
    reset: Callable[[], None],
    error_of: Callable[[], float],
    cuda: bool,
) -> Line:
    """``line`` with its figures, a wrong answer's too; or with what failed.

    ``error_of`` makes one call and compares.
    """
    allowed = TOLERANCE.get(line.contender.rsplit(" ", 1)[-1], TOLERANCE["fp32"])
    if line.operation == "update":
        allowed *= 100
    try:
        reset()
        error = error_of()
        kernel, wall = times(call, reset, cuda)
    except FAILURES as failure:
        return replace(line, failure=in_words(failure))
    wrong = None
    if not error <= allowed:
        wrong = f"wrong answer: relative error {error:.3g}, allowed {allowed:.3g}"
    return replace(line, kernel_us=kernel, call_us=wall, error=error, failure=wrong)


def in_words(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}".splitlines()[0]


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def problem_of(case: Case, precision: str = "fp32") -> Any:
    """The case on its device's native backend.

    Raises:
        ValueError: that does not serve it.
    """
    parameters = FlatParameters(list(case.policy.parameters()), [])
    reader = BatchReader(case.obs, None, dtype=torch.float32, device=case.obs.device)
    batch = reader.batch(case.actions, case.advantages, case.log_prob, None)
    network = network_of(case.policy)
    assert isinstance(network, Network)
    fused = fused_batch(batch, network.head, case.size.obs, torch.float32)
    options = Options(precision=precision)
    backend = ANALYTIC[backend_of(case)]
    refusal = backend.refusal(network, fused, options)
    if refusal is not None:
        raise ValueError(refusal)
    return backend.problem(network, parameters, fused, options)


def served(case: Case) -> dict[str, str]:
    """The precisions, each with its contender's name; on the CPU without those it refuses."""
    found = {}
    for precision in TOLERANCE:
        if not case.obs.is_cuda:
            try:
                problem_of(case, precision)
            except ValueError:
                continue
        found[precision] = f"trpo_fast {backend_of(case)} {precision}"
    return found


def backend_of(case: Case) -> str:
    return case.obs.device.type


def product_lines(case: Case) -> Iterator[Line]:
    exact = fisher_vector_product(
        double_policy(case, case.theta.cpu()).to(case.obs.device),
        case.obs.double(),
        case.vector.double(),
        backend="reference",
    )
    torch_product = double_backward.fisher(case)
    # The peers first: a kernel that breaks the context takes what follows with it.
    calls: dict[str, Callable[[], Tensor]] = {
        TORCH: lambda: torch_product(case.vector) - DAMPING * case.vector,
        "trpo_fast reference": lambda: fisher_vector_product(
            case.policy, case.obs, case.vector, backend="reference"
        ),
    }
    for precision, name in served(case).items():
        calls[name] = product_of(case, precision)

    def error(call: Callable[[], Tensor]) -> float:
        return relative_error(call(), exact)

    for name, call in calls.items():
        yield measured(
            Line("product", str(case.size), name),
            call,
            lambda: None,
            partial(error, call),
            case.obs.is_cuda,
        )


def product_of(case: Case, precision: str) -> Callable[[], Tensor]:
    """A product with one problem, made at the first call."""
    problem = cache(partial(problem_of, case, precision))
    return lambda: problem().fisher_product(case.vector)


def stepper(case: Case, backend: str, precision: str = "fp32") -> Callable[[], object]:
    """One update of the case's policy."""
    optimizer = TRPOOptimizer(
        case.policy,
        max_kl=MAX_KL,
        damping=DAMPING,
        cg_iters=CG_ITERS,
        cg_tol=0.0,
        preconditioner="none",
        precision=precision,
        step_size="damped",
        backend=backend,
    )
    return lambda: optimizer.step(
        obs=case.obs,
        actions=case.actions,
        advantages=case.advantages,
        old_log_prob=case.log_prob,
    )


def update_lines(case: Case) -> Iterator[Line]:
    def reset() -> None:
        # Not vector_to_parameters: it makes the parameters views of theta.
        parameters = list(case.policy.parameters())
        with torch.no_grad():
            parts = case.theta.split([p.numel() for p in parameters])
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.copy_(part.view_as(parameter))

    def step(call: Callable[[], object]) -> Tensor:
        reset()
        call()
        moved = torch.nn.utils.parameters_to_vector(case.policy.parameters()).detach()
        return moved.double() - case.theta.double()

    calls: dict[str, Callable[[], object]] = {
        TORCH: lambda: double_backward.update(case),
        "trpo_fast reference": stepper(case, "reference"),
    }
    for precision, name in served(case).items():
        calls[name] = stepper(case, backend_of(case), precision)
    exact = step(calls["trpo_fast reference"])

    def error(call: Callable[[], object]) -> float:
        return relative_error(step(call), exact)

    for name, call in calls.items():
        yield measured(
            Line("update", str(case.size), name),
            call,
            reset,
            partial(error, call),
            case.obs.is_cuda,
        )
    reset()


def lines_of(size: Size, device: torch.device) -> Iterator[Line]:
    """Both operations at one size; a size that cannot even be prepared is a line."""
    try:
        case = on_device(case_of(size), device)
        yield from product_lines(case)
        yield from update_lines(case)
    except FAILURES as failure:
        yield Line("all", str(size), "preparation", failure=in_words(failure))


def save(path: Path, facts: dict[str, Any], lines: list[Line]) -> None:
    whole = path.with_suffix(".part")  # a process that is ended here leaves the file before
    whole.write_text(json.dumps({**facts, "lines": [asdict(x) for x in lines]}, indent=1))
    whole.replace(path)


def show(lines: list[Line]) -> None:
    print(
        f"{'operation':<9} {'size':<18} {'contender':<22} {'kernel us':>10} {'call us':>10} "
        f"{'error':>8}  beside torch"
    )
    torch_us = {(x.operation, x.size): x.call_us for x in lines if x.contender == TORCH}
    for x in lines:
        start = f"{x.operation:<9} {x.size:<18} {x.contender:<22}"
        if x.call_us is None:
            print(f"{start} {x.failure}")
            continue
        kernel = "" if x.kernel_us is None else f"{x.kernel_us:.1f}"
        peer = torch_us.get((x.operation, x.size))
        ratio = "" if peer is None else f"{peer / x.call_us:.1f}x"
        wrong = "" if x.failure is None else f"  {x.failure}"
        print(f"{start} {kernel:>10} {x.call_us:>10.1f} {x.error:>8.1e}  {ratio}{wrong}")


def read(paths: list[Path]) -> tuple[dict[str, Any], list[Line]]:
    """The facts of the first file and the lines of all; a file that is missing counts for none."""
    found = [json.loads(path.read_text()) for path in paths if path.exists()]
    lines = [Line(**line) for one in found for line in one.pop("lines")]
    return (found[0] if found else {}), lines


def facts_of(device: torch.device) -> dict[str, Any]:
    core = _native.cuda()[0]
    name = torch.cuda.get_device_properties(0).name if device.type == "cuda" else "dry run, no GPU"
    return {"device": name, "torch": torch.__version__, **({} if core is None else core.facts())}


def main(arguments: list[str] | None = None) -> int:
    """Measure, or show what was measured; 1 where a line failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="write the lines and the device as JSON")
    parser.add_argument("--only", type=int, choices=range(len(SIZES)), help="one of the sizes")
    parser.add_argument("--show", type=Path, nargs="*", help="measure nothing: a table of files")
    parser.add_argument("--dry-run", action="store_true", help="a tiny size on the CPU")
    args = parser.parse_args(arguments)
    if args.show is not None:
        facts, lines = read(args.show)
    else:
        device = torch.device("cpu" if args.dry_run else "cuda")
        if not args.dry_run and not torch.cuda.is_available():
            sys.exit("torch finds no CUDA device: nothing can be timed here; --dry-run needs none")
        if not args.dry_run and _native.cuda()[0] is None:
            sys.exit(str(_native.cuda()[1]))
        chosen = SIZES if args.only is None else (SIZES[args.only],)
        sizes = (DRY_SIZE,) if args.dry_run else chosen
        facts, lines = facts_of(device), []
        for size in sizes:
            for line in lines_of(size, device):
                lines.append(line)
                if args.out is not None:  # after each: the next one may hang
                    save(args.out, facts, lines)
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    show(lines)
    return int(not lines or any(line.failure for line in lines))


if __name__ == "__main__":
    sys.exit(main())
