"""Waiting for what happens, however long a busy machine takes for it."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds after which something is taken to hang. A machine that does other things takes tens of
# them to import torch; no test that passes waits for this.
PATIENCE = 600.0


def wait_until(done: Callable[[], bool], give_up: Callable[[], object] = lambda: None) -> None:
    """Return as soon as `done` says so; TimeoutError, after `give_up`, where it never does."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            give_up()
            raise TimeoutError(f"nothing happened in {PATIENCE:.0f} s")
        time.sleep(0.005)
