"""Checkpoints: one safetensors file whose header carries the rest as JSON.

Reading one never runs code and never allocates more than the file's own size, which its header must
account for; there is no pickle and no fallback to it. Writing replaces the old file only when the
new one is whole on disk. The JSON and every array carry a CRC-32: bytes that a disk changed are
refused, not trained on.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trpo_fast.base.errors import UserError
from trpo_fast.runs.arrays import DTYPES, Entry, Header, checksum, read_array, read_header
from trpo_fast.runs.files import open_to_read, refusal, write_atomically

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
    path = Path(path)
    try:
        with open_to_read(path) as file:
            header = read_header(file, MAX_FILE_BYTES, MAX_HEADER_BYTES)
            packed = _checked_description(header)
            _refuse_strays(packed, header.entries)
            state: dict[str, Any] = _unpack(packed, file, header.entries)
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {refusal(error)}") from None
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is no checkpoint of trpo_fast, or damaged: {error}"
        ) from None
    except (MemoryError, RuntimeError) as error:  # torch has the latter for the former
        reason = str(error).partition("\n")[0] or "the memory does not suffice"
        raise CheckpointError(f"the checkpoint {path} cannot be read: {reason}") from None
    return state


def _checked_description(header: Header) -> dict[str, Any]:
    """The packed state in a file's header."""
    document = json.loads(header.metadata.get(HEADER_KEY, "null"))
    if not isinstance(document, dict) or not {"format", "state"} <= set(document):
        raise ValueError("it is another program's")
    if document["format"] != FORMAT:
        raise ValueError(f"it has format {document['format']!r}; this version reads {FORMAT}")
    packed = document["state"]
    if document.get(CHECKSUM) != zlib.crc32(_plain(packed)):
        raise ValueError("the checksum of its description does not match")
    if not isinstance(packed, dict) or TENSOR in packed:
        raise ValueError("it holds no state")
    return packed


def _refuse_strays(packed: Any, entries: Mapping[str, Entry]) -> None:
    """ValueError unless the state names each array of the file, and once.

    Of one that is named often, often as much memory as the file has would be taken.
    """
    named = list(_named(packed))
    if len(named) != len(entries) or set(named) != set(entries):
        odd = sorted(set(named) ^ set(entries)) or ["one of them"]
        raise ValueError(f"its {len(entries)} arrays are not those of its state: {odd[0][:80]!r}")


def _named(value: Any) -> Iterator[str]:
    if isinstance(value, list) or (isinstance(value, dict) and TENSOR not in value):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _named(item)
    elif isinstance(value, dict):
        yield str(value[TENSOR])


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
            CHECKSUM: checksum(copy),
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
    """Whether the installed safetensors writes that type, and it is one that is read here."""
    from safetensors import SafetensorError
    from safetensors.torch import save

    if dtype not in DTYPES.values():
        return False
    try:
        save({"": torch.empty(1, dtype=dtype)})
    except (KeyError, RuntimeError, SafetensorError):
        return False
    return True


def _unpack(value: Any, file: BinaryIO, entries: Mapping[str, Entry]) -> Any:
    if isinstance(value, dict):
        if TENSOR in value:
            tensor = read_array(file, entries[value[TENSOR]], value.get(CHECKSUM))
            return tensor.numpy() if value.get("numpy") else tensor
        return {key: _unpack(item, file, entries) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack(item, file, entries) for item in value]
    return value


def _plain(document: Any) -> bytes:
    """The JSON text; reading it and writing it again gives the same text."""
    return json.dumps(document, separators=(",", ":")).encode()
