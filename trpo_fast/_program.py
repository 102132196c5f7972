"""Ctrl-C or SIGTERM while the program still imports: exit status 130, at once, no traceback.

`trpo-fast` and `python -m trpo_fast` both import the package, and with it torch, for a second or
more before a line of their own runs; so the package imports this module first. Where it is imported
by another program, that program's signals are left alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import PurePath

from trpo_fast.runs.interrupts import INTERRUPTED

COMMAND = "trpo-fast"


def is_program(arguments: Sequence[str], original: Sequence[str]) -> bool:
    """Whether the process was started as `trpo-fast` or as `python -m trpo_fast`.

    Args:
        arguments: `sys.argv`.
        original: `sys.orig_argv`.
    """
    if list(arguments[:1]) == ["-m"]:  # so runpy has it until it has imported the package
        return list(original[-len(arguments) :][:1]) in (["trpo_fast"], ["-mtrpo_fast"])
    return bool(arguments) and PurePath(arguments[0]).name == COMMAND


if is_program(sys.argv, sys.orig_argv):
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            with contextlib.suppress(ValueError):  # not in the main thread
                # Nothing is open yet, and once `main` is done, nothing is open any more.
                signal.signal(number, lambda *_: os._exit(INTERRUPTED))
