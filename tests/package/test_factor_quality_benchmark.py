"""The table of K-FAC's own choices is made: what its script patches is there, and is used."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces

from trpo_fast import MlpPolicy
from trpo_fast.preconditioning.cost import REFRESH
from trpo_fast.preconditioning.curvature import AGE

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ROWS = 256


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("sb3_contrib")
    pytest.importorskip("tianshou")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("factor_quality")


def sample_of(kind: Any) -> Any:
    torch.manual_seed(0)
    run = sys.modules[kind.__module__].Run("Toy", ROWS, (1,), hidden=(8, 8), num_envs=1)
    policy = MlpPolicy(spaces.Box(-9, 9, (5,)), spaces.Box(-1, 1, (2,)), run.hidden)
    obs = torch.randn(ROWS, 5)
    actions = policy(obs).sample()
    return kind(run, 1, policy, obs, actions, obs[:, 0] * actions[:, 0])


def test_every_choice_has_its_own_figures(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    sample = sample_of(script.Sample)
    monkeypatch.setattr(script, "RUNS", [sample.run])
    monkeypatch.setattr(script, "samples_of", lambda _: [sample])
    few = script.Choice("few in A", input_rows=8), script.Choice("few in G", output_rows=8)
    monkeypatch.setattr(script, "CHOICES", (*script.CHOICES, *few))
    script.main([])
    lines = capsys.readouterr().out.splitlines()
    count = len(script.ITERATIONS)
    table = {" ".join(row[:-count]): row[-count:] for row in map(str.split, lines)}
    assert table["A of all rows"] == table["as it is"]  # it takes all of so few
    for label in ("few in A", "few in G", "fisher_fraction=0.25", "factored damping"):
        assert table[label] != table["as it is"], label
    assert table["G 5 updates old"] != table["a new G there"]


def test_kept_statistics_grow_old(script: Any) -> None:
    sample, kept, solves = sample_of(script.Sample), script.Curvature({}), REFRESH + 2
    g = torch.ones(sum(p.numel() for p in sample.policy.parameters()))
    with script.kept_statistics(kept):
        for _ in range(solves):
            script.direction(sample, g, cg_iters=1)
    assert {entry[AGE] for entry in kept.state.values()} == {solves}
