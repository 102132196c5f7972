"""The site that `make docs` builds from these pages and the package's docstrings.

Its source is the whole repository, so that links between pages are right in the checkout, too.
Every warning is an error there: a link that leads nowhere, a page in no table of contents, a name
of the API without a docstring.
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx
from sphinx.util import logging

from trpo_fast._version import __version__

project = "trpo_fast"
author = "the trpo_fast maintainers"
project_copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown", ".ipynb": "notebook"}
include_patterns = ["docs/*.md", "docs/notebooks/*.ipynb", "*.md", "csrc/README.md"]
exclude_patterns = [".*", "build", "dist", "runs"]
root_doc = "docs/index"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"trpo_fast {release}"
html_extra_path = ["redirect"]
html_copy_source = False
html_search_scorer = str(Path(__file__).with_name("scorer.js"))

autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_ivar = True
default_role = "code"
smartquotes = False

_log = logging.getLogger(__name__)


class NotebookParser(MystParser):  # type: ignore[misc]
    """Notebooks, which are kept without outputs, as the pages that their cells make."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Fill the document."""
        cells = json.loads(inputstring)["cells"]
        super().parse("\n\n".join(map(self._markdown, cells)), document)

    @staticmethod
    def _markdown(cell: dict[str, Any]) -> str:
        text = "".join(cell["source"])
        return f"```python\n{text}\n```" if cell["cell_type"] == "code" else text


def _is_bare_attribute(
    _app: Sphinx, _what: str, _name: str, member: Any, _skip: bool, _options: Any
) -> bool | None:
    """Attributes stand in their class's docstring."""
    shown = callable(member) or isinstance(member, property | classmethod | staticmethod | Enum)
    return None if shown else True


def _require_docstring(
    _app: Sphinx, what: str, name: str, _member: Any, _options: Any, lines: list[str]
) -> None:
    if what in ("attribute", "data"):
        return
    if not any(line.strip() for line in lines):
        _log.warning("%s %s has no docstring", what, name)
    if what == "property" and any(line.startswith(":type:") for line in lines):
        _log.warning("%s %s: what is before the colon would be taken for its type", what, name)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_source_parser(NotebookParser)
    app.connect("autodoc-skip-member", _is_bare_attribute)
    app.connect("autodoc-process-docstring", _require_docstring)
