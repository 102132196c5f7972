"""Files written whole or not at all, beside what others write, and links that are not followed."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from training_process import limit_file_size

from trpo_fast.runs import files
from trpo_fast.runs.checkpoint import load_checkpoint, save_checkpoint
from trpo_fast.runs.directory import RunDirectory, RunDirectoryError
from trpo_fast.runs.files import (
    PathError,
    given_path,
    open_to_change,
    open_to_read,
    remove_leftovers,
    write_atomically,
)
from trpo_fast.runs.lock import RunLock
from trpo_fast.runs.logger import ITERATION, TIMESTEPS, RunLogger, read_progress
from trpo_fast.runs.tensorboard import EventFile


@pytest.fixture
def fixed_names(monkeypatch: pytest.MonkeyPatch) -> str:
    """Temporary files are called so: the worst that somebody who plants files could know."""
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "0f" * count)
    return f".trpo_fast-{'0f' * 16}.tmp"


@pytest.mark.reliability("planted_names")
def test_threads_that_save_to_one_path_each_write_a_whole_file(tmp_path):
    path = tmp_path / "c.safetensors"
    errors: list[BaseException] = []
    start = threading.Barrier(5)

    def work(action: Any) -> None:
        start.wait()
        try:
            for _ in range(30):
                action()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    save_checkpoint(path, {"by": -1, "text": "x" * 50_000})
    writers = [
        lambda by=by: save_checkpoint(path, {"by": by, "text": str(by) * 50_000}) for by in range(4)
    ]
    threads = [
        threading.Thread(target=work, args=(action,))
        for action in (*writers, lambda: load_checkpoint(path))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert load_checkpoint(path)["by"] in range(4)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.reliability("planted_names")
def test_temporary_names_are_never_the_same_twice(tmp_path, monkeypatch):
    seen = []
    real = os.open

    def open_(path: Any, *rest: Any) -> int:
        seen.append(Path(path).name)
        return real(path, *rest)

    monkeypatch.setattr(os, "open", open_)
    for _ in range(20):
        write_atomically(tmp_path / "c", b"x")
    temporary = [name for name in seen if files.LEFTOVER.fullmatch(name)]
    assert len(set(temporary)) == 20


@pytest.mark.reliability("planted_names")
@pytest.mark.parametrize("kind", ["link", "dangling", "file", "directory", "fifo"])
def test_what_lies_at_a_temporary_name_is_left_alone(tmp_path, fixed_names, kind):
    target, planted = tmp_path / "target", tmp_path / fixed_names
    if kind != "dangling":
        target.write_text("mine")
    plant = {
        "file": lambda: planted.write_text("theirs"),
        "directory": planted.mkdir,
        "fifo": lambda: os.mkfifo(planted),
    }
    plant.get(kind, lambda: planted.symlink_to(target))()
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "c", b"data")
    assert not (tmp_path / "c").exists()
    assert os.path.lexists(planted)
    assert target.exists() == (kind != "dangling")
    assert kind == "dangling" or target.read_text() == "mine"


@pytest.mark.reliability("planted_names")
def test_a_link_at_the_name_itself_is_replaced_and_not_followed(tmp_path):
    target, path = tmp_path / "target", tmp_path / "c"
    target.write_text("mine")
    path.symlink_to(target)
    write_atomically(path, b"data")
    assert path.read_bytes() == b"data"
    assert not path.is_symlink()
    assert target.read_text() == "mine"


def test_a_name_as_long_as_the_file_system_takes_is_written(tmp_path):
    path = tmp_path / ("n" * 255)
    write_atomically(path, b"data")
    assert path.read_bytes() == b"data"


def test_a_write_that_a_limit_breaks_off_leaves_nothing(tmp_path):
    """RLIMIT_FSIZE refuses the bytes, in a child: a real error in the middle of the file."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            limit_file_size()
            write_atomically(tmp_path / "c", b"x" * 100_000)
        except OSError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.reliability("planted_names")
def test_only_our_own_leftovers_are_removed(tmp_path):
    own = tmp_path / f".trpo_fast-{'0a' * 16}.tmp"
    others = [
        tmp_path / name
        for name in (
            *(".notes.tmp", ".config.json.tmp", "x.tmp", ".trpo_fast-notes.tmp"),
            *(f"{own.name}.tmp", f"x{own.name}", f".trpo_fast-{'0A' * 16}.tmp"),
        )
    ]
    for path in (own, *others):
        path.write_text("")
    directory = tmp_path / f".trpo_fast-{'0b' * 16}.tmp"
    directory.mkdir()
    link = tmp_path / f".trpo_fast-{'0c' * 16}.tmp"
    link.symlink_to(others[0])
    remove_leftovers(tmp_path)
    assert not own.exists()
    assert all(path.exists() for path in (*others, directory, link))


@pytest.mark.reliability("planted_names")
@pytest.mark.parametrize("resume", [False, True])
def test_a_run_leaves_the_users_own_temporary_files(tmp_path, resume):
    run = RunDirectory(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    own = [run.path / ".draft.tmp", run.checkpoints / ".step-1.safetensors.bak.tmp"]
    for path in own:
        path.write_text("mine")
    run.claim(resume=resume).release()
    assert [path.read_text() for path in own] == ["mine", "mine"]


@pytest.mark.reliability("planted_names")
@pytest.mark.parametrize("kind", ["link", "hard link", "file", "directory", "fifo"])
def test_what_lies_at_the_lock_is_neither_followed_nor_overwritten(tmp_path, kind):
    run, target = RunDirectory(tmp_path / "run"), tmp_path / "target"
    run.path.mkdir()
    target.write_text("mine")
    {
        "link": lambda: run.lock_file.symlink_to(target),
        "hard link": lambda: run.lock_file.hardlink_to(target),
        "file": lambda: run.lock_file.write_text("mine"),
        "directory": run.lock_file.mkdir,
        "fifo": lambda: os.mkfifo(run.lock_file),
    }[kind]()
    with pytest.raises(RunDirectoryError, match=r"cannot write to .*\.lock"):
        run.claim()
    assert target.read_text() == "mine"
    assert kind != "file" or run.lock_file.read_text() == "mine"


@pytest.mark.parametrize("held", ["", "proc", "process 1 on elsewhere\n"])
def test_a_lock_that_a_training_left_is_taken(tmp_path, held):
    path = tmp_path / ".lock"
    path.write_text(held)
    RunLock(path).release()
    assert path.read_text().startswith(f"process {os.getpid()} on ")
    assert "elsewhere" not in path.read_text()


@pytest.mark.reliability("planted_names")
def test_rows_are_not_written_through_a_link(tmp_path):
    target, file = tmp_path / "target", tmp_path / "run" / "progress.csv"
    target.write_text("mine")
    logger = RunLogger(file.parent)
    file.unlink()
    file.symlink_to(target)
    with pytest.warns(UserWarning, match="it is a link"):
        logger.write({ITERATION: 1, TIMESTEPS: 1})
    file.unlink()
    with pytest.warns(UserWarning, match="has lost its rows"):
        logger.close()
    assert target.read_text() == "mine"
    assert len(read_progress(file)) == 1


@pytest.mark.reliability("planted_names")
def test_an_event_file_is_not_written_through_a_link(tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.write_text("mine")
    real = Path.open

    def planted(self: Path, mode: str = "r", **keywords: Any) -> Any:
        if "tfevents" in self.name:
            self.symlink_to(target)
        return real(self, mode, **keywords)

    monkeypatch.setattr(Path, "open", planted)
    with pytest.raises(FileExistsError):
        EventFile(tmp_path)
    assert target.read_text() == "mine"


@pytest.mark.reliability("odd_places")
@pytest.mark.parametrize("opened", [open_to_read, open_to_change])
def test_what_is_no_file_is_refused_at_once(tmp_path, opened):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match=r"not a file|directory"):
            opened(path)


def test_reading_follows_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_text("text")
    with open_to_read(tmp_path / "link") as file:
        assert file.read() == b"text"


@pytest.mark.reliability("odd_places")
@pytest.mark.parametrize("path", ["", "a\0b", "~no-such-user-anywhere/x"])
def test_a_path_that_names_no_place_is_refused_in_words(path):
    with pytest.raises(PathError, match="the place"):
        given_path(path, "the place")
    with pytest.raises(PathError, match="the run directory"):
        RunDirectory(path)
