"""Checkpoints: one safetensors file whose header carries the rest as JSON.

Reading one never runs code and never allocates more than the file's own size; there is no pickle
and no fallback to it. Writing replaces the old file only when the new one is whole on disk. The
JSON and every array carry a CRC-32: bytes that a disk changed are refused, not trained on.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trpo_fast.base.errors import UserError

FORMAT = 2
HEADER_KEY = "trpo_fast"
CHECKSUM = "crc32"
MAX_FILE_BYTES = 16 * 2**30
MAX_HEADER_BYTES = 64 * 2**20
# A node of the JSON that stands for an array:
# {"$tensor": name in the file, "numpy": bool, "crc32": of type, shape and bytes}.
TENSOR = "$tensor"


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or does not fit; the text says why."""


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> Path:
    """Write `state` to `path`, whole or not at all.

    `state` is any nesting of dicts with text keys, lists, tuples (they come back as lists),
    numbers, text, None, torch tensors and numpy arrays. Raises TypeError for anything else, with
    its place in `state`; OSError when the disk refuses. The file that was there before is then
    untouched.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    packed = _pack(state, "", tensors)
    document = {"format": FORMAT, CHECKSUM: zlib.crc32(_plain(packed)), "state": packed}
    path = Path(path)
    write_atomically(path, save(tensors, metadata={HEADER_KEY: _plain(document).decode()}))
    return path


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The state that `save_checkpoint` was given, tensors on the CPU.

    Raises CheckpointError for a file that is missing, cut short, foreign, oversized, or whose bytes
    are not those that were written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(path)
    data = _read_bounded(path)
    packed = _document(path, data)
    try:
        state = _unpack(packed, load(data))
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        # torch adds frames of its own to what it says of an impossible shape
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} is damaged: {reason}") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is damaged: it holds no state")
    return state


def _document(path: Path, data: bytes) -> Any:
    """The packed state in a file's bytes."""
    try:
        header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
        document = json.loads(header["__metadata__"][HEADER_KEY])
        version, packed = document["format"], document["state"]
        whole = document.get(CHECKSUM) == zlib.crc32(_plain(packed))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of trpo_fast: {error!r}") from None
    if version != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {version!r}; this version reads {FORMAT}"
        )
    if not whole:
        raise CheckpointError(f"{path} is damaged: the checksum of its description does not match")
    return packed


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path`: temporary file beside it, fsync, rename, fsync of the directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def remove_leftovers(directory: Path) -> None:
    """Delete temporary files that a killed process left in `directory`."""
    for leftover in directory.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def state_differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """One line for each entry in which two descriptions of an agent differ.

    A description maps names to plain values: environment, spaces, `shapes of ...` as a mapping.
    """
    lines = []
    for key in dict.fromkeys([*saved, *wanted]):
        a, b = saved.get(key), wanted.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += [f"{key}: {line}" for line in state_differences(a, b)]
        elif a != b:
            lines.append(f"{key}: the checkpoint has {_short(a)}, here it is {_short(b)}")
    return lines


def _short(value: Any) -> str:
    return "nothing" if value is None else str(value)


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        tensors[name] = copy = _plain_copy(value, name)
        return {
            TENSOR: name,
            "numpy": isinstance(value, np.ndarray),
            CHECKSUM: _checksum(copy),
        }
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) and key != TENSOR for key in value):
            raise TypeError(f"checkpoint keys are text, at {name!r} they are {list(value)[:3]!r}")
        return {key: _pack(item, f"{name}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_pack(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__} (at {name!r})")


def _plain_copy(value: Tensor | npt.NDArray[Any], name: str) -> Tensor:
    """A copy of its own, laid out plainly: safetensors refuses views and shared memory."""
    kind, copy = f"{type(value).__name__} of {value.dtype}", None
    if isinstance(value, np.ndarray):
        with contextlib.suppress(TypeError, ValueError):
            # The type by its name: C has two names for some integers, and torch knows one of them.
            copy = torch.from_numpy(value.astype(value.dtype.str, "C"))
    else:
        kind += f", {value.layout}, on {value.device}"
        if value.layout is torch.strided and not value.is_meta and _is_storable(value.dtype):
            copy = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    if copy is None or not _is_storable(copy.dtype):
        raise TypeError(f"a checkpoint cannot hold {kind} (at {name!r})")
    return copy


@cache
def _is_storable(dtype: torch.dtype) -> bool:
    """Whether the installed safetensors writes and reads that type."""
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    try:
        return load(save({"": torch.empty(1, dtype=dtype)}))[""].dtype == dtype
    except (KeyError, RuntimeError, SafetensorError):
        return False


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if TENSOR in value:
            tensor = tensors[value[TENSOR]]
            if value.get(CHECKSUM) != _checksum(tensor):
                raise ValueError(f"the checksum of {value[TENSOR]} does not match")
            return tensor.numpy() if value.get("numpy") else tensor
        return {key: _unpack(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    return value


def _plain(document: Any) -> bytes:
    """The JSON text; reading it and writing it again gives the same text."""
    return json.dumps(document, separators=(",", ":")).encode()


def _checksum(tensor: Tensor) -> int:
    """Of an array's type, shape and bytes, laid out plainly."""
    kind = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    if not tensor.numel():
        return kind  # an array without elements has no bytes to view
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, kind)


def _read_bounded(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise CheckpointError(f"{path} is not a file")
        if not 8 <= size <= MAX_FILE_BYTES:
            raise CheckpointError(f"{path} has {size} bytes: not a checkpoint of trpo_fast")
        with path.open("rb") as file:
            (header,) = struct.unpack("<Q", file.read(8))
            if header > min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(f"{path} is cut short or damaged (header of {header} bytes)")
            file.seek(0)
            return file.read(size)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"the checkpoint {path} cannot be read: {reason}") from error


def _sync_directory(directory: Path) -> None:
    """Make the rename itself durable, where the file system lets a directory be synced."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
