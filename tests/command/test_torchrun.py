"""``torchrun -m trpo_fast train``: one run of several ranks, and ranks that are killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import PATIENCE
from rank_processes import run_ranks
from training_process import TINY, train

from trpo_fast.runs.directory import RunDirectory
from trpo_fast.runs.logger import read_progress

TESTS = Path(__file__).parents[1]
STRICT = ("--deterministic-ranks", "--save-every", "1", "--seed", "5")


def torchrun(
    count: int, directory: Path, steps: int, *arguments: str, env: str, restarts: int = 0
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), "--max-restarts", str(restarts)]
    command += ["-m", "trpo_fast", "train", env, *TINY, *arguments]
    return subprocess.run(
        [*command, "--total-steps", str(steps), "--run-dir", str(directory)],
        env=os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def weights(directory: Path) -> dict[str, torch.Tensor]:
    found = RunDirectory(directory).latest()
    assert found is not None
    learner: Any = found[1]["learner"]
    return {
        f"{module}.{name}": value
        for module in ("policy", "value_function")
        for name, value in learner[module].items()
    }


@pytest.mark.slow
@pytest.mark.reliability("rank_restart")
def test_a_run_whose_rank_is_killed_ends_with_the_weights_of_one_process(tmp_path: Path) -> None:
    env, steps = "dying_rank:Dying-v0", 64 * 6
    marker = ("--env-kwargs", f"marker={json.dumps(str(tmp_path / 'died'))}")
    run = torchrun(2, tmp_path / "ranks", steps, *STRICT, *marker, env=env, restarts=3)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "died").exists()
    assert "going on from" in run.stdout
    assert run.stdout.count("2 ranks by gloo, 1 environments") == 2  # of rank 0, before and after
    assert train(tmp_path / "one", steps, *STRICT, *marker, env=env) == 0
    ranks, one = weights(tmp_path / "ranks"), weights(tmp_path / "one")
    assert ranks.keys() == one.keys()
    assert all(torch.equal(ranks[name], one[name]) for name in one)
    rows = read_progress(tmp_path / "ranks" / "progress.csv")
    assert [int(row["time/total_timesteps"]) for row in rows] == [64 * n for n in range(1, 7)]
    assert all(float(row[f"ranks/{name}"]) > 0 for row in rows for name in ("collectives", "bytes"))


def test_runs_of_several_seeds_are_refused_on_ranks(tmp_path: Path) -> None:
    place = tmp_path / "runs"
    command = ["train", "CartPole-v1", *TINY, "--seeds", "0-1", "--run-dir", str(place)]
    for code, said in run_ranks("rank_agents:commanded", 2, command):
        assert code
        assert "--seeds trains its runs in one process" in said
    assert not place.exists()
