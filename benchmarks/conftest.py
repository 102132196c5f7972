"""Sizes, turns and contenders of a benchmark run, and what every record says of the machine.

``--full`` takes all sizes, some turns each: within a turn every contender runs once after the
other, so that ratios are between neighbours in time. Without it: two small sizes, one turn.
"""

from __future__ import annotations

import importlib.metadata
from functools import cache

import fma_peak
import pytest
import torch
from cases import FULL, SMOKE
from contenders import CONTENDERS

from trpo_fast import _native

TURNS = {"test_update": 3}
OTHER_TURNS = 2
PACKAGES = ("trpo_fast", "torch", "numpy", "sb3-contrib", "stable-baselines3", "tianshou")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="all sizes, some turns each")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests their sizes, turns and contenders; the first of them varies slowest."""
    full = metafunc.config.getoption("--full")
    if "size" in metafunc.fixturenames:
        metafunc.parametrize("size", FULL if full else SMOKE, ids=str)
    if "turn" in metafunc.fixturenames:
        turns = TURNS.get(metafunc.function.__name__, OTHER_TURNS)
        metafunc.parametrize("turn", range(turns if full else 1))
    if "contender" in metafunc.fixturenames:
        metafunc.parametrize("contender", CONTENDERS)


def pytest_report_header() -> str:
    known = machine()
    return ", ".join(f"{name} {value}" for name, value in known.items() if value is not None)


@cache
def machine() -> dict[str, str | int | float | None]:
    """Threads, instruction set and versions."""
    versions: dict[str, str | int | float | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    threads = torch.get_num_threads()
    isa = None if _native.core is None else _native.core.isa()
    return {"threads": threads, "isa": isa, **versions}


@pytest.fixture
def facts() -> dict[str, str | int | float | None]:
    """For ``benchmark.extra_info``: ``machine``, and the FMA peak of all threads now, in GF/s."""
    return {**machine(), "fma_peak_gflops": fma_peak.measure(torch.get_num_threads())}
