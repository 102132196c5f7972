"""What a person sees during training: rows now and then, and on a terminal a bar below them.

Output is never a reason to stop: when it fails (a closed pipe), it is switched off.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Self

# A row where no terminal shows a bar: after so many seconds, or such a share of the run.
PLAIN_SECONDS = 10.0
PLAIN_SHARE = 0.05
# Above a bar: that is there for the time between.
ROW_SECONDS = 60.0
ROW_SHARE = 0.1
REDRAW_SECONDS = 0.1
RECENT_SECONDS = 15.0
BAR_WIDTH = 10  # at least
LEVELS = "▁▂▃▄▅▆▇█"
CELLS = 8  # of a sparkline
# What a line leaves out first, where it is too narrow for all.
ROW_RANKS = ("all", "steps", "eta", "bound", "course", "kl", "fps")
BAR_RANKS = ("all", "steps", "course", "bound", "eta", "kl", "fps")
CLOSE = ("all", "steps", "course", "bound")  # to what stands before


class ProgressDisplay:
    """Shows steps done, return, KL, frames per second and the time left. A context manager.

    Args:
        total: steps at which the run ends, absolute.
        start: steps done before.
        enabled: False shows nothing.
        max_kl: the bound that the KL is shown against.
    """

    def __init__(
        self, total: int, start: int = 0, *, enabled: bool = True, max_kl: float | None = None
    ) -> None:
        self._total = max(total, 1)
        self._start = start
        self._max_kl = max_kl
        self._began = time.monotonic()
        self._next_draw = 0.0
        self._next_row = (0.0, 0.0)  # in seconds, and in the share of the run
        self._shown = start  # steps of the last row
        self._latest: tuple[int, Mapping[str, Any]] | None = None
        self._recent: deque[tuple[float, int]] = deque([(0.0, start)])
        self._returns: list[float] = []
        self._alive = enabled and sys.stdout is not None and not sys.stdout.closed
        self._draws_lines = _draws_lines()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if self._alive and sys.stdout.isatty():
            self._guard(self._open_bar)
        return self

    def __exit__(self, *exception: object) -> None:
        # The bar goes, whatever an interrupt wrote into it, and what it showed stays as a row.
        if self._bar is not None:
            self._guard(self._bar.stop)
        latest = self._latest
        if self._alive and latest is not None and latest[0] != self._shown:
            self._guard(lambda: self._print_row(*latest))

    def update(self, steps: int, row: Mapping[str, Any]) -> None:
        """Show an update: `steps` done so far, `row` as it goes to the log."""
        if not self._alive:
            return
        now = time.monotonic() - self._began
        self._latest = steps, row
        self._recent.append((now, steps))
        while len(self._recent) > 2 and self._recent[1][0] < now - RECENT_SECONDS:
            self._recent.popleft()
        reward = row.get("rollout/ep_rew_mean")
        if reward is not None and math.isfinite(reward):
            self._returns.append(float(reward))
        self._guard(lambda: self._show(steps, row, now))

    def _show(self, steps: int, row: Mapping[str, Any], now: float) -> None:
        share = steps / self._total
        seconds, next_share = self._next_row
        if now >= seconds or share >= min(next_share, 1.0):
            self._print_row(steps, row)
            bar = self._bar is not None
            self._next_row = (
                now + (ROW_SECONDS if bar else PLAIN_SECONDS),
                share + (ROW_SHARE if bar else PLAIN_SHARE),
            )
        if self._bar is not None and (now >= self._next_draw or share >= 1):
            self._next_draw = now + REDRAW_SECONDS
            done = min(steps, self._total)
            width = self._bar.console.width - BAR_WIDTH - 1
            text = _fitting(self._pieces(steps, row), width, BAR_RANKS)
            self._bar.update(self._task, completed=done, text=text, refresh=True)

    def _print_row(self, steps: int, row: Mapping[str, Any]) -> None:
        self._shown = steps
        pieces = self._pieces(steps, row)
        if self._bar is None:
            print(_fitting(pieces, sys.maxsize, ROW_RANKS), flush=True)
        else:
            console = self._bar.console
            line = _fitting(pieces, console.width - 1, ROW_RANKS)
            console.print(line, highlight=False, markup=False, no_wrap=True)

    def _pieces(self, steps: int, row: Mapping[str, Any]) -> dict[str, str]:
        """What a line says, by name, from left to right."""
        reward, kl = row.get("rollout/ep_rew_mean"), row.get("train/kl")
        overall = _rate(self._recent[-1], (0.0, self._start))
        recent = _rate(self._recent[-1], self._recent[0])
        left = max(self._total - steps, 0) / overall if overall > 0 else 0.0
        pieces = {
            "count": f"{steps:>{len(str(self._total))}}/{self._total}",
            "steps": "steps",
            "return": f"return {'-' if reward is None else f'{reward:.1f}'}",
            "course": _sparkline(self._returns) if self._draws_lines else "",
            "kl": f"kl {'-' if kl is None else f'{kl:.4f}'}",
            "bound": "" if self._max_kl is None else f"of {self._max_kl:g}",
            "fps": f"fps {recent:.0f}",
            "all": f"({overall:.0f} overall)",
            "eta": f"eta {_clock(left)}",
        }
        return {name: text for name, text in pieces.items() if text}

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        # No refresh thread: its errors could not be caught here.
        bar = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(),
            auto_refresh=False,
            transient=True,
            expand=True,
        )
        self._task = bar.add_task("", total=self._total, completed=self._start, text="")
        bar.start()
        self._bar = bar

    def _guard(self, action: Any) -> None:
        try:
            action()
        except (OSError, ValueError):
            self._alive = False
            self._bar = None


def _fitting(pieces: Mapping[str, str], width: int, ranks: Sequence[str]) -> str:
    """The pieces in one line; where it would be too long, without those of the first ranks."""
    kept = dict(pieces)
    for name in (*ranks, None):
        line = ""
        for piece, text in kept.items():
            line += f"{'' if not line else ' ' if piece in CLOSE else '  '}{text}"
        if len(line) <= width:
            break
        kept.pop(name or "", None)
    return line


def _draws_lines() -> bool:
    """Whether a sparkline can be written on stdout."""
    try:
        LEVELS.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _sparkline(values: Sequence[float]) -> str:
    """The course of some values in a few characters."""
    if len(values) < 2:
        return ""
    cells = min(CELLS, len(values))
    edges = [len(values) * i // cells for i in range(cells + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(LEVELS) - 1) / (high - low) if high > low else 0.0
    return "".join(LEVELS[round((mean - low) * scale)] for mean in means)


def _rate(now: tuple[float, int], before: tuple[float, int]) -> float:
    return (now[1] - before[1]) / max(now[0] - before[0], 1e-9)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
