"""Sizes that a checkpoint only claims, or has as holes: refused without taking the memory.

The child may not have more than 300 MB of address space beside what its imports took.
"""

from __future__ import annotations

import json
import struct
import zlib
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
try:
    load_checkpoint(PATH)
except CheckpointError as error:
    print(error)
"""


def written(path: Any, shape: list[int], crc32: int, bytes_in_file: int) -> None:
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


@pytest.mark.reliability("sizes")
@pytest.mark.parametrize(
    ("shape", "held", "words"),
    [
        ([1], TEN_GB, "it has 100000"),
        ([TEN_GB // 4], 4, "it has"),
        ([2**40, 2**40], 4, "it has"),
        ([250_000_000], 10**9, "the checksum of x does not match"),
    ],
)
def test_a_size_that_is_a_claim_or_a_hole_is_refused(tmp_path, run_python, shape, held, words):
    path = tmp_path / "c"
    written(path, shape, 0, held)
    done = run_python(LOADING.replace("PATH", repr(str(path))))
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.reliability("sizes")
def test_a_real_array_that_the_memory_does_not_hold_is_refused_in_words(tmp_path, run_python):
    shape = [125_000_000]
    checksum = zlib.crc32(f"torch.float32 {tuple(shape)}".encode())
    for _ in range(500):
        checksum = zlib.crc32(bytes(10**6), checksum)
    path = tmp_path / "c"
    written(path, shape, checksum, 4 * shape[0])
    done = run_python(LOADING.replace("PATH", repr(str(path))))
    assert done.returncode == 0, done.stderr
    assert f"the checkpoint {path} cannot be read" in done.stdout
    assert "memory" in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.reliability("sizes")
def test_a_hole_behind_a_real_checkpoint_and_one_of_nothing_are_refused(tmp_path, run_python):
    path = save_checkpoint(tmp_path / "c", {"n": 1})
    with path.open("r+b") as file:
        file.truncate(TEN_GB)
    nothing = tmp_path / "nothing"
    with nothing.open("wb") as file:
        file.truncate(TEN_GB)
    for each in (path, nothing):
        done = run_python(LOADING.replace("PATH", repr(str(each))))
        assert done.returncode == 0, done.stderr
        assert f"{each} is no checkpoint of trpo_fast, or damaged" in done.stdout


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
