"""Sizes that a checkpoint only claims, or has as holes: refused without taking the memory.

The child may not have more than 300 MB of address space beside what its imports took.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from trpo_fast.runs import checkpoint
from trpo_fast.runs.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

TEN_GB = 10 * 10**9
LOADING = """
import resource
from trpo_fast.runs.checkpoint import CheckpointError, load_checkpoint

taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 300 * 2**20,) * 2)
for path in PATHS:
    try:
        load_checkpoint(path)
    except CheckpointError as error:
        print(error)
"""


def written(path: Path, shape: list[int], crc32: int, bytes_in_file: int) -> Path:
    """A file that says it holds one float32 array, and has a hole in its place."""
    size = 4
    for number in shape:
        size *= number
    packed = {"x": {"$tensor": "x", "numpy": True, "crc32": crc32}}
    text = json.dumps(packed, separators=(",", ":")).encode()
    document = {"format": checkpoint.FORMAT, "crc32": zlib.crc32(text), "state": packed}
    header = {
        "__metadata__": {"trpo_fast": json.dumps(document)},
        "x": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + bytes_in_file)
    return path


def holding(path: Path, shape: list[int]) -> Path:
    """A sound file of one array of zeros, all of it a hole."""
    checksum = zlib.crc32(f"torch.float32 {tuple(shape)}".encode())
    for _ in range(4 * shape[0] // 10**6):
        checksum = zlib.crc32(bytes(10**6), checksum)
    return written(path, shape, checksum, 4 * shape[0])


def padded(path: Path) -> Path:
    """A file with ten billion bytes that nobody wrote at its end."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(TEN_GB)
    return path


@pytest.mark.reliability("sizes")
def test_a_size_that_is_a_claim_or_a_hole_is_refused_in_words(
    tmp_path: Path, run_python: Any
) -> None:
    wanted = {
        written(tmp_path / "a hole", [1], 0, TEN_GB): "it has 100000",
        written(tmp_path / "a claim", [TEN_GB // 4], 0, 4): "it has",
        written(tmp_path / "beyond 64 bits", [2**40, 2**40], 0, 4): "it has",
        written(tmp_path / "damaged", [250_000_000], 0, 10**9): "the checksum of x does not match",
        holding(tmp_path / "too large for the memory", [125_000_000]): "memory",
        padded(save_checkpoint(tmp_path / "real", {"n": 1})): "no checkpoint of trpo_fast",
        padded(tmp_path / "nothing"): "no checkpoint of trpo_fast",
    }
    paths = [str(path) for path in wanted]
    done = run_python(LOADING.replace("PATHS", repr(paths)))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for path, line in zip(wanted, lines, strict=True):
        assert str(path) in line
        assert wanted[path] in line


@pytest.mark.reliability("sizes")
@pytest.mark.parametrize("names", [["x", "x"], []])
def test_an_array_that_is_named_twice_or_not_at_all_is_refused(tmp_path, names):
    path = tmp_path / "c"
    kind = zlib.crc32(bytes(4), zlib.crc32(b"torch.float32 (1,)"))
    written(path, [1], kind, 4)
    assert load_checkpoint(path)["x"].shape == (1,)
    node = {"$tensor": "x", "numpy": True, "crc32": kind}
    packed = {str(index): {**node, "$tensor": name} for index, name in enumerate(names)}
    text = json.dumps(packed, separators=(",", ":")).encode()
    document = {"format": checkpoint.FORMAT, "crc32": zlib.crc32(text), "state": packed}
    header = {
        "__metadata__": {"trpo_fast": json.dumps(document)},
        "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(CheckpointError, match=r"are not those of its state: '(x|one of them)'"):
        load_checkpoint(path)
