"""``examples/ray_train.py``: Ray Train's workers are ranks of one run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from patience import PATIENCE
from training_process import TINY, train

from trpo_fast.runs.directory import RunDirectory

ROOT = Path(__file__).parents[2]
# Ray else makes a token, and tells its makers' server of its use.
QUIET = {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: extra ray"
)
def test_workers_of_ray_train_end_with_the_weights_of_one_process(tmp_path: Path) -> None:
    strict = ("--deterministic-ranks", "--seed", "5", "--total-steps", "192")
    command = [sys.executable, str(ROOT / "examples" / "ray_train.py"), "--workers", "2"]
    command += ["CartPole-v1", *TINY, *strict, "--run-dir", str(tmp_path / "ray")]
    run = subprocess.run(
        command,
        env=os.environ | QUIET | {"HOME": str(tmp_path)},  # for ray_results
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert train(tmp_path / "one", 192, *strict[:-2]) == 0
    ours, theirs = (RunDirectory(tmp_path / name).latest() for name in ("ray", "one"))
    assert ours is not None
    assert theirs is not None
    assert ours[1]["progress"]["ranks"] == 2
    for module in ("policy", "value_function"):
        for name, value in theirs[1]["learner"][module].items():
            assert torch.equal(ours[1]["learner"][module][name], value), name
