"""Where a policy update's time goes, part by part, each alone and warm.

    python benchmarks/update_parts.py

On batches of real training runs (rollouts.py) it times the gradient, a Fisher product in each
precision, one candidate of the line search, K-FAC's factors and what is made of them, and a whole
step of the optimizer. TRPO_FAST_ISA forces a lower instruction set. `--only TEXT` takes the runs of
that name.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch
from cases import DAMPING, MAX_KL
from rollouts import RUNS, Sample, samples_of
from step_quality import title
from update_quality import TARGETS

from trpo_fast import TRPOOptimizer
from trpo_fast.backends.cpu.problem import CpuProblem
from trpo_fast.networks.network import Network
from trpo_fast.optimizer.batch_reader import BatchReader
from trpo_fast.preconditioning.cost import INPUT_ROWS, OUTPUT_ROWS
from trpo_fast.preconditioning.curvature import Curvature
from trpo_fast.preconditioning.preconditioner import places_of
from trpo_fast.recognition.recognizer import network_of
from trpo_fast.update.batch import Batch
from trpo_fast.update.options import Options
from trpo_fast.update.parameters import FlatParameters

ROUNDS = 30
SECONDS = 2.0
PRECISIONS = ("fp32", "bf16", "bf16x3")


def milliseconds(call: Callable[[], object]) -> float:
    """The median of some calls after one."""
    call()
    taken: list[float] = []
    while len(taken) < ROUNDS and sum(taken) < SECONDS:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return 1e3 * median(taken)


def problem_of(sample: Sample, precision: str) -> tuple[CpuProblem, Network, Batch, Options]:
    network = network_of(sample.policy)
    assert isinstance(network, Network)
    parameters = FlatParameters(
        list(sample.policy.parameters()), [name for name, _ in sample.policy.named_parameters()]
    )
    reader = BatchReader(sample.obs, None, dtype=parameters.dtype, device=parameters.device)
    batch = reader.batch(sample.actions, sample.advantages, None, None)
    options = Options(preconditioner="kfac", precision=precision, damping=DAMPING)
    return CpuProblem(network, parameters, batch, options), network, batch, options


def parts(sample: Sample) -> dict[str, float]:
    """Milliseconds by name."""
    found: dict[str, float] = {}
    for precision in PRECISIONS:
        problem, *_ = problem_of(sample, precision)
        v = torch.randn_like(problem.surrogate_gradient()[1])
        found[f"product, {precision}"] = milliseconds(partial(problem.fisher_product, v))
    problem, network, batch, options = problem_of(sample, "auto")
    places = places_of(network, problem.parameters)
    found["gradient"] = milliseconds(problem.surrogate_gradient)
    moved = problem.parameters.start * 1.001
    found["one candidate"] = milliseconds(lambda: problem.evaluate(moved))
    found["A"] = milliseconds(lambda: problem.input_moments(places, INPUT_ROWS))
    found["G"] = milliseconds(lambda: problem.output_moments(places, OUTPUT_ROWS))
    made = milliseconds(
        lambda: Curvature().preconditioner("kfac", network, problem, batch, options.damping)
    )
    found["eigenbases or inverses"] = made - found["A"] - found["G"]
    found["whole step, 4 iterations"] = step_milliseconds(sample)
    return found


def step_milliseconds(sample: Sample) -> float:
    theta = torch.nn.utils.parameters_to_vector(sample.policy.parameters()).detach().clone()
    optimizer = TRPOOptimizer(
        sample.policy,
        max_kl=MAX_KL,
        damping=DAMPING,
        preconditioner="kfac",
        cg_iters=4,
        cg_tol=0.0,
        cg_progress_tol=0.0,
    )

    def step() -> None:
        optimizer.step(obs=sample.obs, actions=sample.actions, advantages=sample.advantages)
        torch.nn.utils.vector_to_parameters(theta.clone(), sample.policy.parameters())

    return milliseconds(step)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the parts of every batch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="TEXT", default="", help="runs of this name")
    options = parser.parse_args(arguments)
    for run in RUNS:
        if not run.path.name.startswith(TARGETS) or options.only not in run.path.name:
            continue
        sample = samples_of(run)[-1]
        print(title(run, sample.update))
        for name, taken in parts(sample).items():
            print(f"  {name:<26}{taken:9.2f} ms", flush=True)


if __name__ == "__main__":
    main()
