"""A worker process as its trainer sees it: beginning, asking, hearing, ending."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from gymnasium.vector.utils import CloudpickleWrapper

from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.environments.board import Bell, Board, Gone, Hung
from trpo_fast.environments.worker_process import (
    ANSWER,
    ANSWERED,
    ASKED,
    CALL,
    NOBODY,
    REQUEST,
    SPOKEN,
    UNDER_WAY,
    Source,
    environments,
    serve,
)

# Seconds that processes have to end once they were asked to, before they are killed.
LAST_WORDS = 1.0


class Worker:
    """One process, seen from the trainer."""

    def __init__(self, number: int, board: Board, source: Source, look: float) -> None:
        self.number = number
        self.source = source
        self._look = look
        self._board = board
        self._words = board.words[number].data
        self._words[UNDER_WAY] = NOBODY
        self.bells = Bell(), Bell()
        self._asked = self.bells[0].attach(board.words[number], ASKED)
        self._answered = self.bells[1].attach(board.words[number], ANSWERED)
        self.pipe: Connection
        self.process: Any = None

    def start(self, context: Any, older: Sequence[Connection]) -> None:
        """Begin the process; ``older`` are the trainer's ends of other workers' pipes."""
        self.pipe, theirs = context.Pipe()
        forked = context.get_start_method() == "fork"
        inherited = [*older, self.pipe] if forked else []
        given: Any = self.source
        source: Any = CloudpickleWrapper(given)  # for functions that pickle cannot send
        process = context.Process(
            target=_serve,
            args=(self.number, self._board, source, self.bells, theirs, inherited, self._look),
            name=f"trpo_fast-worker-{self.number}",
            daemon=True,
        )
        try:
            process.start()
        except BaseException:
            self.pipe.close()
            raise
        finally:
            theirs.close()
        self.process = process
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
            self._wait(limit, NOBODY if when else self.source.first)
            answer: int = self._words[ANSWER]
            if answer != SPOKEN:
                return answer
            spoken = self.pipe.recv()
        except Hung:
            raise self._fault(f"its process did not answer within {limit:g} s", when) from None
        except (Gone, EOFError, OSError):
            join([self.process], LAST_WORDS)
            cause = _cause(self.process.exitcode)
            raise self._fault(f"its process died{cause}", when) from None
        if isinstance(spoken, EnvironmentFault) and spoken.traceback:
            spoken.add_note(f"In the environment's process:\n{spoken.traceback}")
        if isinstance(spoken, Exception):
            raise spoken
        return spoken

    def _wait(self, limit: float | None, under_way: int) -> None:
        """Wait for an answer; Hung where the same environment is under way for so many seconds."""
        while True:
            try:
                self._answered.wait(self._look, limit)
            except Hung:
                before, under_way = under_way, self._words[UNDER_WAY]
                if under_way == before:
                    raise
            else:
                return

    def _fault(self, what: str, when: str) -> EnvironmentFault:
        """The fault of a process that does not answer."""
        env, source = self._words[UNDER_WAY], self.source
        if env == NOBODY:
            rows = source.rows
            only = rows.start if rows.stop - rows.start == 1 else None
            who = environments(rows.start, rows.stop)
            return EnvironmentFault(f"{who} of {source.name}: {what} {when}", env_index=only)
        step, action = int(self._board.steps[env]) + 1, np.array(self._board.actions[env])
        return EnvironmentFault(
            f"environment {env} of {source.name}: {what} in step() "
            f"(step {step}, action {action.tolist()})",
            env_index=env,
            step=step,
            action=action,
        )

    def close(self) -> None:
        """Give back what its process no longer needs."""
        for bell in self.bells:
            bell.close()
        if self.process is not None:
            self.pipe.close()
            self.process.close()
            self.process = None


def _serve(number: int, board: Board, source: Any, *rest: Any) -> None:
    serve(number, board, source.fn, *rest)


def _cause(code: int | None) -> str:
    """Why a process ended, as far as its exit code tells."""
    if code is None:
        return ""
    if code >= 0:
        return f" (exit code {code})"
    with contextlib.suppress(ValueError):
        return f" ({signal.Signals(-code).name})"
    return f" (signal {-code})"


def join(processes: Sequence[Any], seconds: float | None) -> None:
    """Wait until all have ended, or for so long altogether."""
    end = None if seconds is None else time.monotonic() + seconds
    for process in processes:
        process.join(None if end is None else max(0.0, end - time.monotonic()))
