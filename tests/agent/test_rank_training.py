"""One training on several ranks: strict mode has the bits of one process, fast mode its sums.

Bound of the fast mode: the environments are stepped with the same noise, so that as long as the
parameters agree to rounding the rows do too. Two updates leave float32 parameters within 1e-4 of
their norm of each other (measured below 1e-5); later on an action on either side of a bound, or of
a category's share, sets them apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rank_agents import Training, trained
from rank_processes import run_ranks

STRICT = {"deterministic_ranks": True, "preconditioner": "kfac"}
TRAININGS = [
    Training("strict-discrete", "CartPole-v1", 20, STRICT),
    Training("strict-continuous", "Pendulum-v1", 20, {**STRICT, "rollout_steps": 250}),
    Training("strict-own-vector", "CartPole-v1", 3, STRICT, vector=(1, 7)),
    Training("fast-discrete", "CartPole-v1", 2, {"preconditioner": "kfac"}),
    Training("fast-continuous", "Pendulum-v1", 1),
    Training("fast-own-vector", "CartPole-v1", 2, vector=(1, 7)),
    Training("fast-twenty", "CartPole-v1", 20, {"preconditioner": "kfac"}),
]


@pytest.fixture(scope="module")
def ranks() -> list[list[dict[str, Any]]]:
    return run_ranks("rank_agents:run", 2, TRAININGS)


def found(ranks: list[list[dict[str, Any]]], name: str) -> tuple[Training, list[dict[str, Any]]]:
    place = [training.name for training in TRAININGS].index(name)
    return TRAININGS[place], [rank[place] for rank in ranks]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


LEARNT = ("policy", "value", "observations", "scale", "curvature")
COUNTED = ("timesteps", "episodes", "returns", "lengths")
NAMES = [training.name for training in TRAININGS]


@pytest.mark.parametrize("name", NAMES)
def test_all_ranks_end_with_the_same_bits(ranks: list[Any], name: str) -> None:
    _, (first, second) = found(ranks, name)
    assert not [part for part in (*LEARNT, *COUNTED) if not same(first[part], second[part])]


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("strict")])
def test_strict_ranks_end_with_the_bits_of_one_process(ranks: list[Any], name: str) -> None:
    training, (first, _) = found(ranks, name)
    one = trained(training, None)
    assert not [part for part in (*LEARNT, *COUNTED) if not same(first[part], one[part])]
    for ours, theirs in zip(first["figures"], one["figures"], strict=True):
        timed = ("time/", "ranks/")
        assert {k: v for k, v in ours.items() if not k.startswith(timed)} == {
            k: v for k, v in theirs.items() if not k.startswith(timed)
        }


@pytest.mark.parametrize("name", ["fast-discrete", "fast-continuous", "fast-own-vector"])
def test_fast_ranks_learn_as_one_process_does(ranks: list[Any], name: str) -> None:
    training, (first, _) = found(ranks, name)
    one = trained(training, None)
    for part in ("policy", "value"):
        apart = float((first[part] - one[part]).norm() / one[part].norm())
        assert apart < 1e-4
    assert same(first["lengths"], one["lengths"])
    for part in ("observations", "scale"):
        for name, value in one[part].items():
            assert first[part][name] == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert first["figures"][-1]["train/explained_variance"] == pytest.approx(
        one["figures"][-1]["train/explained_variance"], rel=1e-3, abs=1e-5
    )


def test_a_checkpoint_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    file = tmp_path / "saved.safetensors"
    whole = Training("whole", "CartPole-v1", 5, STRICT)
    run_ranks("rank_agents:run", 2, [Training("first", "CartPole-v1", 2, STRICT, save=file)])
    rest = Training("rest", "CartPole-v1", 3, load=file)
    one = trained(whole, None)
    for ended in (trained(rest, None), run_ranks("rank_agents:run", 3, [rest])[2][0]):
        assert not [part for part in (*LEARNT, *COUNTED) if not same(ended[part], one[part])]
