"""What the command prints when something is wrong, and how it leaves its output."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from trpo_fast.base.output import remark


def complain(text: str, error: BaseException | None = None) -> None:
    """A mistake, and the notes of its error, on stderr."""
    remark("\n".join([text, *getattr(error, "__notes__", [])]))


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """In place of ``warnings.showwarning``: the text alone."""
    remark(f"warning: {message}")


def close_output() -> None:
    """Keep the interpreter from failing at exit on a stdout that nobody reads."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
