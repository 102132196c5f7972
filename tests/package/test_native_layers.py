"""The layers of csrc, by its includes (see csrc/README.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2] / "csrc"

# Which rooms a room may include, besides itself. A file belongs to the room with the longest name
# that its path starts with.
MAY_INCLUDE = {
    "common/": set(),
    "cpu/parallel": {"common/"},
    "cpu/kernels/": {"common/"},
    "cpu/network/": {"cpu/kernels/", "cpu/parallel", "common/"},
    "cpu/policy/": {"cpu/network/", "cpu/kernels/", "cpu/parallel", "common/"},
    "cpu/preconditioner/": {
        "cpu/policy/",
        "cpu/network/",
        "cpu/kernels/",
        "cpu/parallel",
        "common/",
    },
    "cpu/conjugate_gradient": {"cpu/kernels/", "common/"},
    "cpu/trust_region": {
        "cpu/conjugate_gradient",
        "cpu/preconditioner/",
        "cpu/policy/",
        "common/",
    },
    "cuda/": {"common/"},
    "cuda/panels/": {"cuda/", "common/"},
    "cuda/tiles/": {"cuda/", "common/"},
}
TORCH_HEADERS = re.compile(r"torch/|ATen/|c10/")
PYTHON_HEADERS = re.compile(r"Python\.h|pybind11/")
CUDA_HEADERS = re.compile(r"cuda|cooperative_groups|mma\.h")


class Include(NamedTuple):
    at: str  # the including file's path from csrc on
    line: int
    name: str
    own: bool  # in quotes

    def __str__(self) -> str:
        return f"csrc/{self.at}:{self.line} includes {self.name}"


def includes_of(root: Path) -> Iterator[Include]:
    sources = {".h", ".cpp", ".inl", ".cu", ".cuh"}
    for path in sorted(at for at in root.rglob("*") if at.suffix in sources):
        for number, text in enumerate(path.read_text().splitlines(), 1):
            found = re.match(r'\s*#\s*include\s*([<"])([^>"]+)', text)
            if found:
                at = path.relative_to(root).as_posix()
                yield Include(at, number, found[2], found[1] == '"')


def room_of(path: str) -> str | None:
    return max((room for room in MAY_INCLUDE if path.startswith(room)), key=len, default=None)


def broken_rules(root: Path) -> list[str]:
    broken = []
    for include in includes_of(root):
        room = room_of(include.at)
        if room is None and not include.at.startswith("python/"):
            broken.append(f"csrc/{include.at} is in no room: MAY_INCLUDE has to name one")
        elif include.own:
            broken += _broken_by(include, room, root)
        elif TORCH_HEADERS.match(include.name):
            broken.append(f"{include}: nothing in csrc knows torch")
        elif room is not None and PYTHON_HEADERS.match(include.name):
            broken.append(f"{include}: only csrc/python knows Python")
        elif include.at.startswith(("common/", "cpu/")) and CUDA_HEADERS.match(include.name):
            broken.append(f"{include}: common and cpu do not know CUDA")
    return broken


def _broken_by(include: Include, room: str | None, root: Path) -> list[str]:
    if not (root / include.name).is_file():
        return [f"{include}: an include names its file from csrc on"]
    other = room_of(include.name)
    if room is None or other == room or other in MAY_INCLUDE[room]:
        return []
    allowed = ", ".join(sorted(MAY_INCLUDE[room])) or "nothing else"
    return [f"{include}: besides itself {room} may include {allowed}"]


def ring(root: Path) -> list[str]:
    """Units, each a header with its source, that include one another in a ring; empty: none."""
    reads: dict[str, set[str]] = {}
    for include in includes_of(root):
        if include.own and _unit(include.at) != _unit(include.name):
            reads.setdefault(_unit(include.at), set()).add(_unit(include.name))
    left = set(reads)
    while True:  # what reads nothing that is left is in no ring
        free = {unit for unit in left if not reads[unit] & left}
        if not free:
            break
        left -= free
    return _walk(min(left), reads, left) if left else []


def _unit(path: str) -> str:
    return re.sub(r"\.(h|cpp|cu|cuh)$", "", path)


def _walk(start: str, reads: dict[str, set[str]], left: set[str]) -> list[str]:
    walked = [start]
    while True:
        step = min(reads[walked[-1]] & left)
        if step in walked:
            return [*walked[walked.index(step) :], step]
        walked.append(step)


def test_includes_go_one_way() -> None:
    assert sum(1 for _ in includes_of(ROOT)) > 100
    assert broken_rules(ROOT) == []


def test_no_files_include_one_another_in_a_ring() -> None:
    assert " -> ".join(ring(ROOT)) == ""
