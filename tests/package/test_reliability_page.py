"""docs/reliability.md is what its rows and the marks of the tests say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reliability_rows import ROWS
from scripts import script

KEYS = [key for rows in ROWS.values() for key in rows]


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Any:
    return script("docs/write_reliability.py", monkeypatch)


def test_the_page_is_up_to_date(writer: Any) -> None:
    """Not where a row has no test, or a mark no row."""
    assert writer.PAGE.read_text() == writer.page(), "run: python docs/write_reliability.py"


def test_no_two_rows_have_one_key() -> None:
    assert len(KEYS) == len(set(KEYS))


def write(writer: Any, folder: Path, code: str) -> None:
    """A file of tests; MARK in its code stands for the mark, which would be this file's here."""
    (folder / "test_it.py").write_text(code.replace("MARK", writer.MARK))


def test_a_row_that_no_test_holds_is_an_error(writer: Any, tmp_path: Path) -> None:
    marks = "".join(f"@MARK({key!r})\n" for key in KEYS[1:])
    write(writer, tmp_path, f"{marks}def test_most(): ...\n")
    with pytest.raises(ValueError, match=f"no test holds {KEYS[0]} of"):
        writer.page(tmp_path)


PLACES = """
import pytest

pytestmark = [pytest.mark.slow, MARK("clock")]


@MARK("render", "blame")
class TestClass:
    @pytest.mark.parametrize("vectorization", ["sync", "workers"])
    def test_inner(self): ...


@MARK("tilde")
@every_backend
def test_outer(): ...


def helper(): ...
"""


def test_marks_are_read_wherever_pytest_takes_them(writer: Any, tmp_path: Path) -> None:
    write(writer, tmp_path, PLACES)
    (tmp_path / "test_bare.py").write_text("def test_nothing(): ...\n")
    found = [(each.key, each.test.name) for each in writer.marked_tests(tmp_path)]
    assert found == [
        *((key, "test_inner") for key in ("clock", "render", "blame")),
        *((key, "test_outer") for key in ("clock", "tilde")),
    ]
    ways = [list(writer._ways(each.test)) for each in writer.marked_tests(tmp_path)]
    assert ways == [["`sync`", "`workers`"]] * 3 + [["every backend of the host"]] * 2


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ('@MARK("nosuch")\ndef test_a(): ...\n', r"is called \['nosuch'\]"),
        ('marks = MARK("clock")\n', "1 marks are of no test"),
        ('@MARK("clock")\ndef helper(): ...\n', "1 marks are of no test"),
    ],
)
def test_a_mark_that_says_nothing_is_an_error(
    writer: Any, tmp_path: Path, code: str, words: str
) -> None:
    write(writer, tmp_path, code)
    with pytest.raises(ValueError, match=rf"test_it.py: .*{words}"):
        list(writer.marked_tests(tmp_path))
