"""The progress display never stops a training."""

from __future__ import annotations

import io
import sys

import pytest

from trpo_fast.runs.progress import ProgressDisplay

ROW = {"rollout/ep_rew_mean": 12.34, "train/kl": 0.0098}


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def show(rows: int = 3) -> None:
    with ProgressDisplay(rows * 100) as display:
        for i in range(rows):
            display.update(100 * (i + 1), ROW)


def test_plain_lines_when_stdout_is_no_terminal(capsys):
    show()
    out = capsys.readouterr().out
    assert "300/300 steps  return 12.3  kl 0.0098  fps" in out
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
