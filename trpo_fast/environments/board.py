"""What a trainer and its worker processes share: memory with a row an environment, and bells.

A step crosses between processes without a copy through the kernel: actions and answers lie in
memory of both, and one side tells the other by a bell. Memory and bells have no names in the file
system, so nothing of them outlives the processes, whatever ends these.
"""

from __future__ import annotations

import mmap
import os
import select
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from time import perf_counter
from typing import Any, Self

import numpy as np
import numpy.typing as npt

# Seconds for which an awaited bell is looked at before the process sleeps for it: longer than a
# small policy takes to choose the next actions, and than steps of two shares differ. To be woken
# takes far longer than to see a number, and to wake costs the one that rings.
LOOK = 5e-4
_LINE = 64  # bytes of a cache line: what two processes write lies on different ones


@dataclass(frozen=True)
class Shape:
    """The sizes that decide what lies where on a board."""

    num_envs: int  # B
    workers: int  # W
    width: int  # O, of a row of observations
    dtype: str  # of such rows
    choices: int  # n, of an action mask; 0 where actions cannot be masked
    action_shape: tuple[int, ...]
    action_dtype: str

    def parts(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The dtype and shape of each array."""
        envs = self.num_envs
        return {
            "words": ("int64", (self.workers, 2 * _LINE // 8)),
            "actions": (self.action_dtype, (envs, *self.action_shape)),
            "observations": (self.dtype, (envs, self.width)),
            "finals": (self.dtype, (envs, self.width)),
            "rewards": ("float64", (envs,)),
            "terminated": ("bool", (envs,)),
            "truncated": ("bool", (envs,)),
            "steps": ("int64", (envs,)),
            "masks": ("bool", (envs, self.choices)),
        }


class Board:
    """Arrays in memory that processes share; sent to a process as an argument, it is the same one.

    Attributes:
        shape: of everything.
        words: [W, 16], what :class:`Bell` counts.
        actions: [B, ...], what the environments are to do.
        observations: [B, O], what to act on next.
        finals: [B, O], where an episode was truncated in this step: where it stopped.
        rewards, terminated, truncated: [B], of this step.
        steps: [B], of the running episodes.
        masks: [B, n], for the next action.
    """

    words: npt.NDArray[np.int64]
    actions: npt.NDArray[Any]
    observations: npt.NDArray[Any]
    finals: npt.NDArray[Any]
    rewards: npt.NDArray[np.float64]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    steps: npt.NDArray[np.int64]
    masks: npt.NDArray[np.bool_]

    def __init__(self, shape: Shape, fd: int | None = None) -> None:
        self.shape = shape
        places: dict[str, int] = {}
        size = 0
        for name, (dtype, dims) in shape.parts().items():
            places[name] = size
            size += -(-int(np.prod(dims)) * np.dtype(dtype).itemsize // _LINE) * _LINE
        self._fd = os.memfd_create("trpo_fast", os.MFD_CLOEXEC) if fd is None else fd
        if fd is None:
            os.ftruncate(self._fd, size)
        memory = mmap.mmap(self._fd, size)
        for name, (dtype, dims) in shape.parts().items():
            array = np.frombuffer(memory, dtype, int(np.prod(dims)), places[name]).reshape(dims)
            setattr(self, name, array)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _attached, (self.shape, DupFd(self._fd))

    def forget_file(self) -> None:
        """Close the file behind the memory, once no further process is to be given it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _attached(shape: Shape, fd: Any) -> Board:
    board = Board(shape, fd.detach())
    board.forget_file()
    return board


class Hung(Exception):  # noqa: N818
    """The other process did not answer in time."""


class Gone(Exception):  # noqa: N818
    """The other process has ended, or will within a moment."""


class Bell:
    """One process rings it, another waits for it.

    How often it was rung lies in shared memory, which is looked at before the process sleeps: that
    saves being woken up. Only the eventfd counts, though: its system calls order the memory of two
    processes, on every kind of processor, and end a sleep.
    """

    def __init__(self, fd: int | None = None) -> None:
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.fd = os.eventfd(0, flags) if fd is None else fd

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _same_bell, (DupFd(self.fd),)

    def attach(self, words: npt.NDArray[np.int64], place: int) -> Self:
        """Count in ``words[place]`` from here on."""
        self._words: memoryview = words.data
        self._place = place
        self._count = 0
        self._vain = self._skip = 0
        return self

    def ring(self) -> None:
        """Tell the other process; what was written to shared memory before is there for it."""
        self._count += 1
        self._words[self._place] = self._count
        os.eventfd_write(self.fd, 1)

    def listen(self, other: Any) -> None:
        """Before `wait`: the pipe whose closing tells that the other process has ended."""
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)
        self._poll.register(other, 0)

    def wait(self, look: float, limit: float | None = None) -> None:
        """Return when it was rung once more.

        Args:
            look: seconds to look before sleeping.
            limit: seconds to wait altogether; None: for ever.

        Raises:
            Hung: the limit is over.
            Gone: the other process has closed its end of the pipe without ringing.
        """
        self._count += 1
        words, place, count = self._words, self._place, self._count
        if look and self._skip:
            self._skip -= 1
        elif look:
            end = perf_counter() + look
            while words[place] != count and perf_counter() < end:
                os.sched_yield()  # to the other process, should it want this very core
            self._learn(words[place] == count)
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            self._sleep(limit)

    def _learn(self, seen: bool) -> None:
        """After looking in vain, sleep at once the next 1, 3, 7, ... 63 times.

        Where the other process does not run, since others use the cores, looking keeps it from it.
        """
        self._vain = 0 if seen else min(self._vain + 1, 6)
        self._skip = (1 << self._vain) - 1

    def _sleep(self, limit: float | None) -> None:
        events = dict(self._poll.poll(None if limit is None else 1e3 * limit))
        if self.fd in events:
            os.eventfd_read(self.fd)
        elif events:
            raise Gone
        else:
            self._count -= 1  # it is still to be rung: one may wait on
            raise Hung

    def close(self) -> None:
        """Give the eventfd back."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        if hasattr(self, "fd"):  # it may have been refused
            self.close()


def _same_bell(fd: Any) -> Bell:
    return Bell(fd.detach())
