"""A line on stderr about a step that does not come back, so that a hung run is not a riddle."""

from __future__ import annotations

import time

from trpo_fast.base.output import remark

# Seconds that a step is silent before it is told of.
SILENCE = 30.0
ADVICE = (
    "--step-timeout SECONDS (step_timeout=) takes one to hang after so long and stops the run with "
    "its last update saved."
)


class Silence:
    """Tells of long waits: of the first after `SILENCE`, of each later one after twice the time.

    An environment whose every step takes a minute so gets a few lines, not one a step.

    Args:
        advice: what to do about it.
    """

    def __init__(self, advice: str = ADVICE) -> None:
        self._advice = advice
        self._told = 0  # lines so far
        self._last = 0.0  # when the last one was

    def since(self, began: float, who: str, where: str) -> None:
        """Say a line if it is time to: ``who`` is awaited since the clock's ``began``."""
        now = time.monotonic()
        pause = SILENCE * 2**self._told
        if now - began < SILENCE or (self._told and now - self._last < pause):
            return
        self._told, self._last = self._told + 1, now
        remark(f"waiting for {who}: no answer for {now - began:.0f} s{where}. {self._advice}")
