"""The processes that share a training, each with rows of its own: torch.distributed's collectives.

All ranks make the same calls in the same order. What happens on one rank alone, a bad batch or an
error in the update, is therefore told to the others in the collective that comes next, and all end
together. An interrupt is told where the update is native. Elsewhere it ends the process, whose
connections close, and with that the others' waiting; a process that catches it and lives on keeps
them until the group's time-out, since gloo has no way to abort a group.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from trpo_fast import _native
from trpo_fast._version import __version__
from trpo_fast.base.errors import RankError, say_once


class Ranks:
    """A process group and what has gone through it.

    Making one is a collective: every rank of the group makes it, and ranks with another version of
    trpo_fast, of its code or of torch are refused there.

    Args:
        group: of ``torch.distributed``; any backend.

    Attributes:
        rank: of this process in the group.
        count: processes in it.
        alike: whether all compute with the same bits: the same instruction set, threads and device.
            Where they do, numbers computed from summed ones agree by themselves; elsewhere rank 0's
            are broadcast.
        collectives: made so far.
        bytes: that this rank has put into them.
        seconds: in them, waiting for slower ranks included.
        met: whether this process has made any.

    Raises:
        TypeError: ``group`` is no process group.
        RankError: this process is not in it, or a rank is of another version.
    """

    met = False

    def __init__(self, group: Any) -> None:
        if not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
            raise TypeError(
                f"process_group is a {type(group).__name__}; give a torch.distributed process "
                "group, as torch.distributed.group.WORLD after init_process_group is"
            )
        self.group: dist.ProcessGroup | None = group
        self.rank, self.count = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise RankError("this process is not in the process group that it was given")
        self._source = dist.get_global_rank(group, 0)
        nccl = "nccl" in str(dist.get_backend(group))
        self.device = torch.device("cuda", torch.cuda.current_device()) if nccl else _CPU
        self.collectives = self.bytes = 0
        self.seconds = 0.0
        self.alike = True
        self._meet()
        Ranks.met = True

    def leave(self) -> None:
        """Forget the process group; sharing raises RankError afterwards.

        A group's threads end with the last reference to it. One that is still putting away a
        collective's tensors while the interpreter ends asks for Python's lock, and aborts the
        process, whose work was done.
        """
        self.group = None

    @classmethod
    def of(cls, group: Any) -> Ranks:
        """Those of a process group, or the ones given."""
        return group if isinstance(group, Ranks) else cls(group)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a process group cannot be pickled: save state_dict(), and make the optimizer anew "
            "where it is loaded"
        )

    def sum(self, tensor: Tensor) -> None:
        """The sum over all ranks, in place; the same bits everywhere."""
        with self._collective(tensor):
            self._carried(tensor, lambda t: dist.all_reduce(t, group=self.group))

    def broadcast(self, tensor: Tensor) -> None:
        """Rank 0's, in place."""
        with self._collective(tensor):
            self._carried(tensor, lambda t: dist.broadcast(t, self._source, group=self.group))

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """Every rank's numbers, of which all bring equally many."""
        own = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        found = [torch.empty_like(own) for _ in range(self.count)]
        with self._collective(own):
            dist.all_gather(found, own, group=self.group)
        return [row.tolist() for row in found]

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's value; of a size that may differ."""
        return [_unpacked(row) for row in self.gather_rows(_packed(value))]

    def gather_rows(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's ``[n, ...]``, where n may differ."""
        sizes, padded = self._padded(tensor)
        found = [torch.empty_like(padded) for _ in sizes]
        with self._collective(padded):
            dist.all_gather(found, padded, group=self.group)
        return [rows[:n].to(tensor.device) for rows, n in zip(found, sizes, strict=True)]

    def _padded(self, tensor: Tensor) -> tuple[list[int], Tensor]:
        """Every rank's number of rows, and this one's rows with room for the most of them."""
        sizes = [int(n) for (n,) in self.gather([len(tensor)])]
        padded = torch.zeros(max(sizes), *tensor.shape[1:], dtype=tensor.dtype, device=self.device)
        padded[: len(tensor)] = tensor
        return sizes, padded

    def from_first(self, compute: Callable[[], Any]) -> Any:
        """What rank 0 computed, on all of them.

        Raises:
            RankError: on the others where rank 0 failed; its own error there.
        """
        own = _packed(None)

        def told() -> list[float]:
            nonlocal own
            own = _packed(compute()) if self.rank == 0 else own
            return [len(own)]

        size = int(self.exchange(told, 1)[0][0])
        held = own if self.rank == 0 else torch.empty(size, dtype=torch.uint8)
        self.broadcast(held)
        return _unpacked(held)

    def gather_to_first(self, value: Any) -> list[Any] | None:
        """Every rank's value on rank 0; None elsewhere."""
        own = _packed(value)
        sizes, padded = self._padded(own)
        found = [torch.empty_like(padded) for _ in sizes] if self.rank == 0 else None
        with self._collective(own):
            dist.gather(padded, found, self._source, group=self.group)
        if found is None:
            return None
        return [_unpacked(row[:size]) for row, size in zip(found, sizes, strict=True)]

    def agreed(self, number: float) -> float:
        """A number that decides what happens next: rank 0's, where rounding could tell it apart."""
        if self.alike:
            return number
        held = torch.tensor([number], dtype=torch.float64, device=self.device)
        self.broadcast(held)
        return float(held)

    def everywhere(self, holds: bool) -> bool:
        """Whether it holds on every rank, of what only rounding could tell apart."""
        return holds if self.alike else all(flag for (flag,) in self.gather([holds]))

    def exchange(self, compute: Callable[[], Sequence[float]], width: int) -> list[list[float]]:
        """Every rank's ``width`` numbers, or an error on all ranks where computing failed on one.

        Raises:
            RankError: on the ranks where nothing failed; the failed rank's own error there.
        """
        failed: BaseException | None = None
        numbers: Sequence[float] = ()
        try:
            numbers = compute()
        except BaseException as error:  # noqa: BLE001 (raised by end_together)
            failed = error
        found = self.gather([0.0, *numbers] if failed is None else [1.0] + width * [0.0])
        if any(row[0] for row in found):
            self.end_together(failed)
        return [row[1:] for row in found]

    def sum_or_end(self, total: Tensor, add: Callable[[], None]) -> None:
        """Sum over the ranks what ``add`` puts into ``total``, the last of it for who failed.

        Raises:
            RankError: where another rank's ``add`` failed; the failed rank's own error there.
        """
        failed: BaseException | None = None
        try:
            add()
        except BaseException as error:  # noqa: BLE001 (raised by end_together)
            failed = error
            total.zero_()
            total[-1] = 1
        self.sum(total)
        if float(total[-1]) > 0:
            self.end_together(failed)

    def end_together(self, failed: BaseException | None) -> NoReturn:
        """Raise on every rank, once all know that one has failed; ``failed`` is this rank's own."""
        told = None if failed is None else f"{type(failed).__name__}: {failed}"
        found = self.gather_objects(told)
        if failed is not None:
            raise failed
        texts = [f"rank {rank}: {text}" for rank, text in enumerate(found) if text is not None]
        raise RankError(f"no rank made this step, because of {'; '.join(texts)}")

    def _meet(self) -> None:
        """Refuse ranks of other code; find out whether all compute alike."""
        found = self.gather_objects((_identity(), _arithmetic()))
        own = found[self.rank][0]
        for rank, (identity, _) in enumerate(found):
            differ = [
                f"{k} {identity.get(k)!r}, not {own[k]!r}" for k in own if identity.get(k) != own[k]
            ]
            if differ:
                raise RankError(
                    f"rank {rank} has {', '.join(differ)} as rank {self.rank} has: install the "
                    "same everywhere"
                )
        self.alike = all(arithmetic == found[0][1] for _, arithmetic in found)

    def _carried(self, tensor: Tensor, call: Callable[[Tensor], Any]) -> None:
        if tensor.device.type == self.device.type:
            call(tensor)
            return
        held = tensor.to(self.device)
        call(held)
        tensor.copy_(held)

    @contextmanager
    def _collective(self, tensor: Tensor) -> Iterator[None]:
        if self.group is None:  # which torch takes for all processes, whoever was in the group
            raise RankError(
                f"rank {self.rank} of {self.count} has left its process group (Ranks.leave): give "
                "a new optimizer or agent a process_group to go on with other ranks"
            )
        self.collectives += 1
        self.bytes += tensor.nbytes
        start = perf_counter()
        try:
            yield
        except RuntimeError as error:
            raise RankError(
                f"rank {self.rank} of {self.count} lost the others: one has ended, or hung for "
                "longer than the process group's time-out. Its own output says why. "
                f"(torch.distributed: {str(error).splitlines()[0]})"
            ) from error
        finally:
            self.seconds += perf_counter() - start


_CPU = torch.device("cpu")


def _packed(value: Any) -> Tensor:
    """As torch's own collectives of objects send them."""
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def _unpacked(row: Tensor) -> Any:
    # From processes that this one trusts with its collectives, and that run the same code.
    return pickle.loads(row.cpu().numpy().tobytes())  # noqa: S301


def warn_if_alone() -> None:
    """Say so once where this process is one of several and was given no group to train with.

    ``torch.distributed.group.WORLD`` is None before ``init_process_group``: a rank that was given
    that would train by itself, and nothing else would tell.
    """
    if Ranks.met:
        return
    if dist.is_available() and dist.is_initialized():
        rank, count = str(dist.get_rank()), str(dist.get_world_size())
    else:
        rank, count = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    if rank.isdecimal() and count.isdecimal() and int(count) > 1:
        say_once(
            f"this process is rank {rank} of {count}, and without process_group it trains by "
            "itself, on its own rows. To train with the others give "
            "process_group=torch.distributed.group.WORLD, after init_process_group (before it "
            "that is None)",
            UserWarning,
        )


def checksum(tensors: Sequence[Tensor]) -> int:
    """Of their bits, below 2^52, so that float64 holds it."""
    total = 0
    for tensor in tensors:
        held = tensor.detach().to("cpu").contiguous().view(-1)
        words = held.view(torch.int64 if held.dtype.itemsize == 8 else torch.int32).numpy()
        with np.errstate(over="ignore"):
            total = 31 * total + int(np.add.reduce(words, dtype=np.int64))
    return total % (1 << 52)


@cache
def _identity() -> dict[str, str]:
    """What must be the same on every rank."""
    package = Path(__file__).parents[1]
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(str(path.relative_to(package)).encode())
        found.update(path.read_bytes())
    return {
        "trpo_fast": __version__,
        "trpo_fast's code": found.hexdigest()[:12],
        "torch": str(torch.__version__),
    }


def _arithmetic() -> tuple[Any, ...]:
    """What decides how the same numbers are rounded."""
    core = _native.core
    device = torch.cuda.get_device_name() if torch.cuda.is_initialized() else ""
    isa = None if core is None else core.isa()
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return _processor(), isa, capability, threads, _overrides(), device


def _processor() -> tuple[str, ...]:
    """The machine and, where the system tells it, the model of its CPU: MKL rounds by it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = [platform.processor()]
    models = sorted({line for line in lines if line.startswith(("model name", "CPU part"))})
    return platform.machine(), *(models or lines[:1])


def _overrides() -> list[tuple[str, str]]:
    """What of the environment changes which kernels torch and its libraries take."""
    prefixes = ("MKL_", "ATEN_", "ONEDNN_", "DNNL_", "OPENBLAS_")
    return sorted(pair for pair in os.environ.items() if pair[0].startswith(prefixes))
