"""A worker process as its trainer sees it: beginning, asking, hearing, ending."""

from __future__ import annotations

import contextlib
import time
import warnings
import weakref
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper

from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.environments import silence
from trpo_fast.environments.board import Bell, Board, Gone, Hung
from trpo_fast.environments.processes import death, keep_from_forks, made_in_main_thread
from trpo_fast.environments.silence import Silence
from trpo_fast.environments.watch import NOBODY
from trpo_fast.environments.worker_process import (
    ANSWER,
    ANSWERED,
    ASKED,
    CALL,
    REQUEST,
    SPOKEN,
    UNDER_WAY,
    Source,
    environments,
    serve,
)

# The trainer's ends of all workers' pipes. A forked process has them, too, and closes them: a
# worker ends when nobody has the other end of its pipe.
_ENDS: weakref.WeakSet[Connection] = weakref.WeakSet()


class Worker:
    """One process, seen from the trainer."""

    def __init__(
        self, number: int, board: Board, source: Source, look: float, silence: Silence
    ) -> None:
        self.number = number
        self.source = source
        self._look = look
        self._silence = silence
        self._board = board
        self._words = board.words[number].data
        self._words[UNDER_WAY] = NOBODY
        self.bells = Bell(), Bell()
        self._asked = self.bells[0].attach(board.words[number], ASKED)
        self._answered = self.bells[1].attach(board.words[number], ANSWERED)
        self.pipe: Connection
        self.process: Any = None

    def start(self, context: Any) -> None:
        """Begin the process, as a context of multiprocessing does it."""
        self.pipe, theirs = context.Pipe()
        _ENDS.add(self.pipe)
        inherited = list(_ENDS) if context.get_start_method() == "fork" else []
        given: Any = self.source
        source: Any = CloudpickleWrapper(given)  # for functions that pickle cannot send
        process = context.Process(
            target=_serve,
            args=(
                *(self.number, self._board, source, self.bells, theirs, inherited, self._look),
                made_in_main_thread(),
            ),
            name=f"trpo_fast-worker-{self.number}",
            daemon=True,
        )
        try:
            with warnings.catch_warnings():
                # From Python 3.12 on: torch has threads, of which a worker uses none.
                warnings.filterwarnings("ignore", ".* is multi-threaded", DeprecationWarning)
                process.start()
        except BaseException:
            self.pipe.close()
            raise
        finally:
            theirs.close()
        self.process = process
        keep_from_forks([process])
        self._answered.listen(self.pipe)

    def ask(self, request: int) -> None:
        """Ring for a request."""
        self._words[REQUEST] = request
        self._asked.ring()

    def call(self, method: str, *arguments: Any) -> None:
        """Ask for a method of the share; `hear` gives what it returned."""
        self.ask(CALL)
        with contextlib.suppress(BrokenPipeError):  # `hear` tells
            self.pipe.send((method, arguments))

    def hear(self, limit: float | None, when: str) -> Any:
        """The answer to what was asked: QUIET, LOUD or what it says by the pipe.

        Args:
            limit: seconds to wait, in a step for each environment; None: for ever.
            when: what it was asked for, in words, where that was no step.

        Raises:
            EnvironmentFault: it sent one, did not answer in time, or its process died.
            EnvironmentSetupError: it sent one.
        """
        try:
            self._wait(limit, when)
            answer: int = self._words[ANSWER]
            if answer != SPOKEN:
                return answer
            spoken = self.pipe.recv()
        except Hung:
            raise self._fault(f"its process did not answer within {limit:g} s", when) from None
        except (Gone, EOFError, OSError):
            raise self._fault(death(self.process), when) from None
        if isinstance(spoken, EnvironmentFault) and spoken.traceback:
            spoken.add_note(f"In the environment's process:\n{spoken.traceback}")
        if isinstance(spoken, Exception):
            raise spoken
        return spoken

    def _wait(self, limit: float | None, when: str) -> None:
        """Wait for an answer; Hung where the same environment is under way for so many seconds."""
        under_way, began = NOBODY if when else self.source.first, time.monotonic()
        since = began  # the environment under way was seen to be
        while True:
            left = silence.SILENCE
            if limit is not None:
                # not below 0, which is no limit at all to poll
                left = min(left, max(0.0, since + limit - time.monotonic()))
            try:
                self._answered.wait(self._look, left)
            except Hung:
                before, under_way = under_way, self._words[UNDER_WAY]
                now = time.monotonic()
                if under_way != before:
                    since = now
                elif limit is not None and now >= since + limit:
                    raise
                self._silence.since(began, self.who, f" {when}" if when else self._where())
            else:
                return

    @property
    def who(self) -> str:
        """The environment under way, or all of the share, in words."""
        env, rows = self._words[UNDER_WAY], self.source.rows
        named = environments(rows.start, rows.stop) if env == NOBODY else f"environment {env}"
        return f"{named} of {self.source.name}"

    def _where(self) -> str:
        """What the environment under way is at, in words."""
        env = self._words[UNDER_WAY]
        if env == NOBODY:
            return ""
        step, action = int(self._board.steps[env]) + 1, self._board.actions[env].tolist()
        return f" in step() (step {step}, action {action})"

    def _fault(self, what: str, when: str) -> EnvironmentFault:
        """The fault of a process that does not answer."""
        env, rows = self._words[UNDER_WAY], self.source.rows
        if env == NOBODY:
            only = rows.start if rows.stop - rows.start == 1 else None
            text = f"{self.who}: {what} {when}".rstrip()
            return EnvironmentFault(text, env_index=only)
        return EnvironmentFault(
            f"{self.who}: {what}{self._where()}",
            env_index=env,
            step=int(self._board.steps[env]) + 1,
            action=np.array(self._board.actions[env]),
        )

    def close(self) -> None:
        """Give back what its process no longer needs."""
        for bell in self.bells:
            bell.close()
        process, self.process = self.process, None
        if process is not None:
            self.pipe.close()
            process.close()


def _serve(number: int, board: Board, source: Any, *rest: Any) -> None:
    serve(number, board, source.fn, *rest)
