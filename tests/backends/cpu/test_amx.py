"""AMX without AMX: the whole path over a model of its tiles, and what a CPU without it is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE

from trpo_fast import _native

TESTS = Path(__file__).parents[2]
DIRECTORY = Path(os.environ.get("TRPO_FAST_EMULATION", TESTS.parent / "build" / "emulation"))
EMULATED = next(iter(sorted(DIRECTORY.glob("_core.*.so"))), None)
if EMULATED is None and os.environ.get("TRPO_FAST_REQUIRE_EMULATION", "0") not in ("", "0"):
    raise ImportError(f"TRPO_FAST_REQUIRE_EMULATION is set, and {DIRECTORY} holds no _core")

# Puts the emulated module where trpo_fast looks for its own, before a conftest imports it.
PLUGIN = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("trpo_fast._core", {path!r})
sys.modules["trpo_fast._core"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["trpo_fast._core"])
assert sys.modules["trpo_fast._core"].isa() == "emulated_amx"
"""


@pytest.mark.skipif(
    EMULATED is None, reason=f"{DIRECTORY} holds no emulated AMX; run make emulation"
)
def test_rounded_products_and_steps_by_tiles(tmp_path: Path) -> None:
    (tmp_path / "emulated_amx.py").write_text(PLUGIN.format(path=str(EMULATED)))
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    variables = {"TRPO_FAST_ISA": "emulated_amx", "PYTHONPATH": path, "PYTEST_ADDOPTS": ""}
    found = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "emulated_amx", "-p", "no:cacheprovider"),
            *("-p", "no:xdist", str(TESTS / "backends" / "test_precision.py")),
        ],
        env={**os.environ, **variables},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-4000:]
    assert " passed" in found.stdout


@pytest.mark.skipif(_native.core is None, reason="no native module")
def test_a_machine_that_cannot_is_told_why(run_python) -> None:
    assert _native.core is not None
    code = "from trpo_fast import _native; print(_native.core.isa())"
    found = run_python(code, TRPO_FAST_ISA="amx_bf16")
    refusal = run_python(
        "from trpo_fast import _native; print(_native.core.amx_refusal())", TRPO_FAST_ISA=None
    ).stdout.strip()
    if refusal:
        assert found.returncode == 1
        assert 'TRPO_FAST_ISA is "amx_bf16"' in found.stderr
        assert refusal in found.stderr
    else:
        assert found.stdout.strip() == "amx_bf16"


@pytest.mark.skipif(_native.core is None, reason="no native module")
def test_another_instruction_set_switches_it_off(run_python) -> None:
    code = "from trpo_fast import _native as n; print(n.core.isa(), n.core.amx_refusal())"
    found = run_python(code, TRPO_FAST_ISA="baseline").stdout
    assert found.startswith("baseline ")
    assert "another instruction set" in found or "no AMX" in found
