"""Every Python snippet of README.md and docs/ runs as shown, and every link leads somewhere."""

from __future__ import annotations

import re
import shlex
from argparse import _SubParsersAction
from pathlib import Path

import pytest

import trpo_fast
from trpo_fast.cli import build_parser
from trpo_fast.command.options import PREFIX

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)")


def _snippets(page: Path) -> str:
    """A page's snippets in one program, as a reader would paste them one after another."""
    code = "\n".join(SNIPPET.findall(page.read_text()))
    # Training budgets are cut: that the call works is tested here, how well it learns is not.
    return re.sub(r"\b\d+_000\b", "2_048", code)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if SNIPPET.search(page.read_text())], ids=lambda page: page.stem
)
def test_snippets_run(run_python, page: Path) -> None:
    code = _snippets(page)
    for peer in ("tianshou", "skrl", "rsl_rl"):
        if f"trpo_fast.{peer}" in code:
            pytest.importorskip(peer, reason=f"{peer} is not installed: pip install '.[test]'")
    result = run_python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    broken = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not broken


def _commands() -> list[list[str]]:
    """The words of each command that the pages tell to type."""
    blocks = [block for page in PAGES for block in SHELL.findall(page.read_text())]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words]


def test_the_command_line_takes_every_command_of_the_pages() -> None:
    parser, seen = build_parser(), 0
    for words in _commands():
        program = next((w for w in ("trpo-fast", "trpo_fast") if w in words), None)
        if program is not None and "pip" not in words:
            parser.parse_args(words[words.index(program) + 1 :])
            seen += 1
    assert seen >= 20


def test_programs_and_targets_of_the_pages_are_there() -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    seen = set()
    for words in _commands():
        given = words[words.index("make") + 1 :] if "make" in words else []
        named = {word for word in given if word.isidentifier()}
        assert named <= set(targets), words
        files = {word for word in words if word.startswith(("benchmarks/", "examples/", "docs/"))}
        assert all((ROOT / file).exists() for file in files), words
        seen |= named | files
    assert len(seen) > 10


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index


def test_every_command_and_option_of_train_is_in_the_page_of_the_command() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text()
    (commands,) = (
        action for action in build_parser()._actions if isinstance(action, _SubParsersAction)
    )
    for name in commands.choices:
        assert f"`trpo-fast {name}" in page
    for option in commands.choices["train"]._actions:
        flag, of_the_agent = option.option_strings[-1:], option.dest.startswith(PREFIX)
        assert not flag or of_the_agent or flag[0] == "--help" or f"`{flag[0]}" in page


def test_every_name_that_the_package_exports_is_in_the_page_of_the_api() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    for name in trpo_fast.__all__:
        if name != "FallbackWarning":  # one of the errors, whose module is there
            assert f":: trpo_fast.{name}\n" in page
