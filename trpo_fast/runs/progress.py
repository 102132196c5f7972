"""What a person sees during training: a rich bar on a terminal, plain lines elsewhere.

Output is never a reason to stop: when it fails (a closed pipe), it is switched off.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Self

PLAIN_SECONDS = 10.0
PLAIN_SHARE = 0.05
REDRAW_SECONDS = 0.1


class ProgressDisplay:
    """Shows steps done, return, KL, frames per second and the time left. A context manager.

    Args:
        total: steps at which the run ends, absolute.
        start: steps done before.
        enabled: False shows nothing.
    """

    def __init__(self, total: int, start: int = 0, *, enabled: bool = True) -> None:
        self._total = max(total, 1)
        self._start = start
        self._began = time.monotonic()
        self._next_time = 0.0
        self._next_share = 0.0
        self._alive = enabled and sys.stdout is not None and not sys.stdout.closed
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if self._alive and sys.stdout.isatty():
            self._guard(self._open_bar)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._guard(self._bar.stop)

    def update(self, steps: int, row: Mapping[str, Any]) -> None:
        """Show an update: `steps` done so far, `row` as it goes to the log."""
        if not self._alive:
            return
        figures = _figures(row) | self._pace(steps)
        self._guard(lambda: self._draw(steps, figures))

    def _pace(self, steps: int) -> dict[str, str]:
        rate = (steps - self._start) / max(time.monotonic() - self._began, 1e-9)
        left = max(self._total - steps, 0) / rate if rate > 0 else 0.0
        return {"fps": f"{rate:.0f}", "eta": _clock(left)}

    def _draw(self, steps: int, figures: Mapping[str, str]) -> None:
        now, share = time.monotonic() - self._began, steps / self._total
        if self._bar is not None:
            redraw = now >= self._next_time or share >= 1
            self._bar.update(
                self._task, completed=min(steps, self._total), refresh=redraw, **figures
            )
            if redraw:
                self._next_time = now + REDRAW_SECONDS
        elif now >= self._next_time or share >= min(self._next_share, 1.0):
            self._next_time, self._next_share = now + PLAIN_SECONDS, share + PLAIN_SHARE
            width = len(str(self._total))
            words = "  ".join(f"{name} {value}" for name, value in figures.items())
            print(f"{steps:>{width}}/{self._total} steps  {words}", flush=True)

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        # No refresh thread: its errors could not be caught here.
        bar = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("return {task.fields[return]}"),
            TextColumn("kl {task.fields[kl]}"),
            TextColumn("fps {task.fields[fps]}"),
            TextColumn("eta {task.fields[eta]}"),
            console=Console(),
            auto_refresh=False,
        )
        fields: dict[str, Any] = {"return": "-", "kl": "-", "fps": "-", "eta": "-"}
        self._task = bar.add_task("", total=self._total, completed=self._start, **fields)
        bar.start()
        self._bar = bar

    def _guard(self, action: Any) -> None:
        try:
            action()
        except (OSError, ValueError):
            self._alive = False
            self._bar = None


def _figures(row: Mapping[str, Any]) -> dict[str, str]:
    reward, kl = row.get("rollout/ep_rew_mean"), row.get("train/kl")
    return {
        "return": "-" if reward is None else f"{reward:.1f}",
        "kl": "-" if kl is None else f"{kl:.4f}",
    }


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
