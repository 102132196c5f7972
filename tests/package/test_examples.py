"""Every file in examples/ runs, at a size that takes seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from patience import PATIENCE

EXAMPLES = Path(__file__).parents[2] / "examples"
ARGUMENTS = {
    "worked_example.py": [],
    "user_loop_cnn.py": ["--updates", "3", "--rows", "64"],
    "masked_actions.py": ["--updates", "60", "--rows", "500"],
    "brax_tensors.py": [
        *("--steps", "512", "--envs", "8", "--rollout-steps", "16", "--episode-length", "9"),
        *("--episodes", "8"),
    ],
    "torchrl_loop.py": ["--updates", "3", "--rows", "256"],
    "hybrid_actions.py": ["--steps", "2048"],
    "images.py": ["--steps", "2048"],
    "memory.py": ["--steps", "2048"],
    "recurrent_policy.py": ["--updates", "3", "--rows", "64"],
    "policy_collapse.py": ["--updates", "2", "--seeds", "1"],
    "penalty_vs_constraint.py": ["--steps", "256", "--seeds", "1"],
    "cleanrl_style.py": [
        *("--total-timesteps", "512", "--num-steps", "64", "--num-envs", "2"),
        *("--env-id", "CartPole-v1"),
    ],
}

NEEDED = {"torchrl_loop.py": "torchrl", "brax_tensors.py": "brax"}


def run(name: str, *arguments: str) -> str:
    found = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_every_example_is_run_here() -> None:
    elsewhere = {"ray_train.py"}  # test_ray_example.py
    assert set(ARGUMENTS) | elsewhere == {path.name for path in EXAMPLES.glob("*.py")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_runs(name: str) -> None:
    needed = NEEDED.get(name)
    if needed is not None and find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed: pip install {needed}")
    printed = run(name, *ARGUMENTS[name])
    assert printed.strip()
    if name == "masked_actions.py":
        assert float(printed.split()[-1]) > 0.7  # by chance: about 0.4


@pytest.mark.slow
def test_the_single_file_serves_boxes_too() -> None:
    arguments = ["--env-id", "Pendulum-v1", "--total-timesteps", "1024", "--num-envs", "2"]
    printed = run("cleanrl_style.py", *arguments)
    assert "accepted" in printed


@pytest.mark.slow
def test_the_single_file_refuses_other_spaces_in_words() -> None:
    with pytest.raises(AssertionError, match="FrozenLake-v1: this serves Box observations"):
        run("cleanrl_style.py", "--env-id", "FrozenLake-v1", "--num-envs", "2")
