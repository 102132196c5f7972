"""Signals: at once outside a shielded section, at its end inside one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from functools import partial

import pytest

from trpo_fast.runs.interrupts import UNINTERRUPTED, interrupt_guard


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_interrupts_at_once():
    after = []

    def run():
        with interrupt_guard():
            interrupt()
            after.append(1)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert not after


def test_a_shielded_section_is_finished_first():
    done = []

    def run():
        with interrupt_guard() as guard:
            with guard.shielded():
                interrupt()
                done.append("inside")
            done.append("outside")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert done == ["inside"]


def test_a_second_signal_is_not_held_back():
    done = []

    def run():
        with interrupt_guard() as guard, guard.shielded():
            interrupt()
            done.append(1)
            interrupt()
            done.append(2)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert done == [1]


class LinesOf:
    """Counts the lines that run of a file, and acts before one of them."""

    def __init__(self, file, at=0, act=None):
        self.file, self.at, self.act, self.count = file, at, act, 0

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)

    def trace(self, frame, event, _):
        if frame.f_code.co_filename != self.file:
            return None
        if event == "line":
            self.count += 1
            if self.count == self.at:
                self.act()
        return self.trace


def test_shared_memory_is_neither_half_taken_nor_half_given_back():
    """A signal at each line of Python's own bookkeeping of it."""

    def take_and_give_back():
        multiprocessing.RawArray("d", 100)

    finished = []

    def struck_at(line):
        with interrupt_guard():
            with LinesOf(UNINTERRUPTED, line, partial(os.kill, os.getpid(), signal.SIGINT)):
                take_and_give_back()
            finished.append(line)
            time.sleep(10)  # ended by the signal that was put off

    take_and_give_back()
    with LinesOf(UNINTERRUPTED) as lines:
        take_and_give_back()
    assert lines.count > 20
    for line in range(1, lines.count + 1):
        with pytest.raises(KeyboardInterrupt):
            struck_at(line)
    assert finished == list(range(1, lines.count + 1))


def test_an_error_in_a_shielded_section_is_not_lost():
    with pytest.raises(RuntimeError, match="own"), interrupt_guard() as guard, guard.shielded():
        raise RuntimeError("own")


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interrupt_guard(command_line=True) as outer, interrupt_guard() as inner:
        assert inner is outer
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_sigterm_counts_on_the_command_line():
    with pytest.raises(KeyboardInterrupt), interrupt_guard(command_line=True):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_programs_own_handler_is_left_alone():
    seen = []
    previous = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with interrupt_guard():
            interrupt()
    finally:
        signal.signal(signal.SIGINT, previous)
    assert seen == [1]


def test_other_threads_are_left_alone():
    errors = []

    def work():
        try:
            with interrupt_guard() as guard, guard.shielded():
                pass
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors


@pytest.mark.reliability("signal_at_the_picture")
def test_a_second_signal_on_the_command_line_ends_the_process_at_once():
    child = os.fork()
    if not child:
        try:
            with interrupt_guard(command_line=True) as guard, guard.shielded():
                interrupt()
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
