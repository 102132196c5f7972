"""progress.csv and event files: one row an update whatever happens in between."""

from __future__ import annotations

import itertools
import os

import pytest

from trpo_fast.runs.logger import (
    COLUMNS,
    ITERATION,
    TIMESTEPS,
    ProgressFileError,
    RunLogger,
    read_progress,
)


def row(iteration: int, **more):
    return {ITERATION: iteration, TIMESTEPS: 100 * iteration, "train/kl": 0.01, **more}


def iterations(directory):
    return [int(r[ITERATION]) for r in read_progress(directory / "progress.csv")]


def logged(directory, numbers, **keywords):
    logger = RunLogger(directory, ["train/kl"], **keywords)
    for number in numbers:
        logger.write(row(number))
    logger.close()


def test_one_row_an_update_with_the_promised_columns(tmp_path):
    logged(tmp_path, [1, 2, 3])
    rows = read_progress(tmp_path / "progress.csv")
    assert iterations(tmp_path) == [1, 2, 3]
    assert rows[0]["train/kl"] == "0.01"
    assert rows[0]["rollout/ep_rew_mean"] == ""
    assert list(rows[0]) == [*COLUMNS, "train/kl"]
    assert {
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "time/fps",
        "time/total_timesteps",
    } <= set(COLUMNS)


def test_resuming_drops_the_rows_after_the_checkpoint(tmp_path):
    logged(tmp_path, [1, 2, 3, 4, 5])
    logged(tmp_path, [4, 5, 6], last_iteration=3, last_timesteps=300)
    assert iterations(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_starting_afresh_drops_all_rows(tmp_path):
    logged(tmp_path, [1, 2, 3])
    logged(tmp_path, [1])
    assert iterations(tmp_path) == [1]


@pytest.mark.parametrize("tail", [b"4,40", b"4", b"\x00\x00", b"4," * 80 + b"\n"])
def test_half_a_row_left_by_a_killed_process_is_ignored(tmp_path, tail):
    logged(tmp_path, [1, 2, 3])
    with (tmp_path / "progress.csv").open("ab") as file:
        file.write(tail)
    assert iterations(tmp_path) == [1, 2, 3]
    logged(tmp_path, [4], last_iteration=3, last_timesteps=300)
    assert iterations(tmp_path) == [1, 2, 3, 4]


def test_rows_refused_by_the_disk_are_written_later(tmp_path, monkeypatch):
    logger = RunLogger(tmp_path)
    logger.write(row(1))
    real_write = os.fsync

    def half_then_full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", half_then_full)
    with pytest.warns(UserWarning, match="No space left"):
        logger.write(row(2))
    assert logger.has_unwritten_rows
    monkeypatch.setattr(os, "fsync", real_write)
    logger.write(row(3))
    logger.close()
    assert not logger.has_unwritten_rows
    assert iterations(tmp_path) == [1, 2, 3]


def test_event_files_hold_the_numbers_and_sort_by_age(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr("trpo_fast.runs.tensorboard._count", itertools.count(9))
    logged(tmp_path, [1, 2, 3])
    logged(tmp_path, [3, 4], last_iteration=2, last_timesteps=200)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [e.step for e in events.Scalars("train/kl")] == [100, 200, 300, 400]


def test_failing_event_files_are_switched_off_with_a_warning(tmp_path, monkeypatch):
    logger = RunLogger(tmp_path)

    def broken(*_):
        raise OSError("disk gone")

    (events,) = logger._sinks.values()
    monkeypatch.setattr(events, "write", broken)
    with pytest.warns(UserWarning, match="TensorBoard events switched off"):
        logger.write(row(1))
    logger.write(row(2))
    logger.close()
    assert iterations(tmp_path) == [1, 2]


@pytest.mark.parametrize(
    ("place", "content", "reason"),
    [
        (2, b"2,200,\xff\xfe\n", "line 3.*utf-8"),
        (2, b"2,200\n", "line 3.*2 cells"),
        (2, b"two,200" + b"," * (len(COLUMNS) - 1) + b"\n", "line 3.*no number"),
        (0, b"step,reward\n", "line 1.*no columns"),
        (0, b"\xff\xff\xff\xff\n", "line 1.*utf-8"),
    ],
)
def test_damage_is_named_with_its_line_and_the_file_left_alone(tmp_path, place, content, reason):
    logged(tmp_path, [1, 2, 3])
    file = tmp_path / "progress.csv"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:place], content, *lines[place + 1 :]]))
    damaged = file.read_bytes()
    with pytest.raises(ProgressFileError, match=f"{file}.*{reason}.*move the file away"):
        read_progress(file)
    with pytest.raises(ProgressFileError, match=reason):
        RunLogger(tmp_path, last_iteration=3)
    assert file.read_bytes() == damaged


def test_blank_lines_count_for_nothing(tmp_path):
    logged(tmp_path, [1, 2])
    file = tmp_path / "progress.csv"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert iterations(tmp_path) == [1, 2]


@pytest.mark.parametrize("loss", ["deleted", "cut"])
def test_a_file_that_lost_its_rows_begins_anew(tmp_path, monkeypatch, loss):
    logger = RunLogger(tmp_path)
    logger.write(row(1))
    file = tmp_path / "progress.csv"
    if loss == "deleted":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:30])

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.warns(UserWarning, match="lost its rows|No space left") as said:
            logger.write(row(2))
    assert [str(warning.message).count("lost its rows") for warning in said] == [1, 0]
    logger.write(row(3))
    logger.close()
    assert iterations(tmp_path) == [2, 3]
