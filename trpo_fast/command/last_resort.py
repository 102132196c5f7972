"""Leaving a program whose environments do not return from close(): all is said before they try."""

from __future__ import annotations

import contextlib
import os
import threading
import traceback
from collections.abc import Iterator
from typing import Self

from trpo_fast.base.errors import EnvironmentFault, RankError, UserError
from trpo_fast.base.output import remark
from trpo_fast.command.output import close_output, complain
from trpo_fast.runs.interrupts import INTERRUPTED

# Seconds that environments have for close(): more than those in other processes are given, which
# are ended then.
SECONDS = 10.0


class Told(Exception):  # noqa: N818 (it is no error any more)
    """What ended the command has been said.

    Attributes:
        code: the exit code that belongs to it.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def tell(error: BaseException) -> int:
    """Say what ended the command, on stderr; the exit code."""
    if isinstance(error, KeyboardInterrupt):
        complain("interrupted", error)
        return INTERRUPTED
    if isinstance(error, EnvironmentFault):
        # The environment's own traceback helps its author; ours would not. One from another
        # process is among the notes already.
        noted = any(error.traceback in note for note in getattr(error, "__notes__", []))
        complain(f"{'' if noted else error.traceback}error: {error}", error)
        return 1
    complain(f"error: {error}", error)
    return 1 if isinstance(error, RankError) else 2


class LastResort:
    """Ends the process with its exit code, and a warning, if the block is not left in time.

    Args:
        name: of the environment.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._timer: threading.Timer | None = None
        self._unsaid = ""

    def ready(self, code: int) -> None:
        """All is done and said, but for closing; the clock runs from here on."""
        self._timer = threading.Timer(SECONDS, self._leave, (code,))
        self._timer.daemon = True
        self._timer.start()

    @contextlib.contextmanager
    def all_said(self) -> Iterator[None]:
        """What ends this block is said at its end; what is around it need only be closed.

        Raises:
            Told: in place of what is a fault, a mistake or an interrupt.
        """
        try:
            yield
        except (KeyboardInterrupt, EnvironmentFault, RankError, UserError) as error:
            code = tell(error)
            self.ready(code)
            raise Told(code) from error
        except Exception:
            self._unsaid = traceback.format_exc()
            self.ready(1)
            raise

    def _leave(self, code: int) -> None:
        remark(
            f"{self._unsaid}warning: {self._name} did not return from close() within {SECONDS:g} s "
            "and is left as it is; all else is done."
        )
        close_output()
        os._exit(code)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
