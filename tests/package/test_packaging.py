"""The package as shipped: metadata, what an import costs, and hostile surroundings."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from patience import PATIENCE

import trpo_fast
from trpo_fast._program import is_program

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9_.-]", item)[0].lower() for item in requirements}


def test_version_is_the_same_everywhere() -> None:
    declared = PYPROJECT["project"]["version"]
    assert trpo_fast.__version__ == declared
    assert importlib.metadata.version("trpo_fast") == declared
    assert f"\nversion: {declared}\n" in (ROOT / "CITATION.cff").read_text()


def test_build_needs_no_torch() -> None:
    assert _names(PYPROJECT["build-system"]["requires"]) == {"scikit-build-core", "pybind11"}


def test_metadata_pins_nothing() -> None:
    project = PYPROJECT["project"]
    extras = [item for extra in project["optional-dependencies"].values() for item in extra]
    assert not [item for item in project["dependencies"] + extras if re.search(r"[=~<]=", item)]


def test_constraints_pin_every_direct_dependency_exactly_once() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line]
    assert len(pins) == len(set(pins))
    project = PYPROJECT["project"]
    needed = project["dependencies"] + PYPROJECT["build-system"]["requires"]
    for extra in project["optional-dependencies"].values():
        needed = needed + extra
    assert {name.replace("_", "-") for name in _names(needed)} <= set(pins)
    assert "torch==2.13.0" in lines


def test_every_extra_of_the_contract_exists() -> None:
    extras = set(PYPROJECT["project"]["optional-dependencies"])
    assert {"mujoco", "box2d", "envpool", "video", "sb3", "bench", "test", "docs"} <= extras


def test_package_is_marked_as_typed() -> None:
    package = Path(trpo_fast.__file__).parent
    assert (package / "py.typed").is_file()
    assert (package / "_core.pyi").is_file()


@pytest.mark.reliability("signal_at_the_start")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("start", ["-m trpo_fast", "trpo-fast", "-c import trpo_fast"])
def test_a_signal_while_the_program_imports_torch_ends_it_quietly(
    tmp_path: Path, start: str, number: signal.Signals
) -> None:
    (tmp_path / "torch.py").write_text(
        f"import os, signal\nos.kill(os.getpid(), {number:d})\nraise SystemExit('went on')\n"
    )
    option, *rest = start.split(" ", 1)
    script = Path(sys.executable).parent / option
    command = [option, *rest] if rest else [str(script), "--version"]
    result = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if start.startswith("-c"):  # a program of somebody else's
        ends = number == signal.SIGTERM
        assert (result.returncode == -number) if ends else ("KeyboardInterrupt" in result.stderr)
    else:
        assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("arguments", "original"),
    [
        (["-m", "--version"], ["python", "-X", "dev", "-m", "pip", "--version"]),
        (["-m", "trpo_fast"], ["python", "-m", "pytest", "trpo_fast"]),
        (["-c"], ["python", "-c", "import trpo_fast"]),
        (["trpo-fast/train.py"], ["python", "trpo-fast/train.py"]),
        ([""], ["python"]),
        ([], []),
    ],
)
def test_other_programs_keep_their_signals(arguments: list[str], original: list[str]) -> None:
    assert not is_program(arguments, original)


def test_import_is_light(run_python) -> None:
    code = """
import sys, trpo_fast
heavy = {"matplotlib", "tensorboard", "rich", "numba", "mujoco", "pygame"} & set(sys.modules)
assert not heavy, heavy
assert "trpo_fast.agent" not in sys.modules
assert {"TRPO", "TRPOOptimizer"} <= set(dir(trpo_fast))
from trpo_fast import TRPO
assert "trpo_fast.agent.agent" in sys.modules and trpo_fast.TRPO is TRPO
try:
    trpo_fast.TRP0
except AttributeError as error:
    assert "TRP0" in str(error)
else:
    raise SystemExit("an attribute that is none")
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_every_public_name_resolves() -> None:
    for name in trpo_fast.__all__:
        assert getattr(trpo_fast, name) is not None


def test_module_and_command_are_the_same_program(run_python) -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="trpo-fast")
    assert script.value == "trpo_fast.cli:main"
    result = run_python(
        "import runpy, sys; sys.argv = ['trpo_fast', '--version']\n"
        "runpy.run_module('trpo_fast', run_name='__main__')"
    )
    assert result.returncode == 0, result.stderr
    assert trpo_fast.__version__ in result.stdout


@pytest.mark.slow
def test_trains_with_nowhere_to_cache_and_no_home(run_python, tmp_path: Path) -> None:
    """Read-only site-packages: neither numba nor matplotlib finds a place for its files."""
    run_dir = tmp_path / "run"
    code = f"""
import sys
from trpo_fast.cli import main
sys.exit(main(["train", "CartPole-v1", "--total-steps", "512", "--num-envs", "2",
               "--rollout-steps", "128", "--run-dir", {str(run_dir)!r}]))
"""
    result = run_python(
        code,
        HOME=None,
        XDG_CACHE_HOME=None,
        XDG_CONFIG_HOME=None,
        MPLCONFIGDIR="/proc/no-such-directory",
        NUMBA_CACHE_DIR="/proc/no-such-directory",
        PYTHONDONTWRITEBYTECODE="1",
    )
    assert result.returncode == 0, result.stderr
    assert (run_dir / "progress.csv").is_file()
    assert (run_dir / "learning_curve.png").is_file()


def test_tests_and_benchmarks_can_run_in_one_call() -> None:
    """pytest imports by the file's name alone: of two modules of one name it takes the first."""
    paths = [p for name in ("tests", "benchmarks") for p in (ROOT / name).rglob("*.py")]
    names = [path.name for path in paths if path.name != "conftest.py"]
    assert not {name for name in names if names.count(name) > 1}
