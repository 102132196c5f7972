"""Data-parallel steps: the same parameters on all ranks, and those of one process on all rows.

Bounds: a sum over ranks adds the same numbers as one process does, in another order. In float64 a
step then differs by some tens of units in the last place times the condition of the solve, which
for these problems is below 1e-9 of the step; what several updates make of that is below 1e-8.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from patience import PATIENCE
from rank_cases import Steps, made
from rank_processes import run_ranks

from trpo_fast import TRPO, TRPOOptimizer
from trpo_fast._native import kernels
from trpo_fast.base.errors import RankError
from trpo_fast.base.ranks import Ranks

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.base.errors.FallbackWarning")

KFAC = {"preconditioner": "kfac", "cg_iters": 4}
TWO = [
    *(
        Steps(f"{backend}-{case}", (13, 27), case, backend)
        for backend in ("cpu", "reference", "generic", "closure")
        for case in ("gaussian", "categorical_masked")
    ),
    Steps("cpu-squashed", (13, 27), "squashed_state_std"),
    Steps("cpu-weighted", (13, 27), "multi_categorical_masked", weighted=True),
    Steps("reference-weighted", (13, 27), "gaussian_state_std", "reference", weighted=True),
    Steps("generic-weighted", (13, 27), "gaussian", "generic", weighted=True),
    Steps("closure-weighted", (13, 27), "gaussian", "closure", weighted=True),
    Steps("cpu-joint", (13, 27), "joint_masked", weighted=True),
    Steps("cpu-none-here", (0, 40)),
    Steps("reference-none-here", (40, 0), backend="reference"),
    Steps("generic-none-here", (0, 40), "categorical_masked", "generic"),
    Steps("reference-joint-none-here", (0, 40), "joint_masked", "reference"),
    Steps("closure-none-here", (40, 0), "gaussian", "closure"),
    Steps("cpu-kfac", (13, 27), options=KFAC, updates=4),
    Steps("cpu-kfac-weighted", (13, 27), options=KFAC, weighted=True),
    Steps("cpu-kfac-none-here", (0, 40), "bernoulli", options=KFAC),
    Steps("reference-kfac", (13, 27), "categorical", "reference", KFAC, updates=4),
    Steps("cpu-diagonal", (13, 27), options={"preconditioner": "diagonal"}),
    Steps("cpu-penalty", (13, 27), options={"constraint": "penalty", "adaptive_beta": True}),
    Steps("generic-penalty", (13, 27), backend="generic", options={"constraint": "penalty"}),
    Steps("cpu-damped", (13, 27), options={"step_size": "damped", "adaptive_damping": True}),
    Steps("reference-fraction", (20, 20), backend="reference", options={"fisher_fraction": 0.5}),
    Steps("cpu-fraction", (20, 20), options={"fisher_fraction": 0.5}),
    Steps("closure-fraction", (20, 20), backend="closure", options={"fisher_fraction": 0.5}),
    Steps("cpu-relative", (13, 27), options={**KFAC, "relative_damping": True}),
    Steps("cpu-relative-plain", (0, 40), options={"relative_damping": True}),
    Steps("reference-relative", (13, 27), backend="reference", options={"relative_damping": True}),
    Steps("generic-relative", (13, 27), backend="generic", options={"relative_damping": True}),
    Steps("cpu-new-old", (13, 27), options={"kl_direction": "new_old"}),
    *(
        Steps(f"{backend}-twenty", (700, 1300), "gaussian", backend, more, False, 20, torch.float32)
        for backend, more in (("cpu", KFAC), ("reference", {}), ("generic", {}))
    ),
]
FOUR = [
    Steps("cpu-one-and-many", (1, 7, 0, 40), options=KFAC, updates=20, dtype=torch.float32),
    Steps("cpu-exact", (1, 7, 0, 40), options=KFAC),
    Steps("reference-exact", (1, 7, 0, 40), "categorical_masked", "reference", weighted=True),
    Steps("generic-exact", (1, 7, 0, 40), "gaussian", "generic"),
]


def bits(found: list[dict[str, Any]]) -> list[bytes]:
    return [update["theta"].numpy().tobytes() for update in found]


def check(case: Steps, found: list[list[dict[str, Any]]]) -> None:
    """What each rank found for a case."""
    first = found[0]
    for other in found[1:]:
        assert bits(other) == bits(first), case.name
    assert any(update["accepted"] for update in first), case.name
    if case.dtype is not torch.float64:
        return  # 20 updates in float32: what rounding grows into is no bound
    alone = made(case, None)
    for ours, one in zip(first, alone, strict=True):
        for name in ("status", "backtracks", "cg_iters"):
            assert ours[name] == one[name], case.name
        for name in ("kl", "loss_before", "loss_after", "gradient_norm", "expected_improvement"):
            assert ours[name] == pytest.approx(one[name], rel=1e-8, abs=1e-14), case.name
        step = (one["theta"] - alone[0]["theta"]).norm() + 1e-2
        assert float((ours["theta"] - one["theta"]).norm()) < 1e-8 * float(step), case.name


# One launch a test: processes take seconds to import torch.
@pytest.mark.parametrize(("cases", "count"), [(TWO, 2), (FOUR, 4)])
def test_ranks_make_the_steps_of_one_process(cases: list[Steps], count: int) -> None:
    ranks = run_ranks("rank_cases:run", count, cases)
    for index, case in enumerate(cases):
        check(case, [rank[index] for rank in ranks])


@pytest.mark.reliability("rank_faults")
@pytest.mark.reliability("rank_gone")
@pytest.mark.reliability("rank_versions")
def test_what_one_rank_refuses_steps_on_none() -> None:
    faults = run_ranks("rank_faults:faults", 4)
    for backend in ("cpu", "reference", "generic"):
        check_refused(faults, f"{backend} nan", "ValueError", "obs[0, 0] is nan")
        check_refused(faults, f"{backend} shape", "ValueError", "actions")
        for rank in faults:
            assert rank[f"{backend} infinite"] == ("non_finite", True)
            said, untouched = rank[f"{backend} options"]
            assert said.startswith("RankError: rank 1 would make another step than rank 0")
            assert untouched
            assert rank[f"{backend} parameters"] == ("RankError", True)
            assert rank[f"{backend} good"] == (True, True)
    check_refused(faults, "closure raises", "KeyError", "the second call")
    for rank in faults:
        assert rank["closure good"] == (True, True)
        assert rank["version"].startswith("RankError: rank ")
        assert "torch '1.13'" in rank["version"] or "not '1.13'" in rank["version"]
    for rank, found in enumerate(faults):
        if rank != 1:
            check_gone(found["dies"], PATIENCE / 2, rank, 4)  # its group's time-out is longer


def check_refused(faults: list[dict[str, Any]], name: str, error: str, word: str) -> None:
    """Rank 1 raises its own error, every other one that repeats it."""
    for rank, found in enumerate(faults):
        said, untouched = found[name]
        assert untouched
        told = "" if rank == 1 else "RankError: no rank made this step, because of rank 1: "
        assert said.startswith(told + error)
        assert word in said


def check_gone(
    found: tuple[str, float, bool], seconds: float, rank: int = 0, count: int = 2
) -> None:
    text, took, untouched = found
    assert text.startswith(f"RankError: rank {rank} of {count} lost the others")
    assert took < seconds
    assert untouched


@pytest.mark.reliability("rank_gone")
def test_a_rank_that_hangs_ends_the_others_in_time() -> None:
    seconds = 300.0  # that it sleeps; its group's time-out is 10
    found = run_ranks("rank_faults:hangs", 2, seconds, check=False, wait_for=[0])
    check_gone(found[0], seconds)


@pytest.mark.reliability("rank_gone")
def test_a_rank_interrupted_between_collectives_ends_the_others_at_once() -> None:
    found = run_ranks("rank_faults:interrupted", 2, check=False)
    check_gone(found[0], PATIENCE / 2)  # its group's time-out is longer
    assert "KeyboardInterrupt" in found[1]


def test_a_rank_without_a_group_is_told_once_that_it_trains_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def warned() -> list[str]:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            TRPOOptimizer(torch.nn.Linear(1, 1).parameters(), process_group=dist.group.WORLD)
            TRPOOptimizer(torch.nn.Linear(1, 1).parameters())
            TRPO("CartPole-v1", num_envs=1, process_group=dist.group.WORLD).close()
        return [f"{warning.filename}: {warning.message}" for warning in found]

    monkeypatch.setattr("trpo_fast.base.errors._said", set())
    assert not warned()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not warned()
    monkeypatch.setenv("WORLD_SIZE", "2")
    (text,) = warned()
    assert text.startswith(f"{__file__}: this process is rank 0 of 2, and without process_group")
    monkeypatch.setattr("trpo_fast.base.errors._said", set())
    monkeypatch.setattr(Ranks, "met", True)  # it knows of ranks: this is meant
    assert not warned()


def test_who_has_left_its_group_shares_with_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "met", False)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        ranks = Ranks(dist.group.WORLD)
        ranks.leave()
        # Without a group torch would take all processes.
        for share in (
            lambda: ranks.sum(torch.zeros(1)),
            lambda: ranks.gather_objects(1),
            lambda: ranks.from_first(lambda: 1),
            lambda: ranks.gather_to_first(1),
        ):
            with pytest.raises(RankError, match=r"rank 0 of 1 has left.*process_group"):
                share()
    finally:
        dist.destroy_process_group()


def test_ranks_that_round_otherwise_take_the_numbers_of_the_first() -> None:
    cases = [
        Steps("kfac", (13, 27), options=KFAC, dtype=torch.float32, updates=20),
        Steps("plain", (13, 27), "categorical", dtype=torch.float32, updates=20),
        Steps("reference", (13, 27), "bernoulli", "reference", KFAC, False, 5, torch.float32),
    ]
    isas = [{"TRPO_FAST_ISA": "baseline"}, {}]
    (alike, first), (_, second) = run_ranks("rank_faults:unlike", 2, cases, environments=isas)
    assert alike == (len(kernels.available_isas()) == 1)
    for ours, others in zip(first, second, strict=True):
        assert bits(ours) == bits(others)
        assert any(update["accepted"] for update in ours)
