"""The arrays of a safetensors file, whose header is checked against the file before any is read.

The format is that of https://github.com/huggingface/safetensors: eight bytes with the size of the
header, the header as JSON, and the arrays' bytes, one after the other and without gaps.

Its library's `safe_open` maps the file, and one that somebody cuts short meanwhile then ends the
process with SIGBUS; here that is an error. It knows neither our checksums nor the limits on sizes.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

METADATA = "__metadata__"
DTYPES = {
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
# What is checked of a large array at a time, before memory is taken for the whole of it.
CHUNK = 16 * 2**20


class Entry(NamedTuple):
    """Where an array lies, in bytes from the file's beginning, and what it is."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class Header(NamedTuple):
    """What a file says of itself."""

    metadata: Mapping[str, Any]
    entries: dict[str, Entry]


def read_header(file: BinaryIO, max_bytes: int, max_header_bytes: int) -> Header:
    """The header; its arrays are those that the rest of the file holds, to the byte.

    Args:
        file: at its beginning.
        max_bytes: of the file.
        max_header_bytes: of its header.

    Raises ValueError in words for a file that is cut short, oversized or none of the kind.
    """
    size = os.fstat(file.fileno()).st_size
    if not 8 <= size <= max_bytes:
        raise ValueError(f"it has {size} bytes, expected 8 to {max_bytes}")
    (length,) = struct.unpack("<Q", _exactly(file, 8))
    if length > min(max_header_bytes, size - 8):
        raise ValueError(f"it is cut short or damaged (header of {length} bytes)")
    header = json.loads(_exactly(file, length))
    if not isinstance(header, dict) or not isinstance(header.get(METADATA), dict):
        raise ValueError("its header describes nothing")  # noqa: TRY004
    metadata = header.pop(METADATA)
    entries = {name: _entry(name, node, 8 + length) for name, node in header.items()}
    end = 8 + length
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.stop)):
        if entry.start != end:
            break
        end = entry.stop
    else:
        if end == size:
            return Header(metadata, entries)
    raise ValueError(f"its header accounts for {end} bytes, it has {size}")


def _entry(name: str, node: Any, start: int) -> Entry:
    try:
        dtype, shape = DTYPES[node["dtype"]], node["shape"]
        first, last = node["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, first, last))
        fits = whole and last - first == math.prod(shape) * dtype.itemsize
    except (KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"its header says of the array {name[:80]!r} what none can be")
    return Entry(name, dtype, tuple(shape), start + first, start + last)


def checksum(tensor: Tensor) -> int:
    """Of an array's type, shape and bytes, laid out plainly."""
    kind = _checksum_of_kind(tensor.dtype, tuple(tensor.shape))
    # An array without elements has no bytes to view.
    return zlib.crc32(_bytes_of(tensor), kind) if tensor.numel() else kind


def read_array(file: BinaryIO, entry: Entry, expected: object) -> Tensor:
    """An array, if its checksum is the expected one; ValueError before it takes any memory."""
    if _checksum_on_disk(file, entry) != expected:
        raise ValueError(f"the checksum of {entry.name} does not match")
    tensor = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
    if tensor.numel():
        file.seek(entry.start)
        left = _bytes_of(tensor)
        while left and (count := file.readinto(left)):  # type: ignore[attr-defined]
            left = left[count:]
    if checksum(tensor) != expected:
        raise ValueError(f"{entry.name} changed while it was read")
    return tensor


def _checksum_on_disk(file: BinaryIO, entry: Entry) -> int:
    found = _checksum_of_kind(entry.dtype, entry.shape)
    file.seek(entry.start)
    for start in range(entry.start, entry.stop, CHUNK):
        found = zlib.crc32(file.read(min(CHUNK, entry.stop - start)), found)
    return found


def _checksum_of_kind(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return zlib.crc32(f"{dtype} {shape}".encode())


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise ValueError(f"it is cut short ({len(data)} bytes of {count})")
    return data
