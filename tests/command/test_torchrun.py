"""``torchrun -m trpo_fast train``: one run of several ranks, and ranks that are killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import PATIENCE, wait_until
from rank_processes import run_ranks
from training_process import TINY, train

from trpo_fast.runs.directory import RunDirectory
from trpo_fast.runs.logger import read_progress

TESTS = Path(__file__).parents[1]
STRICT = ("--deterministic-ranks", "--save-every", "1", "--seed", "5")


def torchrun(
    count: int,
    directory: Path,
    steps: int,
    *arguments: str,
    env: str,
    nodes: tuple[str, ...] = ("--standalone",),
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *nodes, "--max-restarts", "3"]
    command += ["--nproc-per-node", str(count)]
    command += ["-m", "trpo_fast", "train", env, *TINY, *arguments]
    return subprocess.Popen(
        [*command, "--total-steps", str(steps), "--run-dir", str(directory)],
        env=os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(run: subprocess.Popen[str]) -> str:
    """What it said, once it has ended well."""
    try:
        said = run.communicate(timeout=PATIENCE)[0]
    finally:
        run.kill()
    assert run.returncode == 0, said
    return said


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
    said = ended(torchrun(2, tmp_path / "ranks", steps, *STRICT, *marker, env=env))
    assert (tmp_path / "died").exists()
    assert "going on from" in said
    assert said.count("2 ranks by gloo, 1 environments") == 2  # of rank 0, before and after
    assert train(tmp_path / "one", steps, *STRICT, *marker, env=env) == 0
    ranks, one = weights(tmp_path / "ranks"), weights(tmp_path / "one")
    assert ranks.keys() == one.keys()
    assert all(torch.equal(ranks[name], one[name]) for name in one)
    rows = read_progress(tmp_path / "ranks" / "progress.csv")
    assert [int(row["time/total_timesteps"]) for row in rows] == [64 * n for n in range(1, 7)]
    assert all(float(row[f"ranks/{name}"]) > 0 for row in rows for name in ("collectives", "bytes"))


@pytest.mark.slow
@pytest.mark.reliability("rank_elastic")
def test_a_run_goes_on_with_the_machines_that_are_left(tmp_path: Path) -> None:
    # Two torchruns, as on two machines; the one whose rank dies goes with it.
    env, steps, place = "dying_rank:Dying-v0", 64 * 6, tmp_path / "run"
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    conf = "last_call_timeout=5,keep_alive_interval=1,keep_alive_max_attempt=3"
    nodes = ("--nnodes", "1:2", "--rdzv-backend", "c10d", "--rdzv-id", "two", "--rdzv-conf", conf)
    nodes += ("--rdzv-endpoint", f"localhost:{port}")
    died = json.dumps(str(tmp_path / "died"))
    fast = ("--save-every", "1", "--env-kwargs", f"marker={died}", "machine=true")
    first = torchrun(1, place, steps, *fast, env=env, nodes=nodes)
    wait_until(lambda: reached(port))  # it then is the one that both meet at
    second = torchrun(1, place, steps, *fast, env=env, nodes=nodes)
    said = ended(first)
    second.communicate(timeout=PATIENCE)
    assert second.returncode == -signal.SIGKILL
    assert "2 ranks by gloo" in said
    assert "ranks: 2 -> 1; sums over them are rounded otherwise" in said
    rows = read_progress(place / "progress.csv")
    assert [int(row["time/total_timesteps"]) for row in rows] == [64 * n for n in range(1, 7)]


@pytest.mark.slow
@pytest.mark.reliability("rank_end")
def test_no_thread_of_the_process_group_is_left_when_the_interpreter_ends(tmp_path: Path) -> None:
    # Seldom does one abort the process: it must be there, and at work, at the wrong moment.
    place = json.dumps(str(tmp_path))
    ended(
        torchrun(
            2, tmp_path / "run", 64, "--env-kwargs", f"place={place}", env="rank_threads:Noting-v0"
        )
    )
    for rank in "01":
        assert "gloo" not in (tmp_path / rank).read_text()


def reached(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


def test_runs_of_several_seeds_are_refused_on_ranks(tmp_path: Path) -> None:
    place = tmp_path / "runs"
    command = ["train", "CartPole-v1", *TINY, "--seeds", "0-1", "--run-dir", str(place)]
    for code, said in run_ranks("rank_agents:commanded", 2, command):
        assert code
        assert "--seeds trains its runs in one process" in said
    assert not place.exists()
