"""Checkpoints: exact round trips, atomic writes, and files that mean harm."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch

from trpo_fast.runs import checkpoint
from trpo_fast.runs.checkpoint import (
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
    state_differences,
)


def example_state():
    return {
        "weights": {"a.weight": torch.randn(3, 4), "b": torch.tensor(2.5, dtype=torch.float64)},
        "numpy": {"mean": np.arange(6.0).reshape(2, 3).T, "scalar": np.asarray(4.0)},
        "empty": np.empty((0, 3)),
        "flags": torch.tensor([True, False]),
        "list": [1, 2.5, None, "text", {"x": torch.arange(3)}],
        "big": 2**80,
        "inf": float("inf"),
    }


def assert_same(a, b):
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert torch.equal(a, b)
    elif isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert type(a) is type(b)
        assert a == b


def test_round_trip_is_exact(tmp_path):
    state = example_state()
    assert_same(state, load_checkpoint(save_checkpoint(tmp_path / "c.safetensors", state)))


def test_views_and_shared_memory_are_saved_as_they_look(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {"column": base[:, 1], "transposed": base.T, "same": base}
    assert_same(state, load_checkpoint(save_checkpoint(tmp_path / "c", state)))


def test_the_same_state_gives_the_same_bytes(tmp_path):
    state = example_state()
    a, b = save_checkpoint(tmp_path / "a", state), save_checkpoint(tmp_path / "b", state)
    assert a.read_bytes() == b.read_bytes()


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(TypeError, match="/a/b"):
        save_checkpoint(tmp_path / "c", {"a": {"b": object()}})


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path / "c", {"x": 1})
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"x": 2})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_an_interrupted_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path / "c", {"x": 1})

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"x": 2})
    assert load_checkpoint(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("cut", [0, 4, 8, 40, -1])
def test_a_file_cut_short_is_refused(tmp_path, cut):
    path = save_checkpoint(tmp_path / "c", example_state())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=str(path)):
        load_checkpoint(path)


def test_a_pickle_is_refused_and_never_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harmed"),)

    path = tmp_path / "c.safetensors"
    path.write_bytes(pickle.dumps(Harm()))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    torch.save({"a": Harm()}, path)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not (tmp_path / "harmed").exists()


def file_with(header: dict, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def crafted(state: object, **tensors: object) -> bytes:
    """A file whose description, whatever it says, has the right checksum."""
    checksum = zlib.crc32(json.dumps(state, separators=(",", ":")).encode())
    document = {"format": checkpoint.FORMAT, "crc32": checksum, "state": state}
    return file_with({"__metadata__": {"trpo_fast": json.dumps(document)}, **tensors})


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**62) + b"{}",
        file_with({}),
        file_with({"__metadata__": {"trpo_fast": "[" * 100_000}}),
        file_with({"__metadata__": {"trpo_fast": '{"format": 99, "state": {}}'}}),
        crafted(3),
        crafted({"a": {"$tensor": "x"}}),
        crafted(
            {"a": {"$tensor": "x"}},
            x={"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
        ),
        crafted({"a": {"$tensor": ["x"]}}),
    ],
)
def test_crafted_files_are_refused(tmp_path, content):
    path = tmp_path / "c"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_a_crafted_file_of_plain_values_is_read(tmp_path):
    path = tmp_path / "c"
    path.write_bytes(crafted({"n": 3}))
    assert load_checkpoint(path) == {"n": 3}


def test_sizes_are_bounded(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path / "c", example_state())
    monkeypatch.setattr(checkpoint, "MAX_FILE_BYTES", path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="bytes"):
        load_checkpoint(path)


def test_missing_files_and_directories_are_refused(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(CheckpointError, match=str(path)):
            load_checkpoint(path)


def test_differences_are_listed_line_by_line():
    saved = {"environment": "A-v0", "policy": {"w": [2, 3], "b": [2]}, "same": 1}
    here = {"environment": "B-v0", "policy": {"w": [2, 4]}, "same": 1}
    lines = state_differences(saved, here)
    assert len(lines) == 3
    assert lines[0] == "environment: the checkpoint has A-v0, here it is B-v0"
    assert lines[1] == "policy: w: the checkpoint has [2, 3], here it is [2, 4]"
    assert lines[2] == "policy: b: the checkpoint has [2], here it is nothing"


def test_bytes_changed_on_the_disk_are_refused_wherever_they_lie(tmp_path):
    path = save_checkpoint(tmp_path / "c", example_state())
    whole, state = path.read_bytes(), load_checkpoint(path)
    places, passed = range(0, len(whole), 7), 0
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        with contextlib.suppress(CheckpointError):
            # The blanks that pad the header mean nothing.
            assert_same(load_checkpoint(path), state)
            passed += 1
    assert passed <= 2


def test_the_damaged_array_is_named(tmp_path):
    path = save_checkpoint(tmp_path / "c", {"a": {"w": torch.ones(64)}, "b": 1})
    data = bytearray(path.read_bytes())
    data[-8:-4] = b"\xff" * 4
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum of /a/w does not match"):
        load_checkpoint(path)
