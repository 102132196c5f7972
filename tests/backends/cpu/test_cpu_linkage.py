"""No symbol of one instruction set may stand in for another's (see csrc/README.md)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# Sanitized objects are in nobody's module, and ThreadSanitizer gives each its own exception
# handling.
BUILDS = sorted(
    at
    for at in ROOT.glob("build/*/CMakeFiles/trpo_fast_cpu.dir")
    if not at.parents[1].name.startswith("sanitize")
)
SOURCES = sorted(ROOT.glob("csrc/cpu/**/dense_kernels_*.cpp"))


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")
@pytest.mark.skipif(not BUILDS, reason="no build directory beside the sources to inspect")
def test_kernel_objects_share_no_symbols() -> None:
    candidates = [build / f"{at.relative_to(ROOT)}.o" for build in BUILDS for at in SOURCES]
    objects = [path for path in candidates if path.exists()]
    assert objects, f"none of {[at.name for at in SOURCES]} was compiled in {BUILDS}"
    for path in objects:
        listed = subprocess.run(
            ["nm", "-C", "--defined-only", str(path)], capture_output=True, text=True, check=True
        ).stdout
        defined = [line for line in listed.splitlines() if " T " in line]
        shared = [line for line in listed.splitlines() if line.split()[1] in "WVu"]
        assert len(defined) == 1, f"{path.name} exports {defined}"
        assert not shared, f"{path.name} has symbols the linker may merge: {shared}"
