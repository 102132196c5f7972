"""Files that others may write beside ours: written whole or not at all, links never followed.

A directory of runs can lie where other users and programs write, too. What they put at a name that
we open (a link, a FIFO, a directory) is refused in words: it is neither followed nor waited for.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from pathlib import Path
from typing import BinaryIO

from trpo_fast.base.errors import UserError

# Nobody else's: short, so that the file's own name may be as long as the file system allows, and
# drawn anew for each write, so that neither threads nor processes share one.
LEFTOVER = re.compile(r"\.trpo_fast-[0-9a-f]{32}\.tmp")
# Where the system knows them: a link is an error, and a FIFO opens at once.
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
AT_ONCE = getattr(os, "O_NONBLOCK", 0)
BINARY = getattr(os, "O_BINARY", 0)
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
# What may pass, at the very same place.
DISK_TROUBLE = NO_ROOM | {errno.EFBIG, errno.EIO}


class PathError(UserError):
    """A path that names no place; the text says what to give instead."""


def given_path(path: str | Path, what: str) -> Path:
    """The path that the user gave as `what`, a leading tilde expanded.

    Raises PathError for an empty one, which the working directory would otherwise stand for.
    """
    text = os.fspath(path)
    if not text or "\0" in text:
        said = "is empty" if not text else "holds a NUL character"
        raise PathError(f"{what} {said}: name a place, or '.' for the working directory")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # there is no such user
        raise PathError(f"{what} {text!r} leads nowhere: {error}") from None


def refusal(error: BaseException) -> str:
    """Why the disk refused, with the file where the error tells it."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path`: temporary file beside it, fsync, rename, fsync of the directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".trpo_fast-{secrets.token_hex(16)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK | BINARY
    handle = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def remove_leftovers(directory: Path) -> None:
    """Delete the temporary files of `write_atomically` that a killed process left in there."""
    with os.scandir(directory) as entries:
        found = [entry for entry in entries if LEFTOVER.fullmatch(entry.name)]
    for entry in found:
        if entry.is_file(follow_symlinks=False):
            Path(entry.path).unlink(missing_ok=True)


def open_to_read(path: Path) -> BinaryIO:
    """A file to read; OSError in words for what is none, such as a FIFO or a directory."""
    handle = os.open(path, os.O_RDONLY | AT_ONCE | BINARY)
    return _plain_file(handle, path, "rb")


def open_to_change(path: Path, *, buffering: int = -1) -> BinaryIO:
    """A file of ours to read and write, made where there is none.

    Raises OSError in words for a link, and for what is no file.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK | AT_ONCE | BINARY, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link, which is not followed", str(path)) from None
        raise
    return _plain_file(handle, path, "r+b", buffering)


def _plain_file(handle: int, path: Path, mode: str, buffering: int = -1) -> BinaryIO:
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return os.fdopen(handle, mode, buffering)  # type: ignore[return-value]
    os.close(handle)
    raise OSError(errno.EINVAL, "it is not a file", str(path))


def _sync_directory(directory: Path) -> None:
    """Make the rename itself durable, where the file system lets a directory be synced."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
