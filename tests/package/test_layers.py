"""The house: which package may import which, and no circles, by reading every import.

Imports inside functions and under ``TYPE_CHECKING`` count too: they hide a circle, they do not open
it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

import trpo_fast

PACKAGE = Path(trpo_fast.__file__).parent
# What stands below every package: the door to native code, and what it needs.
GROUND = {"_native", "_core", "_core_cuda", "_version", "_program"}
# Each may import those named here, `base` and the ground. What users type stands above every
# package; `update`, `networks`, `environments` and `runs` know nothing of one another.
ADDRESSES = {
    "__init__": {"agent", "optimizer", "rollouts", "networks", "update"},
    "__main__": {"cli"},
    "cli": {"command", "runs"},
    "sb3": {"adapters", "optimizer", "rollouts", "update"},
    "tianshou": {"adapters", "optimizer", "update"},
    "skrl": {"adapters", "optimizer", "update"},
    "rsl_rl": {"adapters", "optimizer", "update"},
    "schedulers": {"optimizer", "update"},
}
PACKAGES = {
    "command": {"agent", "environments", "runs"},
    "adapters": {"optimizer", "backends", "recognition", "networks", "update"},
    "agent": {
        "rollouts",
        "optimizer",
        "environments",
        "runs",
        "recognition",
        "backends",
        "networks",
        "update",
    },
    "rollouts": {"environments", "recognition", "backends", "networks"},
    "optimizer": {"recognition", "backends", "preconditioning", "update", "networks"},
    "backends": {"preconditioning", "update", "networks"},
    "preconditioning": {"update", "networks"},
    "recognition": {"networks"},
    "update": set(),
    "networks": set(),
    "environments": set(),
    "runs": set(),
    "base": set(),
}
MAY_IMPORT: dict[str, set[str]] = {**ADDRESSES, **PACKAGES}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, ``trpo_fast`` left out."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts if parts[-1] != "__init__" else parts[:-1] or parts)] = path
    return found


MODULES = modules()


def imports_of(source: str) -> Iterator[str]:
    """Modules of the package that a source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            below = name.removeprefix("trpo_fast.")
            if below == name:
                continue
            # `from trpo_fast.a.b import name` is of a.b, or of a module called name in it
            yield below if below in MODULES else below.rpartition(".")[0] or below


def under_type_checking(tree: ast.AST) -> set[ast.AST]:
    """Every node that only a type checker reads."""
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    return {inner for block in blocks for line in block.body for inner in ast.walk(line)}


def compiled_imports(source: str) -> list[str]:
    """The imports of a compiled module in a source that are made when it runs."""
    tree = ast.parse(source)
    unseen = under_type_checking(tree)
    lines = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and node not in unseen
    ]
    return [line for line in lines if {"_core", "_core_cuda"} & set(imports_of(line))]


def graph() -> dict[str, set[str]]:
    return {name: set(imports_of(path.read_text())) for name, path in MODULES.items()}


def violations(edges: dict[str, set[str]]) -> list[str]:
    """Each import that the table does not allow, with the rule that it breaks."""
    found = []
    for importer, imported in sorted(edges.items()):
        room = importer.partition(".")[0]
        for name in sorted(imported):
            target = name.partition(".")[0]
            if room in GROUND:
                # Ctrl-C during the imports is told as everywhere, by a module of nothing else.
                allowed = target in GROUND or (importer, name) == ("_program", "runs.interrupts")
            else:
                allowed = target in {room, "base", *GROUND, *MAY_IMPORT[room]}
            if not allowed:
                rule = ", ".join(sorted(MAY_IMPORT.get(room, GROUND))) or "base alone"
                found.append(f"{importer} imports {name}: {room} may import {rule}")
    return found


def below(room: str, table: dict[str, set[str]]) -> set[str]:
    """What a room reaches, over others as well."""
    found: set[str] = set()
    pending = [room]
    while pending:
        new = table.get(pending.pop(), set()) - found
        found |= new
        pending += new
    return found


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Files that import each other in a ring, or none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_package_has_its_rule() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == set(PACKAGES)


def test_contributing_draws_the_same_table() -> None:
    page = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text()
    drawn: dict[str, set[str]] = {}
    for line in page.partition("Imports go one way")[2].split("```")[1].strip().splitlines():
        steps = [step.split(", ") for step in line.split(" -> ")]
        for importers, imported in pairwise(steps):
            for room in importers:
                drawn.setdefault(room, set()).update(imported)
    ruled = {room: {"base", "_native", *targets} for room, targets in MAY_IMPORT.items()}
    ruled["base"] = {"_native"}
    rooms = set(MAY_IMPORT) - {"__init__", "__main__"}
    assert set(drawn) == rooms
    assert {room: below(room, drawn) for room in rooms} == {r: below(r, ruled) for r in rooms}


def test_imports_run_one_way() -> None:
    assert violations(graph()) == []


def test_no_ring_of_files() -> None:
    assert circle(graph()) == []


def test_packages_are_folders() -> None:
    """Nothing is imported through a package's ``__init__``: one name has one address."""
    full = [str(p) for p in PACKAGE.rglob("*/__init__.py") if p.read_text().strip()]
    assert full == []


def test_the_root_holds_addresses_alone() -> None:
    names = {path.stem for path in PACKAGE.glob("*.py")}
    assert names == (set(ADDRESSES) | GROUND) - {"_core", "_core_cuda"}


def test_native_is_the_one_door_to_compiled_modules() -> None:
    found = {name: compiled_imports(path.read_text()) for name, path in MODULES.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    ["from trpo_fast import _core", "from trpo_fast._core import isa", "import trpo_fast._core"],
)
def test_an_import_past_the_door_is_seen(line: str) -> None:
    assert compiled_imports(f"def late():\n    {line}\n") == [line]
    assert compiled_imports(f"if TYPE_CHECKING:\n    {line}\n") == []
    assert compiled_imports(f"if TYPE_CHECKING:\n    pass\nelse:\n    {line}\n") == [line]


@pytest.mark.parametrize(
    "line", ["from trpo_fast.agent.agent import TRPO", "import trpo_fast.agent.agent"]
)
def test_a_hidden_upward_import_is_seen(line: str) -> None:
    source = f"def late():\n    {line}\n"
    edges = graph() | {"update.batch": set(imports_of(source))}
    assert violations(edges) == ["update.batch imports agent.agent: update may import base alone"]
    assert "update.batch" in circle(edges)


def test_an_import_under_type_checking_is_seen() -> None:
    source = "if TYPE_CHECKING:\n    from trpo_fast.runs import recorder\n"
    assert set(imports_of(source)) == {"runs.recorder"}
