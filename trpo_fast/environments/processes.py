"""The ends of processes: with their trainer, at its word, by its hand, and what is said of them."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.process
import os
import select
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from trpo_fast.base.errors import EnvironmentFault, EnvironmentSetupError, users_level

# Seconds in which processes that are told to end must show that they heard it, and in which they
# must have obeyed SIGTERM before they are killed: all of them together.
LAST_WORDS = 0.7
# Seconds that their environments have for close().
CLOSING = 5.0
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


# In the process


def made_in_main_thread() -> bool:
    """Whether a process started now lives as long as this one: the kernel looks at the thread."""
    return threading.current_thread() is threading.main_thread()


def end_with_trainer(pipe: Connection | int, *, by_signal: bool) -> None:
    """End this process with the one at the other end of a pipe, even amid a step.

    Args:
        pipe: whose other end closes with the trainer, or when that gives the process up.
        by_signal: let the kernel kill it, too. That works where a thread would not get to run (in
            a stopped process, or in code that keeps the interpreter's lock), but only
            `made_in_main_thread`.
    """
    if by_signal:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()


def _end_with(pipe: Connection | int) -> None:
    poller = select.poll()
    poller.register(pipe, 0)  # what is always told: that the other end is closed
    poller.poll()
    with contextlib.suppress(Exception):
        sys.stderr.flush()
    os._exit(1)


def close_for(pipe: Connection, close: Callable[[], Any]) -> None:
    """Close environments at the trainer's word, and say by its pipe what came of it."""
    said = closed(close)
    with contextlib.suppress(OSError):
        pipe.send(said)


# In the trainer


def start_method() -> str:
    """How multiprocessing starts processes here, without settling it for the whole program."""
    chosen = multiprocessing.get_start_method(allow_none=True)
    return chosen or multiprocessing.get_all_start_methods()[0]


def keep_from_forks(processes: Sequence[Any]) -> None:
    """Started here, these are to outlive a fork of this program: its exit would end its children.

    ``os.fork`` copies multiprocessing's list of those.
    """
    _KEPT.update(processes)


_KEPT: weakref.WeakSet[Any] = weakref.WeakSet()


def _disown() -> None:
    # The set is Python's own affair: one that has no such has nothing to be kept from either.
    getattr(multiprocessing.process, "_children", set()).difference_update(_KEPT)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown)


def closed(close: Callable[[], Any]) -> str:
    """Close environments, and return what they raised in words: nothing is lost by it any more."""
    try:
        close()
    except EnvironmentSetupError:
        raise  # a video that could not be written is lost
    except EnvironmentFault as fault:
        return str(fault)
    except (Exception, SystemExit) as error:  # noqa: BLE001 (a window that exits when it is closed)
        return f"{type(error).__name__} in close(): {error}"
    return ""


def dismiss(
    processes: Sequence[Any], pipes: Sequence[Connection], names: Sequence[str]
) -> list[str]:
    """End processes that were asked to close their environments; what is to be told of that.

    Each sends something at once, and what `close_for` does at last. One that does not even begin
    (it is stopped, or gone) is not waited for.
    """
    by = time.monotonic() + LAST_WORDS
    closing = [i for i, pipe in enumerate(pipes) if _next(pipe, by) is not _NOTHING]
    by = time.monotonic() + CLOSING
    said = {i: _next(pipes[i], by) for i in closing}
    join([processes[i] for i in closing if said[i] is not _NOTHING], LAST_WORDS)
    end(processes)
    hung = f"did not return from close() within {CLOSING:g} s; its process was ended"
    return [f"{names[i]} {hung}" if it is _NOTHING else it for i, it in said.items() if it]


def warn_of_closing(name: str, told: Sequence[str]) -> None:
    """Warn of what went wrong in closing, which by then has been done."""
    texts = [text for text in told if text]
    if texts:
        warnings.warn(
            f"{name} did not close well: {'; '.join(texts)}",
            RuntimeWarning,
            stacklevel=users_level(),
        )


_NOTHING = object()


def _next(pipe: Connection, end: float) -> Any:
    """What arrives by a pipe, as long as there is time; "" from a process that has ended."""
    try:
        ready = pipe.poll(max(0.0, end - time.monotonic()))
        return pipe.recv() if ready else _NOTHING
    except (EOFError, OSError):
        return ""


def end(processes: Sequence[Any]) -> None:
    """End processes, all at once, whatever they are at."""
    started = [process for process in processes if process.pid is not None]
    for process in started:
        process.terminate()
    join(started, LAST_WORDS)
    for process in started:
        process.kill()  # nothing to one that has ended
    join(started, None)


def join(processes: Sequence[Any], seconds: float | None) -> None:
    """Wait until all have ended, or for so long altogether."""
    end = None if seconds is None else time.monotonic() + seconds
    for process in processes:
        process.join(None if end is None else max(0.0, end - time.monotonic()))


def death(process: Any) -> str:
    """That a process died, and why, as far as its exit code tells."""
    join([process], LAST_WORDS)
    code = process.exitcode
    if code is None:
        return "its process died"
    if code >= 0:
        return f"its process died (exit code {code})"
    with contextlib.suppress(ValueError):
        return f"its process died ({signal.Signals(-code).name})"
    return f"its process died (signal {-code})"
