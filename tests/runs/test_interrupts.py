"""Signals: at once outside a shielded section, at its end inside one."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from trpo_fast.runs.interrupts import interrupt_guard


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
