"""The benchmarks on torch environments and of rsl_rl's updates, at sizes of a second."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import ROOT, script
from torch.distributions import Distribution

_CHECKS = Distribution._validate_args


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield lambda name: script(f"benchmarks/{name}.py", monkeypatch)
    Distribution.set_default_validate_args(_CHECKS)  # rsl_rl switches them off


def test_three_columns_of_steps_a_second(load: Any, tmp_path: Path, capsys: Any) -> None:
    throughput = load("tensor_throughput")
    throughput.SECONDS = 0.0
    out = tmp_path / "figures.json"
    throughput.main(["--envs", "64", "--hidden", "16", "8", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["path"] == "fused"
    assert list(found["steps_per_second"]) == list(throughput.COLUMNS)
    assert all(rate > 0 for rate in found["steps_per_second"].values())
    row = capsys.readouterr().out.splitlines()[-1]
    assert len(re.findall(r"[\d,]+ \|", row)) == 3


def test_a_training_rollout_trains(load: Any) -> None:
    throughput, device = load("tensor_throughput"), torch.device("cpu")
    loop = throughput.Loop(throughput.environment(64, device), (16,), device)
    before = [p.detach().clone() for p in loop.values.parameters()]
    loop.train()
    assert loop.optimizer.last_result.accepted
    moved = zip(before, loop.values.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in moved)


def test_the_loop_is_measured_beside_the_environments_steps(load: Any, capsys: Any) -> None:
    load("tensor_rollouts").main(["Pendulum", "--envs", "64", "--seconds", "0.2"])
    told = capsys.readouterr().out
    assert re.search(r"environments [\d.]+ s, loop [\d.]+ s, [\d.]+ times as long", told)
    assert "over 100 episodes" in told


def test_updates_of_large_batches_are_compared(load: Any, capsys: Any) -> None:
    pytest.importorskip("rsl_rl", reason="rsl-rl-lib is not installed: pip install '.[test]'")
    large = load("large_batches")
    small = ["--envs", "32", "--steps", "4", "--hidden", "8", "--observations", "6"]
    large.main([*small, "--turns", "1", "--minibatches", "2"])
    printed = capsys.readouterr().out.splitlines()
    observations, *figures = (cell.strip() for cell in printed[2].strip("|").split("|"))
    assert observations == "6"
    assert [figure[-1] for figure in figures] == ["s", "s", "x", "s", "x"]
    assert "path fused" in printed[3]


def test_part_of_ppos_minibatches_stands_for_all(load: Any) -> None:
    pytest.importorskip("rsl_rl", reason="rsl-rl-lib is not installed: pip install '.[test]'")
    large = load("large_batches")
    made = large.algorithm(large.THEIRS, 8, 4, 5, [8])
    counted: list[int] = []
    step = made.optimizer.step
    made.optimizer.step = lambda *given: (counted.append(1), step(*given))[1]
    large.ppo_seconds(made, 3)
    assert len(counted) == 3
    assert made.storage.step == 4


def test_samples_to_a_score_in_rsl_rls_runner(load: Any, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("rsl_rl", reason="rsl-rl-lib is not installed: pip install '.[test]'")
    learning = load("rsl_rl_learning")
    out = tmp_path / "runs.json"
    learning.main(
        ["--seeds", "1", "--envs", "8", "--iterations", "3", "--environments", "CartPole",
         "--out", str(out)]
    )  # fmt: skip
    runs = json.loads(out.read_text())
    assert [run["algorithm"] for run in runs] == [learning.THEIRS, learning.OURS]
    assert all(len(run["scores"]) == 3 for run in runs)
    assert "| inf | - |" in capsys.readouterr().out
    assert [run["samples_to_score"] for run in runs] == [None, None]
    # Eight environments of three rollouts have ended some episode of CartPole, and so reach this.
    learning.SCORES["CartPole"] = 1.0
    run = learning.trained(learning.OURS, "CartPole", 0, 3, 8, **learning.entries_of(["lam=0.9"]))
    assert run["samples_to_score"] == 8 * 24 * len(run["scores"]) <= 8 * 24 * 3
    assert f"| {run['samples_to_score']:,} |" in learning.table([run])
