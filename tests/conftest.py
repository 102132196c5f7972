"""Settings shared by the whole suite."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from patience import PATIENCE

# Timings do not matter here, and parallel test workers must not fight over the cores.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

# The same examples every time, however slow the machine is at drawing them.
settings.register_profile(
    "suite",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")
# A shell's background jobs begin with Ctrl-C ignored, and their children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Backends in plain torch, and the emulated ones, which are compiled once.
ELSEWHERE = {"reference", "generic", "cuda_emulated", "cuda_emulated_tiles"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--native-only", action="store_true", help="leave out cases that no instruction set changes"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--native-only"):
        return
    left_out = [item for item in items if ELSEWHERE & set(case_of(item).split("-"))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def case_of(item: pytest.Item) -> str:
    """The values of a test's parameters, in a word each."""
    return str(item.callspec.id) if hasattr(item, "callspec") else ""


def pytest_configure(config: pytest.Config) -> None:
    # From Python 3.12 on, told or not after what other tests left running.
    config.addinivalue_line(
        "filterwarnings", "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
    )
    # JAX says so, too, of every later fork once a test has used it.
    config.addinivalue_line("filterwarnings", r"ignore:os.fork\(\) was called:RuntimeWarning")


RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def seeds() -> None:
    """No test's random numbers depend on the tests before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (what other libraries draw from)
    torch.default_generator.manual_seed(0)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, `auto` stays in this process; its own tests say otherwise."""
    monkeypatch.setattr("trpo_fast.environments.automatic.HANDOVER", 1e9)


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """Run a Python program in a fresh process, outside the checkout, with changed variables.

    ``run_python(code, NAME="value", OTHER=None)``: None removes a variable.
    """

    def run(code: str, *, cwd: Path = tmp_path, timeout: float = PATIENCE, **variables: str | None):
        environment = {**os.environ, **{k: v for k, v in variables.items() if v is not None}}
        for name in [name for name, value in variables.items() if value is None]:
            environment.pop(name, None)
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
