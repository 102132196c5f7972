"""Stopping a training run from outside without leaving anything half done.

The first SIGINT raises KeyboardInterrupt where the program is, or at the end of a section that
must not be cut (writing a row and its checkpoint). The second one is not held back.
"""

from __future__ import annotations

import contextlib
import multiprocessing.heap
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

INTERRUPTED = 130  # the shell's 128 + SIGINT
# Python's bookkeeping of shared memory, which an exception leaves wrong for all that comes after.
UNINTERRUPTED = multiprocessing.heap.__file__
POSTPONED = 0.01  # seconds until a signal that struck there comes again


class InterruptGuard:
    """Holds signals back in shielded sections. Made by `interrupt_guard`."""

    def __init__(self, *, exit_at_second: bool) -> None:
        self._exit_at_second = exit_at_second
        self._received = 0
        self._depth = self._against_all = 0
        self._held = False

    @contextlib.contextmanager
    def shielded(self, *, against_all: bool = False) -> Iterator[None]:
        """A section that the first signal interrupts only at its end.

        Args:
            against_all: later signals, too. For what takes no time, and would be left half done.
        """
        self._depth += 1
        self._against_all += against_all
        try:
            yield
        finally:
            self._depth -= 1
            self._against_all -= against_all
        if self._held and not self._depth:
            self._held = False
            raise KeyboardInterrupt

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if _is_in(frame, UNINTERRUPTED):
            threading.Timer(POSTPONED, os.kill, (os.getpid(), number)).start()
            return
        self._received += 1
        if self._received > 1 and self._exit_at_second:
            os._exit(INTERRUPTED)
        if self._depth and (self._received == 1 or self._against_all):
            self._held = True
            return
        raise KeyboardInterrupt


def _is_in(frame: FrameType | None, file: str) -> bool:
    while frame is not None and frame.f_code.co_filename != file:
        frame = frame.f_back
    return frame is not None


_active: list[InterruptGuard] = []


@contextlib.contextmanager
def interrupt_guard(*, command_line: bool = False) -> Iterator[InterruptGuard]:
    """Route SIGINT through a guard while the block runs; inside another guard, that one serves.

    Args:
        command_line: SIGTERM counts too, and a second signal ends the process at once (130).

    Outside the main thread, or where a program installed its own handler, signals are left alone.
    """
    guard = InterruptGuard(exit_at_second=command_line)
    if threading.current_thread() is not threading.main_thread():
        yield guard
        return
    if _active:
        yield _active[-1]
        return
    previous: dict[int, Any] = {}
    if command_line or signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        previous[signal.SIGINT] = signal.signal(signal.SIGINT, guard.handle)
    if command_line:
        previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, guard.handle)
    _active.append(guard)
    try:
        yield guard
    finally:
        _active.remove(guard)
        for number, handler in previous.items():
            signal.signal(number, handler)
