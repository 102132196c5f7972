"""The pip commands that install this package again, or more of it, from where it came."""

from __future__ import annotations

import json
import shlex
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

NAME = "trpo-fast"


def install_line(extra: str) -> str:
    """The command that adds one extra of this package to the installation."""
    return f"pip install {_from_where_it_came(extra)}"


def rebuild_line() -> str:
    """The command that builds the native module again and changes nothing else."""
    again = "pip install --force-reinstall --no-deps --no-cache-dir"
    return f"{again} {_from_where_it_came()}"


def _from_where_it_came(extra: str | None = None) -> str:
    """What pip is to be given: the checkout or the file of this installation, else its name."""
    suffix = "" if extra is None else f"[{extra}]"
    try:
        # PEP 610: where a package that came from no index was installed from.
        text = metadata.distribution(NAME).read_text("direct_url.json")
        origin = json.loads(text or "{}")
    except (metadata.PackageNotFoundError, OSError, ValueError):
        origin = {}
    url = urlsplit(origin.get("url", ""))
    path = url2pathname(url.path)
    if url.scheme != "file" or not Path(path).exists():
        return shlex.quote(NAME + suffix)
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return editable + shlex.quote(path + suffix)
