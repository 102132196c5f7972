"""Odd arguments never crash the native module: they raise, or the answer is right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import native_fuzz
import pytest

TESTS = Path(native_fuzz.__file__).parent
CASES = 1200


@pytest.mark.reliability("odd_arguments")
def test_odd_arguments_of_every_entry_point_raise_or_are_answered_rightly(tmp_path: Path) -> None:
    mark = tmp_path / "case"
    command = [sys.executable, "native_fuzz.py", "0", str(CASES), str(mark)]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    at = mark.read_text()
    again = f"case {at}: python tests/native_fuzz.py {at} 1"
    assert done.returncode == 0, f"{again}\n{done.stdout}{done.stderr}"
    for target in native_fuzz.TARGETS:
        assert f"{target.__name__} right" in done.stdout
        assert f"{target.__name__} odd" in done.stdout, "nothing odd was ever taken"


@pytest.mark.parametrize("at_end", [True, False])
def test_one_entry_too_far_is_a_crash(at_end: bool) -> None:
    """Which is what the test above relies on."""
    read = f"""
import fuzz_case, torch
from trpo_fast import _core
case = fuzz_case.Case(0, 0.0)
case.chance = lambda share: {at_end}
address = case.memory(4, torch.float64).data_ptr()
_core.all_finite_f64(address, 4)
print("within", flush=True)
_core.all_finite_f64(address - {0 if at_end else 8}, 5)
"""
    done = subprocess.run(
        [sys.executable, "-c", read], cwd=TESTS, capture_output=True, text=True, check=False
    )
    assert done.stdout == "within\n", done.stderr
    assert done.returncode < 0
