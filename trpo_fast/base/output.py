"""Lines for the user, come what may: a closed pipe or a narrow encoding is no reason to fail."""

from __future__ import annotations

import contextlib
import sys
from typing import Any


def say(text: str, *, aside: bool = False) -> None:
    """Print a line on stdout, or aside on stderr, where that can be."""
    stream: Any = sys.stderr if aside else sys.stdout
    with contextlib.suppress(OSError, ValueError, AttributeError):
        encoding = getattr(stream, "encoding", None) or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)


def remark(text: str) -> None:
    """Print a line on stderr."""
    say(text, aside=True)
