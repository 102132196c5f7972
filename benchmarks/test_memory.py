"""Peak memory of one update, each contender in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cases import MEMORY, SMOKE, Size
from contenders import contender_of

PROBE = Path(__file__).with_name("memory_probe.py")


def peak(contender: str, size: Size) -> int:
    command = [sys.executable, "-W", "ignore", str(PROBE), contender, str(size.rows)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    return int(run.stdout.split()[-1])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc of Linux")
def test_peak_memory_of_the_update(
    benchmark: Any, contender: str, facts: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    contender_of(contender, SMOKE[0])  # skips where it is not installed
    full = request.config.getoption("--full")
    size = MEMORY if full else SMOKE[-1]
    found = benchmark.pedantic(peak, args=(contender, size), rounds=1)
    benchmark.group = f"memory {size}"
    benchmark.extra_info.update(
        operation="memory",
        size=str(size),
        rows=size.rows,
        turn=0,
        contender=contender,
        peak_bytes=found,
        **facts,
    )
    assert found > 0
