"""A disk without room: older rolling checkpoints go before a newer one is lost.

`small_disk` simulates one: a write that would take the directory's files over a size is refused
with ENOSPC where it reaches the disk. One test has a real one, where a tmpfs can be mounted.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from agent_cases import small
from training_process import final_state, iterations

from trpo_fast.runs.checkpoint import load_checkpoint, save_checkpoint
from trpo_fast.runs.directory import RunDirectory
from trpo_fast.runs.recorder import RunRecorder

STATE = {"weights": torch.zeros(2500)}  # 10 kB
SmallDisk = Callable[[Path, int], None]


def steps(directory: RunDirectory) -> list[int]:
    return [int(path.stem.removeprefix("step-")) for path in directory.rolling()]


def filled(path: Path, *numbers: int) -> RunDirectory:
    directory = RunDirectory(path)
    for number in numbers:
        directory.save(STATE, number, keep=9)
    return directory


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> SmallDisk:
    def install(directory: Path, size: int, code: int = errno.ENOSPC) -> None:
        real = os.fsync

        def fsync(handle: int) -> None:
            files = [path for path in directory.rglob("*") if path.is_file()]
            if sum(path.stat().st_size for path in files) > size:
                raise OSError(code, os.strerror(code))
            real(handle)

        monkeypatch.setattr(os, "fsync", fsync)

    return install


@pytest.mark.reliability("full_disk")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_the_oldest_make_room_one_by_one_until_the_new_one_is_whole(tmp_path, small_disk, code):
    directory = filled(tmp_path, 1, 2, 3, 4)
    small_disk(tmp_path, 35_000, code)
    with pytest.warns(UserWarning, match="is removed to make room") as caught:
        directory.save(STATE, 5, keep=9)
    assert steps(directory) == [3, 4, 5]
    assert [f"step-{n:012d}" in str(w.message) for n, w in zip((1, 2), caught, strict=True)]
    assert all(load_checkpoint(path) for path in directory.rolling())


@pytest.mark.reliability("full_disk")
def test_neither_the_newest_nor_the_best_makes_room(tmp_path, small_disk):
    directory = filled(tmp_path, 1, 2)
    save_checkpoint(directory.best_file, STATE)
    small_disk(tmp_path, 25_000)
    with pytest.warns(UserWarning, match="is removed"), pytest.raises(OSError, match="No space"):
        directory.save(STATE, 3, keep=9)
    assert steps(directory) == [2]
    assert load_checkpoint(directory.best_file)
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_newest_that_loads_is_kept_whatever_lies_after_it(tmp_path, small_disk):
    directory = filled(tmp_path, 1, 2, 3)
    directory.rolling()[-1].write_bytes(b"half")
    small_disk(tmp_path, 15_000)
    with pytest.warns(UserWarning, match="is removed"), pytest.raises(OSError, match="No space"):
        directory.save(STATE, 4, keep=9)
    assert steps(directory) == [2, 3]
    assert load_checkpoint(directory.rolling()[0])


@pytest.mark.parametrize("code", [errno.EIO, errno.EFBIG, errno.EACCES])
def test_for_any_other_refusal_nothing_is_removed(tmp_path, small_disk, code):
    directory = filled(tmp_path, 1, 2, 3)
    small_disk(tmp_path, 1, code)
    with pytest.raises(OSError, match=os.strerror(code)):
        directory.save(STATE, 4, keep=9)
    assert steps(directory) == [1, 2, 3]


def test_a_run_that_goes_back_makes_room_too(tmp_path, small_disk):
    directory = filled(tmp_path, 1, 2, 3)
    small_disk(tmp_path, 35_000)
    directory.rolling()[0].write_bytes(b"x" * 20_000)
    with pytest.warns(UserWarning, match="is removed|goes on from step 2"):
        directory.go_back(STATE, 2)
    assert steps(directory) == [2]


def trained_on(run: Path) -> None:
    """Three updates, each saved, evaluations among them."""
    options = {"save_every": 1, "keep_checkpoints": 9, "num_envs": 2, "rollout_steps": 16}
    # "auto" writes config.json anew when the times of steps have told, perhaps to a full disk.
    options["vectorization"] = "sync"
    with small(run_dir=run, eval_every=32, eval_episodes=1, **options) as agent:
        agent.learn(320, progress_bar=False)
        assert agent.run.recorder.missing == []


@pytest.mark.reliability("full_disk")
@pytest.mark.filterwarnings("ignore:cannot write .* is removed to make room")
def test_a_training_on_a_small_disk_ends_with_its_newest_and_its_best(
    tmp_path, small_disk, monkeypatch
):
    monkeypatch.setattr(RunRecorder, "_draw", lambda _: None)  # as large as the checkpoints
    trained_on(tmp_path / "a")
    a = RunDirectory(tmp_path / "a")
    one = a.rolling()[-1].stat().st_size
    rest = sum(f.stat().st_size for f in a.path.iterdir() if f.is_file())
    small_disk(tmp_path / "b", rest + 4 * one)
    trained_on(tmp_path / "b")
    b = RunDirectory(tmp_path / "b")
    assert 1 <= len(b.rolling()) <= 3 < len(a.rolling())
    assert load_checkpoint(b.best_file)["progress"]["num_updates"]
    assert final_state(b.path)["progress"]["num_updates"] == 10
    assert iterations(b.path) == list(range(1, 11))


@pytest.fixture
def real_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.reliability("full_disk")
def test_a_real_disk_that_is_full(real_disk):
    directory = filled(real_disk, 1, 2, 3, 4)  # of 12 kB each
    directory.path.joinpath("others").write_bytes(b"x" * 8_000)
    for number in (5, 6):
        with pytest.warns(UserWarning, match=r"No space left.*is removed"):
            directory.save(STATE, number, keep=9)
    assert steps(directory)[-1] == 6
    assert 1 < len(steps(directory)) < 5
    assert all(load_checkpoint(path) for path in directory.rolling())
    assert not list(real_disk.rglob("*.tmp"))
