"""What the command prints, come what may."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any


def say(text: str) -> None:
    """A line for the user, on stdout."""
    _print(text, sys.stdout)


def complain(text: str, error: BaseException | None = None) -> None:
    """A mistake, and the notes of its error, on stderr."""
    _print("\n".join([text, *getattr(error, "__notes__", [])]), sys.stderr)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """In place of ``warnings.showwarning``: the text alone."""
    _print(f"warning: {message}", sys.stderr)


def _print(text: str, stream: Any) -> None:
    """Print, come what may: a closed pipe or a narrow encoding is no reason to fail."""
    with contextlib.suppress(OSError, ValueError):
        encoding = getattr(stream, "encoding", None) or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)


def close_output() -> None:
    """Keep the interpreter from failing at exit on a stdout that nobody reads."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
