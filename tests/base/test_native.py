"""A missing or broken native module costs speed, never the import."""

from __future__ import annotations

import pytest

from trpo_fast import _native

# Stand-ins for the two ways a native module fails: it was never built, or the loader refuses it.
MISSING = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "trpo_fast._core":
            raise ModuleNotFoundError("No module named 'trpo_fast._core'", name=name)
sys.meta_path.insert(0, Refuse())
"""
UNLOADABLE = """
import sys, pathlib, importlib.machinery
broken = pathlib.Path("_core" + importlib.machinery.EXTENSION_SUFFIXES[0]).resolve()
broken.write_bytes(b"not a shared object")
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "trpo_fast._core":
            loader = importlib.machinery.ExtensionFileLoader(name, str(broken))
            return importlib.machinery.ModuleSpec(name, loader, origin=str(broken))
sys.meta_path.insert(0, Broken())
"""
USE = """
import gymnasium, torch, trpo_fast
from trpo_fast import _native
from trpo_fast.command.doctor import doctor_report
space = gymnasium.spaces.Box(-1.0, 1.0, (3,))
policy = trpo_fast.MlpPolicy(space, space)
assert policy(torch.zeros(5, 3)).sample().shape == (5, 3)
assert _native.core is None
assert doctor_report()["native"]["available"] is False
assert doctor_report()["hints"][0].startswith(f"{_native.load_error} Here: pip install ")
print(_native.load_error)
"""


@pytest.mark.parametrize(
    ("fault", "words"), [(MISSING, "not built"), (UNLOADABLE, "cannot be loaded")]
)
def test_package_works_without_the_native_module(run_python, fault: str, words: str) -> None:
    result = run_python(fault + USE, TRPO_FAST_REQUIRE_NATIVE=None)
    assert result.returncode == 0, result.stderr
    assert words in result.stdout
    assert "trpo-fast doctor" in result.stdout
    assert len(result.stdout.strip().splitlines()) == 1


@pytest.mark.parametrize("fault", [MISSING, UNLOADABLE])
def test_required_native_module_that_fails_is_an_import_error(run_python, fault: str) -> None:
    code = fault + "import trpo_fast._native"
    result = run_python(code, TRPO_FAST_REQUIRE_NATIVE="1")
    assert result.returncode == 1
    assert "ImportError: TRPO_FAST_REQUIRE_NATIVE is set" in result.stderr


@pytest.mark.parametrize("value", ["", "0"])
def test_requirement_can_be_switched_off(run_python, value: str) -> None:
    result = run_python(MISSING + "import trpo_fast._native", TRPO_FAST_REQUIRE_NATIVE=value)
    assert result.returncode == 0, result.stderr


def test_exactly_one_of_module_and_error_is_set() -> None:
    assert (_native.core is None) != (_native.load_error is None)
