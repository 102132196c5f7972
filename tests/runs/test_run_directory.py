"""Run directories: names, claims, rolling checkpoints."""

from __future__ import annotations

import errno
import json
import os

import pytest

from trpo_fast.runs.checkpoint import CheckpointError
from trpo_fast.runs.directory import (
    RunDirectory,
    RunDirectoryError,
    last_run_directory,
    new_run_directory,
)


def test_default_names_count_up(tmp_path):
    names = [new_run_directory("CartPole-v1", 3, tmp_path).path.name for _ in range(3)]
    assert names == ["CartPole-v1-s3-1", "CartPole-v1-s3-2", "CartPole-v1-s3-3"]
    assert new_run_directory("CartPole-v1", 4, tmp_path).path.name == "CartPole-v1-s4-1"
    last = last_run_directory("CartPole-v1", 3, tmp_path)
    assert last is not None
    assert last.path.name == "CartPole-v1-s3-3"
    assert last_run_directory("Pendulum-v1", 3, tmp_path) is None


def test_ids_with_slashes_and_colons_become_one_directory(tmp_path):
    for env in ("ALE/Pong-v5", "package:Env-v0", "../../etc"):
        path = new_run_directory(env, 0, tmp_path).path
        assert path.parent == tmp_path


def test_a_used_directory_is_refused_with_the_way_out(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.claim().release()
    directory.save({"x": 1}, 10, keep=3)
    with pytest.raises(RunDirectoryError, match="--resume"):
        directory.claim()
    directory.claim(resume=True).release()


def test_a_place_that_cannot_be_written_is_an_error_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot write"):
        RunDirectory(tmp_path / "file" / "run").claim()


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_rolling_checkpoints_keep_the_newest(tmp_path, keep):
    directory = RunDirectory(tmp_path)
    for step in (5, 10, 100, 1000):
        directory.save({"step": step}, step, keep=keep)
    steps = [int(p.stem.removeprefix("step-")) for p in directory.rolling()]
    assert steps == [5, 10, 100, 1000][-keep:]
    found = directory.latest()
    assert found is not None
    assert found[1] == {"step": 1000}


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.save({"step": 1}, 1, keep=3)
    directory.save({"step": 2}, 2, keep=3).write_bytes(b"garbage")
    with pytest.warns(UserWarning, match="passing over"):
        found = directory.latest()
    assert found is not None
    assert found[1] == {"step": 1}
    directory.rolling()[0].write_bytes(b"garbage")
    with pytest.warns(UserWarning, match="passing over"), pytest.raises(CheckpointError):
        directory.latest()


def test_leftovers_of_a_killed_writer_are_removed_on_resume(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.claim().release()
    leftover = directory.checkpoints / f".trpo_fast-{'0f' * 16}.tmp"
    leftover.write_bytes(b"half")
    directory.claim(resume=True).release()
    assert not leftover.exists()


def test_a_directory_in_use_is_refused_and_its_files_are_left_alone(tmp_path):
    directory = RunDirectory(tmp_path)
    lock = directory.claim()
    being_written = directory.checkpoints / f".trpo_fast-{'0f' * 16}.tmp"
    being_written.write_bytes(b"half")
    owner = f"{tmp_path} is in use by another training .process {os.getpid()} on "
    for resume in (False, True):
        with pytest.raises(RunDirectoryError, match=owner):
            directory.claim(resume=resume)
    assert being_written.exists()
    lock.release()
    lock.release()
    directory.claim(resume=True).release()
    assert not being_written.exists()


def test_a_forked_worker_does_not_keep_the_directory_in_use(tmp_path):
    directory = RunDirectory(tmp_path)
    lock = directory.claim()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent is done
        os._exit(0)
    os.close(reader)
    try:
        with pytest.raises(RunDirectoryError, match="in use"):
            directory.claim()
        lock.release()
        directory.claim().release()
    finally:
        os.close(writer)
        os.waitpid(child, 0)


def test_a_copy_of_the_locked_file_left_open_elsewhere_keeps_nobody_out(tmp_path):
    directory = RunDirectory(tmp_path)
    lock = directory.claim()
    copy = os.dup(lock._file.fileno())  # as in a child that was forked this moment
    try:
        lock.release()
        directory.claim().release()
    finally:
        os.close(copy)


def test_a_file_system_without_locks_locks_nothing(tmp_path, monkeypatch):
    def unserved(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    directory = RunDirectory(tmp_path)
    monkeypatch.setattr("fcntl.flock", unserved)
    first = directory.claim()
    directory.claim().release()
    monkeypatch.undo()
    monkeypatch.setattr("trpo_fast.runs.lock.fcntl", None)
    directory.claim().release()
    first.release()


def test_config_json_is_plain_json(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.write_config({"a": 1})
    assert json.loads(directory.config_file.read_text()) == {"a": 1}
