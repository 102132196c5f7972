"""Programs outside the package, imported from their files."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def script(path: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of a file below the checkout, among `sys.modules` as long as the patch holds.

    It finds its neighbours, as it does when it is run.
    """
    monkeypatch.syspath_prepend(str((ROOT / path).parent))
    name = f"script_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # a dataclass looks itself up there
    spec.loader.exec_module(module)
    return module
