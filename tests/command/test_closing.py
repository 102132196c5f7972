"""Environments that are bad at ending: what is done is told, and the command ends all the same."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from patience import wait_until
from training_process import Command, Training, final_state

KINDS = ["sync", "async", "workers"]


def options(vectorization: str, instead: str, *more: str) -> tuple[str, ...]:
    return ("--vectorization", vectorization, "--env-kwargs", f"instead={instead}", *more)


@pytest.mark.reliability("bad_close")
@pytest.mark.parametrize(
    ("vectorization", "instead", "error"),
    [*((kind, "raise", "ZeroDivisionError") for kind in KINDS), ("sync", "exit", "SystemExit")],
)
def test_a_training_whose_environment_cannot_be_closed_is_done_and_says_so(
    tmp_path: Path, vectorization: str, instead: str, error: str
) -> None:
    training = Training(
        tmp_path, 128, *options(vectorization, instead), env="unclosable_environment:Unclosable-v0"
    )
    code, out, err = training.finish()
    assert code == 0, err
    assert "done: 128 steps" in out
    assert "Traceback" not in err
    assert "warning:" in err
    assert f"environment 0 raised {error}: no way out in close()" in err
    assert final_state(tmp_path)["progress"]["num_timesteps"] == 128
    assert training.group_is_gone()


@pytest.mark.reliability("bad_close")
@pytest.mark.parametrize("vectorization", KINDS)
def test_a_training_whose_environment_hangs_in_closing_is_done_and_says_so(
    tmp_path: Path, vectorization: str
) -> None:
    training = Training(
        tmp_path, 128, *options(vectorization, "hang"), env="unclosable_environment:Unclosable-v0"
    )
    code, out, err = training.finish()
    assert code == 0, err
    assert "done: 128 steps" in out
    assert "did not return from close()" in err
    assert final_state(tmp_path)["progress"]["num_timesteps"] == 128
    assert training.group_is_gone()


@pytest.mark.reliability("bad_close")
def test_a_fault_is_said_before_an_environment_hangs_in_closing(tmp_path: Path) -> None:
    given = options("sync", "hang", "fault_at=200")
    training = Training(tmp_path, 10_000, *given, env="unclosable_environment:Unclosable-v0")
    code, _, err = training.finish()
    assert code == 1, err
    assert err.count("error: environment ") == 1
    assert err.count("ZeroDivisionError: a fault of the environment's") >= 1
    assert "The last whole update is saved in" in err
    assert "did not return from close()" in err


@pytest.mark.reliability("bad_close")
def test_with_nothing_to_do_an_environment_that_hangs_in_closing_is_left(tmp_path: Path) -> None:
    given = options("sync", "hang")
    unclosable = "unclosable_environment:Unclosable-v0"
    assert Training(tmp_path, 128, *given, env=unclosable).finish()[0] == 0
    code, out, err = Training(tmp_path, 128, *given, "--resume", env=unclosable).finish()
    assert code == 0, err
    assert "nothing to do" in out


@pytest.mark.reliability("bad_close")
def test_the_score_is_said_before_an_environment_hangs_in_closing(tmp_path: Path) -> None:
    unclosable = "unclosable_environment:Unclosable-v0"
    training = Training(tmp_path, 128, *options("sync", "hang"), env=unclosable)
    assert training.finish()[0] == 0
    command = Command("eval", str(tmp_path), "--env", unclosable, "--episodes", "2")
    code, out, err = command.finish()
    assert code == 0, err
    assert "over 2 episodes" in out
    assert "did not return from close()" in err


@pytest.mark.reliability("orphans")
@pytest.mark.parametrize("vectorization", ["workers", "async"])
@pytest.mark.parametrize("stopped", [False, True])
def test_two_signals_leave_no_orphans(tmp_path: Path, vectorization: str, stopped: bool) -> None:
    marker = tmp_path / "marker"
    training = Training(
        tmp_path / "run",
        10_000_000,
        *("--vectorization", vectorization, "--env-kwargs", f"marker={marker}", "at=70"),
        env="slow_environment:Stuck-v0",
    )
    training.wait_for_file(marker)
    if stopped:
        for pid in children_of(training.process.pid):
            os.kill(pid, signal.SIGSTOP)
    training.send(signal.SIGINT)
    training.send(signal.SIGINT)
    code, _, err = training.finish()
    assert code == 130, err
    assert "Traceback" not in err
    wait_until(training.group_is_gone, training.kill)


def children_of(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
