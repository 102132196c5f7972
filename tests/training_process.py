"""Trainings in a process of their own, for tests that kill them."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from patience import PATIENCE, wait_until

from trpo_fast import cli
from trpo_fast.runs.directory import RunDirectory
from trpo_fast.runs.logger import read_progress

TINY = [
    *("--num-envs", "2", "--rollout-steps", "32", "--hidden-sizes", "8"),
    *("--value-hidden-sizes", "8", "--critic-epochs", "1"),
]


def train(directory: Path, steps: int, *arguments: str, env: str = "CartPole-v1") -> int:
    """Train in this process, resuming where there is something to resume."""
    common = ["--total-steps", str(steps), "--run-dir", str(directory), "--resume", "--quiet"]
    return cli.main(["train", env, *TINY, *common, *arguments])


def limit_file_size() -> None:
    """No file of the process may grow beyond this: a real I/O error, for root too."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))


class Command:
    """`trpo-fast` in a child process, in a session of its own."""

    def __init__(self, *arguments: str, **popen: Any) -> None:
        tests = str(Path(__file__).parent)
        path = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trpo_fast", *arguments],
            # Without bytecode: where its files may not grow, Python leaves half of one behind.
            env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **popen,
        )

    def wait_for_file(self, path: Path) -> None:
        """Wait until the file is there; an error with what the process said if it ends before."""
        self._wait(path.exists)
        if not path.exists():
            raise AssertionError(self.finish())

    def _wait(self, done: Callable[[], bool]) -> None:
        wait_until(lambda: done() or self.process.poll() is not None, self.kill)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def finish(self) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        try:
            out, err = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self.process.returncode, out, err

    def kill(self) -> None:
        """End every process of its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def group_is_gone(self) -> bool:
        """Whether no process of its session runs; one that nobody has waited for yet is no more."""
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
        return not any(session_of(pid) == self.process.pid for pid in pids)


class Training(Command):
    """`trpo-fast train`, small."""

    def __init__(
        self, directory: Path, steps: int, *arguments: str, env: str = "CartPole-v1", **popen: Any
    ) -> None:
        self.directory = directory
        common = ["--total-steps", str(steps), "--run-dir", str(directory), "--resume"]
        super().__init__("train", env, *TINY, *common, *arguments, **popen)

    def wait_for_rows(self, count: int) -> None:
        """Wait until progress.csv has this many rows, or the process has ended."""
        self._wait(lambda: len(rows_of(self.directory)) >= count)


def session_of(pid: int) -> int | None:
    """The session of a process; None once it has ended, whether or not it was waited for."""
    try:
        state, _, _, session, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(session)


def runs(pid: int) -> bool:
    """Whether a process has not ended."""
    return session_of(pid) is not None


def rows_of(directory: Path) -> list[dict[str, str]]:
    return read_progress(directory / "progress.csv")


def iterations(directory: Path) -> list[int]:
    return [int(row["time/iterations"]) for row in rows_of(directory)]


def final_state(directory: Path) -> dict[str, Any]:
    """The newest checkpoint, without the wall clock."""
    found = RunDirectory(directory).latest()
    assert found is not None
    state = found[1]
    del state["progress"]["time_elapsed"]
    return state


def assert_identical(a: Any, b: Any, where: str = "") -> None:
    """Equal to the last bit, tensors, arrays and plain values alike."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_identical(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), where
        assert a.tobytes() == b.tobytes(), where
    else:
        assert a == b, where
