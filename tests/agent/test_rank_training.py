"""One training on several ranks: strict mode has the bits of one process, fast mode its sums.

Bound of the fast mode: the environments are stepped with the same noise, so that as long as the
parameters agree to rounding the rows do too. Two updates leave float32 parameters within 1e-4 of
their norm of each other (measured below 1e-5); later on an action on either side of a bound, or of
a category's share, sets them apart.
"""

from __future__ import annotations

import math
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_agents import Training, trained
from rank_processes import run_ranks
from structured_cases import Picture, Pictures
from toy_environments import Sorting

from trpo_fast.runs.checkpoint import load_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")


def evaluated(every: int, envs: int) -> dict[str, int]:
    return {"eval_every": every, "eval_episodes": 2, "eval_envs": envs}


STRICT = {"deterministic_ranks": True, "preconditioner": "kfac"}
TRAININGS = [
    Training("strict-discrete", "CartPole-v1", 20, {**STRICT, **evaluated(800, 2)}),
    Training(
        "strict-continuous",
        "Pendulum-v1",
        20,
        {**STRICT, "rollout_steps": 250, **evaluated(8000, 0)},
    ),
    Training("strict-own-vector", "CartPole-v1", 3, STRICT, vector=(1, 7)),
    Training("fast-discrete", "CartPole-v1", 2, {"preconditioner": "kfac"}),
    Training("fast-continuous", "Pendulum-v1", 1),
    Training("fast-own-vector", "CartPole-v1", 2, vector=(1, 7)),
    Training("fast-wide", "CartPole-v1", 2, {"critic_batch_size": 16}, vector=(1, 7)),
    Training("fast-twenty", "CartPole-v1", 20, {"preconditioner": "kfac"}),
    Training("strict-hybrid", partial(Sorting, masked=True), 3, STRICT),
    Training("strict-beta", "Pendulum-v1", 3, {**STRICT, "distribution": "beta"}),
    Training("fast-hybrid", Sorting, 2),
    *(
        Training(f"{mode}-{name}", env, 1, {**options, **more})
        for mode, options in (("all", {"deterministic_ranks": True}), ("shared", {}))
        for name, env, more in (
            ("memory", "CartPole-v1", {"policy": "recurrent", "cell_size": 5}),
            ("images", Picture, {"policy": "cnn"}),
            ("nested", Pictures, {"policy": "recurrent", "cell": "gru", "cell_size": 5}),
        )
    ),
]


@pytest.fixture(scope="module")
def ranks() -> list[list[dict[str, Any]]]:
    return run_ranks("rank_agents:run", 2, TRAININGS)


def found(ranks: list[list[dict[str, Any]]], name: str) -> tuple[Training, list[dict[str, Any]]]:
    place = [training.name for training in TRAININGS].index(name)
    return TRAININGS[place], [rank[place] for rank in ranks]


@cache
def alone(name: str) -> dict[str, Any]:
    """What one process ends with."""
    return trained(TRAININGS[NAMES.index(name)], None)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


def close(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(
        float((a[part] - b[part]).norm() / b[part].norm()) < 1e-4 for part in ("policy", "value")
    )


LEARNT = ("policy", "value", "observations", "scale", "curvature")
COUNTED = ("timesteps", "episodes", "returns", "lengths")
NAMES = [training.name for training in TRAININGS]
FAST = ("fast-discrete", "fast-continuous", "fast-own-vector", "fast-wide")


@pytest.mark.parametrize("name", NAMES)
def test_all_ranks_end_with_the_same_bits(ranks: list[Any], name: str) -> None:
    _, (first, second) = found(ranks, name)
    assert not [part for part in (*LEARNT, *COUNTED) if not same(first[part], second[part])]


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("strict")])
def test_strict_ranks_end_with_the_bits_of_one_process(ranks: list[Any], name: str) -> None:
    _, (first, _) = found(ranks, name)
    one = alone(name)
    assert not [part for part in (*LEARNT, *COUNTED) if not same(first[part], one[part])]
    for ours, theirs in zip(first["figures"], one["figures"], strict=True):
        others = ("time/", "ranks/", "eval/")
        assert {k: v for k, v in ours.items() if not k.startswith(others)} == {
            k: v for k, v in theirs.items() if not k.startswith(others)
        }


@pytest.mark.parametrize(("name", "count"), [("strict-discrete", 5), ("strict-continuous", 3)])
def test_the_first_rank_evaluates_alone(ranks: list[Any], name: str, count: int) -> None:
    _, each = found(ranks, name)

    def scores(found: dict[str, Any]) -> list[float]:
        return [row["eval/mean_reward"] for row in found["figures"] if "eval/mean_reward" in row]

    assert [len(scores(rank)) for rank in each] == [count, 0]
    # In its own environments, which are fewer: torch rounds with their number.
    assert scores(each[0]) == pytest.approx(scores(alone(name)), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name in FAST])
def test_fast_ranks_learn_as_one_process_whose_critic_is_fitted_in_turn(
    ranks: list[Any], name: str
) -> None:
    training, (first, _) = found(ranks, name)
    one = trained(training, None, training.vector or (3, 2))
    assert close(first, one)
    assert same(first["lengths"], one["lengths"])
    for part in ("observations", "scale"):
        for name, value in one[part].items():
            assert first[part][name] == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert first["figures"][-1]["train/explained_variance"] == pytest.approx(
        one["figures"][-1]["train/explained_variance"], rel=1e-3, abs=1e-5
    )


def test_fast_ranks_learn_hybrid_actions_as_one_process_does(ranks: list[Any]) -> None:
    # A reward is float32, of numbers up to 1.
    training, (first, _) = found(ranks, "fast-hybrid")
    one = trained(training, None, (3, 2))
    assert close(first, one)
    assert same(first["lengths"], one["lengths"])
    assert first["returns"] == pytest.approx(one["returns"], rel=1e-5, abs=1e-5)


def test_a_rank_without_rows_goes_on_with_the_others_critic_and_none_with_half_a_fit() -> None:
    ranks = run_ranks("rank_agents:uneven_fits", 2)
    for rank, found in enumerate(ranks):
        assert found["collectives"] == 3  # its passes
        assert found["loss"] == pytest.approx(found["loss alone"], rel=1e-5)
        assert found["mask"] == [0.0, -math.inf]
        assert len(found["fitted"]) == len(found["left"]) > 1
        for ours, theirs in zip(found["fitted"], found["alone"], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert all(map(torch.equal, found["left"], ranks[0]["fitted"]))
        told = "" if rank == 1 else "RankError: no rank made this step, because of rank 1: "
        assert found["said"] == f"{told}KeyError: 'the second pass'"
        assert found["passes"] == 2


@pytest.mark.parametrize("name", ["memory", "images", "nested"])
def test_policies_that_draw_for_themselves_learn_from_the_sums_as_from_all_rows(
    ranks: list[Any], name: str
) -> None:
    _, (shared, _) = found(ranks, f"shared-{name}")
    _, (whole, _) = found(ranks, f"all-{name}")
    assert same(shared["lengths"], whole["lengths"])  # the same draws
    assert float((shared["policy"] - whole["policy"]).norm() / whole["policy"].norm()) < 1e-4
    for part in ("observations", "scale"):
        for number, value in whole[part].items():
            assert shared[part][number] == pytest.approx(value, rel=1e-9, abs=1e-12)
    for figure in ("train/explained_variance", "train/kl", "train/expected_improvement"):
        ours, theirs = (each["figures"][0][figure] for each in (shared, whole))
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_eight_ranks_train_on_fewer_cores() -> None:
    trainings = [
        Training("strict", "CartPole-v1", 20, {**STRICT, "num_envs": 9, "rollout_steps": 20}),
        Training("fast", "CartPole-v1", 20, {"num_envs": 9, "rollout_steps": 20}),
    ]
    ranks = run_ranks("rank_agents:run", 8, trainings)
    for place in range(len(trainings)):
        first, *others = (rank[place] for rank in ranks)
        for other in others:
            assert not [part for part in (*LEARNT, *COUNTED) if not same(first[part], other[part])]
    one = trained(trainings[0], None)
    assert not [part for part in (*LEARNT, *COUNTED) if not same(ranks[0][0][part], one[part])]


def test_a_checkpoint_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    file, hybrid, memory, again = (
        tmp_path / f"{name}.safetensors" for name in ("saved", "hybrid", "memory", "again")
    )
    recurrent = {"policy": "recurrent", "cell_size": 5}
    first = [
        Training("first", "CartPole-v1", 2, STRICT, save=file),
        Training("first", Sorting, 2, STRICT, save=hybrid),
        Training("first", "CartPole-v1", 1, recurrent, save=memory),
    ]
    run_ranks("rank_agents:run", 2, first)
    rest = [
        Training("rest", "CartPole-v1", 3, load=file),
        Training("rest", Sorting, 2, load=hybrid),
        Training("none", "CartPole-v1", 0, load=memory, save=again),
    ]
    ended, sorting, _ = run_ranks("rank_agents:run", 3, rest)[2]
    one = trained(Training("whole", "CartPole-v1", 5, STRICT), None)
    for found in (trained(rest[0], None), ended):
        assert not [part for part in (*LEARNT, *COUNTED) if not same(found[part], one[part])]
    one = trained(Training("whole", Sorting, 4, STRICT), None)
    assert not [part for part in (*LEARNT, *COUNTED) if not same(sorting[part], one[part])]
    saved, written = load_checkpoint(memory), load_checkpoint(again)
    assert len(saved["collector"]["memory"]) == len(saved["learner"]["memory"]["values"]) == 5
    for part in ("collector", "learner", "rng", "progress"):
        assert same(saved[part], written[part]), part


def test_what_ranks_do_not_serve_is_refused_on_each_and_rounding_told_by_the_first() -> None:
    cases = [
        ("tensor_environments:TensorPendulum", {"vectorization": "tensor"}),
        ("CartPole-v1", STRICT),
        (Sorting, STRICT),
        ("Pendulum-v1", {**STRICT, "distribution": "beta"}),
        ("CartPole-v1", {**STRICT, "policy": "recurrent"}),
        ("CartPole-v1", {"policy": "recurrent"}),
    ]
    for rank, found in enumerate(run_ranks("rank_agents:told", 2, cases)):
        tensor, *native, drawn_in_torch, fast = found
        assert "tensor environments" in tensor
        assert all("deterministic_ranks" not in each for each in (*native, fast))
        assert ("not with one process" in drawn_in_torch) == (rank == 0)
