"""A look, from beside, at environments that are stepped in this process: who does not come back.

Code of Python's can be interrupted here, code in C or in a driver cannot, and either is silent
while it hangs. So a hung step is told of, with the line of code that it is at, and left to Ctrl-C
or to `vectorization="workers"`, whose processes can be ended.
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
import time
import weakref
from typing import Any, Protocol

from trpo_fast.base.output import remark
from trpo_fast.environments.silence import Silence

LOOK = 1.0  # seconds between two looks
NOBODY, SOMEBODY = -1, -2
ADVICE = (
    "It cannot be ended from within this process: Ctrl-C may, and --vectorization workers with "
    "--step-timeout does."
)


class Stepping(Protocol):
    """What is looked at.

    Attributes:
        calls: How often the environments were asked for anything.
        under_way: ``under_way[0]`` is the number of the one that is asked now, or NOBODY, or
            SOMEBODY where it is not known which.
    """

    calls: int
    under_way: Any

    def steps_of(self, env: int) -> int:
        """How many steps the running episode of environment ``env`` has, the one now included."""
        ...


class Watch:
    """A thread that looks at environments once a second, until they are closed or gone.

    Args:
        stepping: the environments.
        name: what to call them in messages.
        limit: seconds after which one is taken to hang, and where it is at is shown; 0: never.
        advice: what to do about one that hangs.
    """

    def __init__(
        self, stepping: Stepping, name: str, limit: float = 0.0, advice: str = ADVICE
    ) -> None:
        self._stepping = weakref.ref(stepping)
        self._name, self._limit = name, limit
        self._over = threading.Event()
        self._advice, self._silence = advice, Silence(advice)
        self._shown = False
        self._thread = threading.Thread(target=self._run, name="trpo_fast-watch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Look no more."""
        self._over.set()

    def _run(self) -> None:
        seen, since = None, 0.0
        pause = min(LOOK, self._limit / 4) if self._limit else LOOK
        while not self._over.wait(pause):
            stepping = self._stepping()
            if stepping is None:
                return
            env, now = int(stepping.under_way[0]), time.monotonic()
            found = (stepping.calls, env)
            if env == NOBODY or found != seen:
                seen, since, self._shown = found, now, False
            else:
                self._tell(stepping, env, since, now)
            del stepping

    def _tell(self, stepping: Stepping, env: int, since: float, now: float) -> None:
        who, where = f"an environment of {self._name}", ""
        if env != SOMEBODY:
            who = f"environment {env} of {self._name}"
            where = f" in step {stepping.steps_of(env)} of its episode"
        if self._limit and now - since >= self._limit and not self._shown:
            self._shown = True
            remark(
                f"{who} did not answer within {self._limit:g} s{where}. {self._advice} It is at:"
            )
            with contextlib.suppress(OSError, ValueError, RuntimeError):  # stderr may be closed
                faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        elif not self._limit:
            self._silence.since(since, who, where)
