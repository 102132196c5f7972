"""The headline run keeps small promises, tells broken ones, and goes on where it was stopped."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripts import script
from training_process import TINY

from trpo_fast import cli
from trpo_fast.runs.checkpoint import load_checkpoint, save_checkpoint
from trpo_fast.runs.directory import RunDirectory


@pytest.fixture
def headline(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, whose commands run in this process; their number is in `calls`."""
    module = script("benchmarks/headline.py", monkeypatch)
    module.calls = []

    def here(*arguments: str) -> str:
        module.calls.append(arguments)
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            code = cli.main(arguments)
        if code:
            raise module.Fault(f"ended with {code}")
        return told.getvalue()

    def killed(steps: int, directory: Path, arguments: list[str]) -> int:
        here(*arguments[:3], str(steps + 1), *arguments[4:])
        return int(module.steps_in(directory))

    monkeypatch.setattr(module, "trpo_fast", here)
    monkeypatch.setattr(module, "kill_after", killed)
    monkeypatch.setattr(module, "EPISODES", 1)
    return module


def promises(headline: Any, floor: float) -> tuple[Any, ...]:
    make = headline.Promise
    return (
        make("whole", "CartPole-v1", 320, floor, (*TINY, "--save-every", "2")),
        make("killed", "CartPole-v1", 320, 1, (*TINY, "--save-every", "2"), (100, 200), "whole"),
    )


def test_every_environment_of_the_first_page_is_run_at_full_length(headline):
    full = {it.env for it in headline.PROMISES if it.steps == 1_000_000}
    assert full == {"HalfCheetah-v5", "Reacher-v5", "Pendulum-v1", "CartPole-v1"}
    (killed,) = [it for it in headline.PROMISES if it.kills]
    assert (killed.env, killed.kills) == ("HalfCheetah-v5", (400_000, 512_000))
    assert killed.alike in {it.name for it in headline.PROMISES}
    assert len({it.name for it in headline.PROMISES}) == len(headline.PROMISES)


def test_kept_promises_are_told_and_remembered(headline, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(headline, "PROMISES", promises(headline, 1))
    page = tmp_path / "page.md"
    page.write_text("# Page\n\nText.\n")
    arguments = ["--out", str(tmp_path / "out"), "--page", str(page)]
    assert headline.main(arguments) == 0
    text, calls = page.read_text(), len(headline.calls)
    assert text.startswith(f"# Page\n\nText.\n\n{headline.HEADING}\n")
    assert "| yes |" in text
    assert "killed at 128, resumed at 128; killed at 256, resumed at 256" in text
    assert "the weights are those of `whole`" in text
    # Stopped after the kills: they are told all the same.
    (tmp_path / "out" / "killed.json").unlink()
    assert headline.main(arguments) == 0
    assert page.read_text() == text
    assert len(headline.calls) == calls + 3  # to train no further, to evaluate, to plot
    calls = len(headline.calls)
    # Each is done: nothing runs again, and the page says the same.
    assert headline.main(arguments) == 0
    assert len(headline.calls) == calls
    assert page.read_text() == text
    learning = script("benchmarks/learning.py", monkeypatch)
    assert f"Text.\n{learning.section_of_headline(page)}" == text.partition("# Page\n\n")[2]
    assert "kept" in capsys.readouterr().out


def test_a_missed_floor_is_told_and_tried_again(headline, tmp_path, monkeypatch):
    monkeypatch.setattr(headline, "PROMISES", promises(headline, 501)[:1])
    page = tmp_path / "page.md"
    page.write_text("")
    arguments = ["--out", str(tmp_path / "out"), "--page", str(page)]
    assert headline.main(arguments) == 1
    assert "promised 501" in page.read_text()
    calls = len(headline.calls)
    assert headline.main(arguments) == 1
    assert len(headline.calls) > calls


def damaged(directory: Path) -> None:
    """Another number in one weight of the newest checkpoint, whose checksum is right."""
    file = RunDirectory(directory).rolling()[-1]
    state = load_checkpoint(file)
    next(iter(state["learner"]["policy"].values())).view(-1)[0] += 1
    save_checkpoint(file, state)


@pytest.mark.parametrize("what", ["weights", "picture", "log"])
def test_what_is_not_as_promised_is_a_fault(headline, tmp_path, monkeypatch, what):
    whole, killed = promises(headline, 1)
    assert not headline.keep(whole, tmp_path).faults
    real = headline.evaluated

    def spoilt(directory: Path, promise: Any) -> Any:
        damaged(directory)
        return real(directory, promise)

    if what == "weights":
        monkeypatch.setattr(headline, "evaluated", spoilt)
        (fault,) = headline.keep(killed, tmp_path).faults
        assert "differ in /learner/policy/" in fault
        return
    run = RunDirectory(tmp_path / "whole")
    if what == "picture":
        run.picture_file.unlink()
    else:
        lines = run.progress_file.read_bytes().splitlines(keepends=True)
        run.progress_file.write_bytes(b"".join(lines[:2] + lines[3:]))
    with pytest.raises(headline.Fault, match="missing" if what == "picture" else "gaps"):
        headline.check_files(run.path, whole)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(0), torch.zeros(0, 1)),
        (np.zeros(0), np.zeros(0, np.float32)),
        (torch.zeros(1), torch.full((1,), -0.0)),
        ([1], [1, 2]),
        ({"a": 1}, {"b": 1}),
        (1, 1.0),
    ],
)
def test_states_differ_where_a_bit_does(headline, one, other):
    assert headline.difference({"x": one}, {"x": one}) == ""
    assert headline.difference({"x": one}, {"x": other}).startswith("/x")


def test_a_training_is_killed_for_good(monkeypatch, tmp_path):
    program = script("benchmarks/headline.py", monkeypatch)
    given = ("train", "CartPole-v1", *TINY, "--total-steps", "10000000", "--quiet", "--resume")
    arguments = [*given, "--run-dir", str(tmp_path)]
    steps = program.kill_after(64, tmp_path, arguments)
    assert 64 < steps == program.steps_in(tmp_path)
    with pytest.raises(program.Fault, match="ended with 2 before"):
        program.kill_after(10**7, tmp_path, [*arguments, "--max-kl", "-1"])
