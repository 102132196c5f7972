"""What K-FAC's own choices do to a step's quality Q, without a clock.

    python benchmarks/factor_quality.py

On batches of real training runs (rollouts.py) it prints Q (step_quality.py) after some
preconditioned iterations for other numbers of rows in the factors, an older G, a share of the rows
in the Fisher matrix (`fisher_fraction`), factored damping instead of eigenbases, precisions and
dampings, beside ten plain iterations. An older G is that of the policy some updates on the same
batch before. `--only TEXT` takes the runs of that name.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from cases import CG_ITERS, DAMPING, MAX_KL
from rollouts import RUNS, Sample, samples_of
from step_quality import Quality, case_of, title
from torch import Tensor

from trpo_fast import TRPOOptimizer, natural_gradient
from trpo_fast.preconditioning import curvature, kfac
from trpo_fast.preconditioning.cost import INPUT_ROWS, OUTPUT_ROWS
from trpo_fast.preconditioning.curvature import Curvature

ITERATIONS = (1, 2, 3, 4, 5)
ALL = 1 << 30
WIDE = 256  # wider layers have no eigenbases to do without


@dataclass(frozen=True)
class Choice:
    """Options of the solve, and rows of the factors."""

    label: str
    options: dict[str, Any] = field(default_factory=dict)
    input_rows: int = INPUT_ROWS
    output_rows: int = OUTPUT_ROWS


CHOICES = (
    Choice("as it is"),
    *(Choice(f"A of {n} rows", input_rows=n) for n in (1024, 2048, 4096)),
    Choice("A of all rows", input_rows=ALL),
    *(Choice(f"G of {n} rows", output_rows=n) for n in (256, 1024, 2048, 4096)),
    *(Choice(f"fisher_fraction={f}", {"fisher_fraction": f}) for f in (0.75, 0.5, 0.25)),
    *(Choice(p, {"precision": p}) for p in ("fp32", "bf16")),
)
AGES = (1, 2, 5)
DAMPINGS = (0.01, 0.03)


def direction(sample: Sample, g: Tensor, **options: Any) -> Tensor:
    options = {"damping": DAMPING, "cg_tol": 0.0, "preconditioner": "kfac", **options}
    return natural_gradient(sample.policy, sample.obs, g, **options)[0]


def print_row(label: str, sample: Sample, g: Tensor, quality: Quality, **options: Any) -> None:
    found = [quality(direction(sample, g, cg_iters=n, **options)) for n in ITERATIONS]
    print(f"  {label:<24}" + "".join(f"{q:8.4f}" for q in found), flush=True)


@contextlib.contextmanager
def kept_statistics(kept: Curvature) -> Iterator[None]:
    """Every solve uses this one's G, whatever its age."""
    with (
        mock.patch("trpo_fast.optimizer.functional.Curvature", return_value=kept),
        mock.patch.object(curvature, "refresh_interval", return_value=ALL),
    ):
        yield


def print_choices(sample: Sample) -> None:
    g, quality = case_of(sample).gradient, Quality(sample)
    plain = direction(sample, g, preconditioner="none", cg_iters=CG_ITERS)
    print(f"  {f'plain CG, {CG_ITERS} iterations':<24}{quality(plain):8.4f}")
    for choice in CHOICES:
        with (
            mock.patch.object(curvature, "INPUT_ROWS", choice.input_rows),
            mock.patch.object(curvature, "OUTPUT_ROWS", choice.output_rows),
        ):
            print_row(choice.label, sample, g, quality, **choice.options)
    if max(sample.run.hidden) <= WIDE:
        with mock.patch.object(kfac, "EIGEN_WIDTH", 0):
            print_row("factored damping", sample, g, quality)


def print_ages(sample: Sample) -> None:
    """Q at the policy some updates later, G from before them and new."""
    kept = Curvature({})
    optimizer = TRPOOptimizer(sample.policy, max_kl=MAX_KL, damping=DAMPING, step_size="damped")
    with kept_statistics(kept):
        direction(sample, case_of(sample).gradient, cg_iters=1)
    for age in range(1, max(AGES) + 1):
        optimizer.step(obs=sample.obs, actions=sample.actions, advantages=sample.advantages)
        if age not in AGES:
            continue
        g, quality = case_of(sample).gradient, Quality(sample)
        with kept_statistics(kept):
            print_row(f"G {age} updates old", sample, g, quality)
        print_row("  a new G there", sample, g, quality)


def print_dampings(sample: Sample) -> None:
    g = case_of(sample).gradient
    for damping in DAMPINGS:
        quality = Quality(sample, damping)
        options = {"damping": damping, "cg_iters": CG_ITERS}
        plain = quality(direction(sample, g, preconditioner="none", **options))
        print_row(f"damping {damping}", sample, g, quality, damping=damping)
        print(f"  {f'  plain CG, {CG_ITERS} iterations':<24}{plain:8.4f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="TEXT", default="", help="runs of this name")
    options = parser.parse_args(arguments)
    for run in (run for run in RUNS if options.only in run.path.name):
        for sample in samples_of(run):
            heads = "".join(f"{n:>8}" for n in ITERATIONS)
            print(f"{title(run, sample.update):<26}\n  {'iterations':<24}{heads}")
            print_choices(sample)
            print_dampings(sample)
            print_ages(sample)  # last: it moves the policy


if __name__ == "__main__":
    main()
