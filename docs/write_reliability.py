"""Writes docs/reliability.md from rows and the tests marked with them.

``python docs/write_reliability.py``. The rows stand in tests/reliability_rows.py.
"""

from __future__ import annotations

import ast
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path(__file__).with_name("reliability.md")
TESTS = Path(__file__).parents[1] / "tests"
ROWS = runpy.run_path(str(TESTS / "reliability_rows.py"))["ROWS"]
KEYS = {key for rows in ROWS.values() for key in rows}
MARK = "pytest.mark.reliability"
HEAD = """# What happens when something is wrong

Written by `docs/write_reliability.py` from `tests/reliability_rows.py` and the tests marked with
its keys; edit those. Each line is a trouble that people have met, what the package does then, and
the files whose tests hold it, with the values of `vectorization`, `backend` or `path` that they
spell out. `python -m pytest -m reliability` runs them all.

`benchmarks/soak.py` does what takes longer: 10,000 updates, 200 agents that are saved, left and
loaded, and 50 SIGKILLs at random moments, each run resumed and compared with one left alone.
`benchmarks/results/soak.json` has its last results: memory and open files stay flat.
"""
# Parameters of tests that say in how many ways a row is held.
WAYS = ("vectorization", "backend", "path")
EVERY_BACKEND = "every backend of the host"
SHARED = {"BACKENDS": EVERY_BACKEND, "every_backend": EVERY_BACKEND}  # tests/optimizer_cases.py

Test = ast.FunctionDef
Scope = ast.Module | ast.ClassDef
Marks = tuple[ast.Call, ...]


class Marked(NamedTuple):
    """A test, and the key of a row that it holds."""

    key: str
    file: str
    test: Test


def page(folder: Path = TESTS) -> str:
    """The whole page.

    Raises ValueError for a row that no test holds, and where `marked_tests` does.
    """
    marked = list(marked_tests(folder))
    bare = sorted(KEYS - {each.key for each in marked})
    if bare:
        raise ValueError(f"no test holds {', '.join(bare)} of tests/reliability_rows.py")
    parts = [HEAD]
    for heading, rows in ROWS.items():
        parts += [f"## {heading}\n", "| trouble | what happens | held by |\n|---|---|---|"]
        for key, row in rows.items():
            found = [each for each in marked if each.key == key]
            parts += [f"| {row.trouble} | {row.answer} | {_files(found)} |"]
        parts += [""]
    return "\n".join(parts).rstrip() + "\n"


def marked_tests(folder: Path = TESTS) -> Iterator[Marked]:
    """Every marked test below a folder, once for each key.

    Raises ValueError for a mark that names no row, or that stands where none is read.
    """
    for path in sorted(folder.rglob("test_*.py")):
        text = path.read_text()
        if MARK not in text:
            continue
        file, held = path.relative_to(folder).as_posix(), list(_held(ast.parse(text), ()))
        marks = dict.fromkeys(mark for _, marks in held for mark in marks)
        stray = text.count(MARK) - len(marks)
        if stray:
            raise ValueError(f"{file}: {stray} marks are of no test")
        wrong = sorted({key for mark in marks for key in _keys(mark)} - KEYS)
        if wrong:
            raise ValueError(f"{file}: no row of tests/reliability_rows.py is called {wrong}")
        for test, marks in held:
            keys = dict.fromkeys(key for mark in marks for key in _keys(mark))
            yield from (Marked(key, file, test) for key in keys)


def _held(scope: Scope, marks: Marks) -> Iterator[tuple[Test, Marks]]:
    """The tests of a module or class, with the marks of all that they lie in."""
    marks += _marks(scope)
    for node in scope.body:
        if isinstance(node, ast.ClassDef):
            yield from _held(node, marks)
        elif isinstance(node, Test) and node.name.startswith("test_"):
            yield node, marks + _marks(node)


def _marks(node: Scope | Test) -> Marks:
    """The marks of a test or class by its decorators, those of a module by `pytestmark`."""
    if isinstance(node, ast.Module):
        values = [
            each.value
            for each in node.body
            if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "pytestmark"
        ]
        found = [mark for v in values for mark in (v.elts if isinstance(v, ast.List) else [v])]
    else:
        found = node.decorator_list
    calls = (each for each in found if isinstance(each, ast.Call))
    return tuple(call for call in calls if ast.unparse(call.func) == MARK)


def _keys(mark: ast.Call) -> list[str]:
    return [ast.literal_eval(key) for key in mark.args]


def _files(found: list[Marked]) -> str:
    """Links to the files, with how many tests and which ways."""
    cells = []
    for file in dict.fromkeys(each.file for each in found):
        tests = [each.test for each in found if each.file == file]
        ways = dict.fromkeys(way for test in tests for way in _ways(test))
        counted = f"{len(tests)} test{'s' if len(tests) > 1 else ''}"
        cells.append(f"[{file}](../tests/{file}): {', '.join((counted, *ways))}")
    return "<br>".join(cells)


def _ways(test: Test) -> Iterator[str]:
    """What the parametrisation says of `WAYS`, as far as it is spelt out."""
    for decorator in test.decorator_list:
        match decorator:
            case ast.Name(name) if name in SHARED:
                yield SHARED[name]
            case ast.Call(args=[ast.Constant(name), values, *_]) if name in WAYS:
                yield from _values(values)


def _values(values: Any) -> Iterator[str]:
    for value in values.elts if isinstance(values, ast.List) else [values]:
        match value:
            case ast.Constant(str(text)):
                yield f"`{text.encode('unicode_escape').decode() or repr(text)}`"
            case ast.Name(name) | ast.Starred(ast.Name(name)) if name in SHARED:
                yield SHARED[name]


if __name__ == "__main__":
    PAGE.write_text(page())
