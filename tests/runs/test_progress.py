"""The progress display never stops a training."""

from __future__ import annotations

import contextlib
import io
import re
import sys

import pytest

from trpo_fast.runs import progress
from trpo_fast.runs.progress import ProgressDisplay

ROW = {"train/kl": 0.0098}


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def show(rows: int = 3, **options: float) -> None:
    with ProgressDisplay(rows * 100, **options) as display:
        for i in range(rows):
            display.update(100 * (i + 1), ROW | {"rollout/ep_rew_mean": 10.34 + i})


def terminal_of(monkeypatch: pytest.MonkeyPatch, columns: int) -> Terminal:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", terminal)
    return terminal


def rows_of(terminal: Terminal) -> list[str]:
    """What stays on the screen: lines that no control sequence takes back."""
    return [
        line for line in terminal.getvalue().splitlines() if "return" in line and "━" not in line
    ]


def test_plain_lines_when_stdout_is_no_terminal(capsys):
    show()
    out = capsys.readouterr().out
    assert "300/300 steps  return 12.3 ▁▅█  kl 0.0098  fps" in out
    assert "\x1b" not in out


def test_a_bar_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", terminal)
    show()
    assert "300/300" in terminal.getvalue()
    assert "return 12.3" in terminal.getvalue()


def test_no_colour_codes_with_no_color(monkeypatch):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", terminal)
    show()
    assert "\x1b[3" not in terminal.getvalue()
    assert "return 12.3" in terminal.getvalue()


def test_silence_when_disabled(capsys):
    with ProgressDisplay(100, enabled=False) as display:
        display.update(100, ROW)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_a_closed_pipe_switches_the_display_off(monkeypatch, terminal):
    class Broken(io.StringIO):
        writes = 0

        def isatty(self):
            return terminal

        def write(self, text):
            Broken.writes += 1
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Broken())
    show()
    assert Broken.writes == 1


def test_a_closed_or_missing_stdout_is_survived(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stdout in (closed, None):
        monkeypatch.setattr(sys, "stdout", stdout)
        show()


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_rows_fit_the_terminal_and_stay(monkeypatch, columns):
    terminal = terminal_of(monkeypatch, columns)
    show(40, max_kl=0.01)
    rows = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", row).rstrip() for row in rows_of(terminal)]
    assert 8 <= len(rows) <= 16
    assert all(len(row) < columns for row in rows)
    assert all("kl 0.0098" in row for row in rows)
    if columns >= 80:
        assert "kl 0.0098 of 0.01" in rows[-1]
        assert "▁▂▃▄▅▆▇█" in rows[-1]
    assert rows[-1].lstrip().startswith("4000/4000")
    assert len(set(rows)) == len(rows)


def test_the_bar_goes_after_an_interrupt_and_the_last_update_stays_as_a_row(monkeypatch):
    terminal = terminal_of(monkeypatch, 100)
    with contextlib.suppress(KeyboardInterrupt), ProgressDisplay(1_000_000) as display:
        for steps in (1000, 2000, 3000):
            display.update(steps, ROW)
        raise KeyboardInterrupt
    after_the_bar = terminal.getvalue().rpartition("━")[2]
    assert "\x1b[2K" in after_the_bar
    assert after_the_bar.count("3000/1000000") == 1


def test_plain_lines_tell_of_recent_and_overall_speed(monkeypatch, capsys):
    now = iter([0.0, *range(1, 101)])
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(now)))
    with ProgressDisplay(10_000, max_kl=0.02) as display:
        for second in range(1, 101):
            display.update(second if second <= 50 else 50 + 100 * (second - 50), ROW)
    last = capsys.readouterr().out.splitlines()[-1]
    assert "kl 0.0098 of 0.02" in last
    assert "fps 100 (50 overall)" in last


def test_a_narrow_encoding_has_no_sparkline(monkeypatch):
    terminal = terminal_of(monkeypatch, 120)
    terminal.encoding = "ascii"
    show(40)
    assert "▁" not in terminal.getvalue()
