"""One training a run directory: a lock that the operating system releases, whatever happens.

It is advisory and only of this package's processes: reading (plot, eval) never asks for it. Where
there is no flock (Windows, some network file systems) nothing is locked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trpo_fast.runs.files import open_to_change

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


OWNER = b"process "


class LockedError(ValueError):
    """Another training, in this process or another, holds the lock; the text names it."""


class RunLock:
    """Holds the file `path` locked until `release`, or until the process ends.

    The file stays behind: were it removed, two others could each lock a file of that name. Raises
    LockedError, or OSError where the file cannot be made or is none of ours.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        # Without a buffer: what a full disk refuses must not come up again when it is closed.
        self._file = open_to_change(path, buffering=0)
        try:
            self._take()
        except BaseException:
            self.leave()
            raise
        _held.add(self)

    def release(self) -> None:
        """Let others have it; again is harmless."""
        if not self._file.closed and fcntl is not None:
            # A child forked a moment ago may not have closed its copy yet, which would keep it.
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)
        self.leave()

    def leave(self) -> None:
        """Close the file alone, as a forked child must: unlocking it would unlock the parent's."""
        self._file.close()

    def _take(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read(200).decode("utf-8", "replace").strip()
            raise LockedError(owner or "of an unknown process") from None
        except OSError:
            return  # a file system without locks
        held = self._file.read(len(OWNER))
        if held != OWNER[: len(held)]:
            # By this name, or by a hard link of it, it could be anything of the user's.
            raise OSError(errno.EEXIST, "it is no lock of a training: move it away", self._path)
        with contextlib.suppress(OSError):
            self._file.seek(0)
            self._file.truncate()
            self._file.write(OWNER + f"{os.getpid()} on {socket.gethostname()}\n".encode())


@contextlib.contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """A section that one process at a time is in, for each directory; the others wait.

    Raises OSError where the directory cannot be opened.
    """
    if fcntl is None:
        yield
        return
    opened = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _let_go() -> None:
    """In a forked child: a worker that outlives its training must not keep the directory locked."""
    for lock in _held:
        lock.leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
