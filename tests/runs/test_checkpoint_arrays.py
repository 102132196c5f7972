"""What arrays and tensors a checkpoint holds, of every type, shape and layout."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
import torch

from trpo_fast.runs import checkpoint
from trpo_fast.runs.arrays import checksum
from trpo_fast.runs.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

TORCH = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32),
    *(torch.int64, torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64),
]
# "q" and "Q" have the types of "l" and "L", under other names.
NUMPY = [*"?bBhHiIlLqQ", *"efdF"]
SHAPES = [(0,), (0, 3), (3, 0), (0, 0), (2, 0, 5), (), (1,), (3, 4)]


def bytes_of(array: Any) -> bytes:
    """An array's elements in order, bit for bit: NaN and types without arithmetic included."""
    if isinstance(array, np.ndarray):
        return array.tobytes()
    flat = array.detach().contiguous().resolve_conj().resolve_neg().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if dtype == torch.bool:
        return torch.rand(shape) < 0.5
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.randint(0, 256, (*shape, size), dtype=torch.uint8).view(dtype).reshape(shape)


def random_array(code: str, shape: tuple[int, ...]) -> Any:
    data = np.random.default_rng(0).integers(0, 2 if code == "?" else 256, 16 * 12, np.uint8)
    count = int(np.prod(shape))
    return data[: count * np.dtype(code).itemsize].view(code).reshape(shape)


def assert_comes_back(directory, value):
    path = save_checkpoint(directory / "c", {"a": {"x": value}, "after": 1})
    found = load_checkpoint(path)
    assert found["after"] == 1
    back = found["a"]["x"]
    assert isinstance(back, np.ndarray) == isinstance(value, np.ndarray)
    assert isinstance(back, np.ndarray | torch.Tensor)
    assert back.dtype == value.dtype
    assert tuple(back.shape) == tuple(value.shape)
    assert bytes_of(back) == bytes_of(value)
    return path


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TORCH, ids=str)
def test_a_tensor_comes_back_as_it_was(tmp_path, dtype, shape):
    assert_comes_back(tmp_path, random_tensor(dtype, shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("code", NUMPY)
def test_an_array_comes_back_as_it_was(tmp_path, code, shape):
    assert_comes_back(tmp_path, random_array(code, shape))


NUMBERS = torch.arange(24.0).reshape(2, 3, 4)
EMPTY = torch.empty(2, 0, 4)


@pytest.mark.parametrize(
    "value",
    [
        *(NUMBERS.transpose(0, 2), EMPTY.transpose(0, 2)),
        *(NUMBERS[:, ::2], EMPTY[:, ::2], NUMBERS[:, 1], NUMBERS[:, 3:], NUMBERS[1, 2, 3]),
        *(torch.ones(1).expand(4), torch.empty(0).expand(4, 0), torch.empty(0, 1).expand(0, 3)),
        torch.empty(0, 2, 3, 4).to(memory_format=torch.channels_last),
        torch.ones(1, 2, 3, 4).to(memory_format=torch.channels_last),
        *(torch.nn.Parameter(torch.empty(0, 3)), torch.nn.Parameter(torch.ones(2, 3))),
        *(torch.full((2,), 1j).conj(), torch.full((2,), 1j).conj().imag),
        torch.empty(0, dtype=torch.complex64).conj(),
        *(np.asfortranarray(NUMBERS.numpy()), np.asfortranarray(EMPTY.numpy())),
        *(NUMBERS.numpy()[::-1, :, ::-2], EMPTY.numpy()[::-1, :, ::-2]),
        *(np.broadcast_to(np.float32(1), (3, 2)), np.broadcast_to(np.float32(1), (3, 0))),
        np.zeros((2, 3), [("a", "f4"), ("b", "i8")])["b"],
    ],
    ids=lambda v: f"{type(v).__name__}{tuple(v.shape)}",
)
def test_a_layout_of_its_own_is_saved_as_it_looks(tmp_path, value):
    assert_comes_back(tmp_path, value)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.zeros(0, "D"), "ndarray of complex128"),
        (torch.zeros(0, 3, dtype=torch.complex128), "torch.complex128"),
        (np.zeros(3, np.longdouble), "ndarray of float128"),
        (np.zeros((0, 3), object), "ndarray of object"),
        (np.array(["text"]), "ndarray of <U4"),
        (np.zeros(0, "M8[s]"), "ndarray of datetime64"),
        (np.zeros(0, ">f4"), "ndarray of >f4"),
        (np.zeros(2, [("a", "f4")]), "ndarray of"),
        (torch.zeros(3, 0).to_sparse(), "torch.sparse_coo"),
        (torch.empty(0, device="meta"), "on meta"),
        (np.complex64(1j), "complex"),
        (np.longdouble(1), "longdouble"),
        (np.datetime64(1, "s"), "datetime"),
        (1j, "complex"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_no_checkpoint_holds_is_a_typeerror_that_names_it(tmp_path, value, named):
    with pytest.raises(TypeError, match=r"\(at '/a/1'\)") as caught:
        save_checkpoint(tmp_path / "c", {"a": [0, value]})
    assert named in str(caught.value)
    assert not list(tmp_path.iterdir())


# Damage


def rewritten(path, change):
    """The file with its arrays' header, not the checksummed description, changed."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("dtype", "F64"), ("dtype", "I32"), ("dtype", "BF16")),
        *(("shape", [3, 0]), ("shape", [0]), ("shape", [0, 2]), ("shape", [0, 3, 1])),
        ("shape", [2**40, 0]),
    ],
)
def test_another_type_or_shape_in_the_header_of_an_empty_array_is_refused(tmp_path, key, value):
    path = save_checkpoint(tmp_path / "c", {"w": np.zeros((0, 3), np.float32), "b": 1})
    rewritten(path, lambda header: header["/w"].update({key: value}))
    with pytest.raises(CheckpointError, match="the checksum of /w does not match"):
        load_checkpoint(path)
    rewritten(path, lambda header: header["/w"].update({"dtype": "F32", "shape": [0, 3]}))
    assert load_checkpoint(path)["b"] == 1


def test_an_empty_array_that_lost_its_entry_is_refused(tmp_path):
    path = save_checkpoint(tmp_path / "c", {"w": np.zeros(0), "v": torch.zeros(0)})
    rewritten(path, lambda header: header.pop("/w"))
    with pytest.raises(CheckpointError, match="/w"):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", ["F32", "F64", "C64", "F8_E8M0", "F4", "X"])
@pytest.mark.parametrize(
    "shape",
    [[0, 2**62], [0, 2**63], [0, 2**64], [2**62, 0, 2**62], [-1, 0], [0.5], [0] * 70, "0", [None]],
    ids=str,
)
def test_an_impossible_shape_without_elements_is_refused_in_one_line(tmp_path, kind, shape):
    description = '{"format":1,"state":{"a":{"$tensor":"x","numpy":true}}}'
    entry = {"dtype": kind, "shape": shape, "data_offsets": [0, 0]}
    text = json.dumps({"__metadata__": {"trpo_fast": description}, "x": entry}).encode()
    path = tmp_path / "c"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_file_of_nothing_but_empty_arrays_keeps_to_the_bounds(tmp_path, monkeypatch):
    state = {f"{i}": np.zeros((0, i), np.float32) for i in range(5)}
    path = save_checkpoint(tmp_path / "c", state)
    size = path.stat().st_size
    monkeypatch.setattr(checkpoint, "MAX_FILE_BYTES", size)
    assert load_checkpoint(path)["3"].shape == (0, 3)
    monkeypatch.setattr(checkpoint, "MAX_FILE_BYTES", size - 1)
    with pytest.raises(CheckpointError, match=f"has {size} bytes"):
        load_checkpoint(path)
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint, "MAX_HEADER_BYTES", size - 9)
    with pytest.raises(CheckpointError, match="header"):
        load_checkpoint(path)


def test_empty_arrays_are_told_apart_by_their_checksums():
    kinds = [torch.empty(s, dtype=d) for s in SHAPES if 0 in s for d in TORCH]
    sums = [checksum(kind) for kind in kinds]
    assert len(set(sums)) == len(sums)
