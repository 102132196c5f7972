"""The CUDA backend without a GPU: its kernels compiled as host code, on CPU tensors.

``make emulation`` builds the module; ``make test`` does so first.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trpo_fast.backends.cuda.problem import CudaProblem
from trpo_fast.update.options import Options

KIB = 1 << 10
DIRECTORY = Path(
    os.environ.get("TRPO_FAST_EMULATION", Path(__file__).parents[1] / "build" / "emulation")
)


def _load() -> ModuleType | None:
    for path in sorted(DIRECTORY.glob("_core_cuda_emulated*.so")):
        spec = importlib.util.spec_from_file_location("_core_cuda_emulated", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    return None


emulated = _load()
if emulated is None and os.environ.get("TRPO_FAST_REQUIRE_EMULATION", "0") not in ("", "0"):
    raise ImportError(f"TRPO_FAST_REQUIRE_EMULATION is set, and {DIRECTORY} holds no module")

needs_emulation = pytest.mark.skipif(
    emulated is None, reason=f"{DIRECTORY} holds no emulated CUDA kernels; run make emulation"
)


class EmulatedProblem(CudaProblem):
    """``CudaProblem`` on CPU tensors, in a workspace whose every word is NaN."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._memory.fill_(0xFF)

    def _core(self) -> ModuleType:
        assert emulated is not None
        return emulated


class EmulatedTiles(EmulatedProblem):
    """The plan for wide networks, whatever the width."""

    def tiled(self, options: Options) -> bool:
        return True
