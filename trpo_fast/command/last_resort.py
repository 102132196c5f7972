"""Leaving a program whose environments do not return from close(), when all else is done."""

from __future__ import annotations

import os
import threading
from typing import Self

from trpo_fast.base.output import remark
from trpo_fast.command.output import close_output

# Seconds that environments have for close(): more than those in other processes are given, which
# are ended then.
SECONDS = 10.0


class LastResort:
    """Ends the process with its exit code, and a warning, if the block is not left in time.

    Args:
        name: of the environment.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._timer: threading.Timer | None = None

    def ready(self, code: int) -> None:
        """All is done and said, but for closing; the clock runs from here on."""
        self._timer = threading.Timer(SECONDS, self._leave, (code,))
        self._timer.daemon = True
        self._timer.start()

    def _leave(self, code: int) -> None:
        remark(
            f"warning: {self._name} did not return from close() within {SECONDS:g} s and is left "
            "as it is; all else is done."
        )
        close_output()
        os._exit(code)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
