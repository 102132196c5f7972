"""Processes of one gloo group on this machine, for the tests of data-parallel updates."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from patience import PATIENCE


def run_ranks(
    program: str,
    count: int,
    argument: Any = None,
    *,
    environments: Sequence[dict[str, str]] = (),
    check: bool = True,
    wait_for: Sequence[int] | None = None,
) -> list[Any]:
    """What ``program``, as ``module:function``, returned on each rank for ``argument``.

    Args:
        program: called in each process once the group is there.
        count: processes.
        argument: handed to it, pickled.
        environments: further variables of each rank's process.
        check: whether every process must end well; else what it raised stands for its result.
        wait_for: the ranks whose end is waited for, all without it; the others are killed then.
    """
    with tempfile.TemporaryDirectory() as place:
        Path(place, "argument").write_bytes(pickle.dumps(argument))
        started: list[subprocess.Popen[bytes]] = []
        for rank in range(count):
            more = environments[rank] if environments else {}
            path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
            command = [sys.executable, __file__, program, place, str(rank), str(count)]
            with Path(place, f"error-{rank}").open("w") as said:
                started.append(
                    subprocess.Popen(
                        command,
                        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | more,
                        stderr=said,
                    )
                )
        try:
            for rank in range(count) if wait_for is None else wait_for:
                started[rank].wait(2 * PATIENCE)
        finally:
            for process in started:
                process.kill()
                process.wait()
        errors = [Path(place, f"error-{rank}").read_text() for rank in range(count)]
        found = []
        for rank, error in enumerate(errors):
            file = Path(place, f"found-{rank}")
            result = pickle.loads(file.read_bytes()) if file.exists() else None
            assert not check or (result is not None and result[0]), "\n".join(errors)
            found.append(error if result is None else result[1])
        return found


def _main(program: str, place: str, rank: str, count: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{place}/meet",
        rank=int(rank),
        world_size=int(count),
        timeout=timedelta(seconds=PATIENCE),
    )
    module, function = program.split(":")
    argument = pickle.loads(Path(place, "argument").read_bytes())
    call = getattr(importlib.import_module(module), function)
    try:
        result = True, call(argument)
    except Exception as error:  # noqa: BLE001 (for the test to look at)
        import traceback

        traceback.print_exc()
        result = False, f"{type(error).__name__}: {error}"
    Path(place, f"found-{rank}").write_bytes(pickle.dumps(result))
    os._exit(0)  # a process group whose ranks failed would be waited for


if __name__ == "__main__":
    _main(*sys.argv[1:])
