"""The directory of one training run, and where its parts are.

config.json, progress.csv, TensorBoard event files, checkpoints/ (rolling, and best), and after
training learning_curve.png.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trpo_fast.base.errors import UserError
from trpo_fast.runs.checkpoint import (
    CheckpointError,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
    write_atomically,
)
from trpo_fast.runs.lock import LockedError, RunLock

ROOT = Path("runs")
ROLLING = re.compile(r"step-(\d+)\.safetensors")
ABANDONED = "abandoned-"


class RunDirectoryError(UserError):
    """The directory cannot be used as asked; the text names the way out."""


class RunDirectory:
    """Paths and files of one run. Creating the object touches nothing on disk.

    A relative path is one below the working directory of now: an environment may change that.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.config_file = self.path / "config.json"
        self.progress_file = self.path / "progress.csv"
        self.picture_file = self.path / "learning_curve.png"
        self.checkpoints = self.path / "checkpoints"
        self.best_file = self.checkpoints / "best.safetensors"
        self.lock_file = self.path / ".lock"

    def is_used(self) -> bool:
        """Whether a run already wrote here."""
        files = (self.config_file, self.progress_file, self.best_file)
        return any(file.exists() for file in files) or bool(self.rolling())

    def refuse_if_used(self) -> None:
        """RunDirectoryError with the way out, when a run already wrote here."""
        if self.is_used():
            raise RunDirectoryError(
                f"{self.path} already holds a run: continue it with --resume (in Python: "
                "TRPO.load of its newest checkpoint), or choose another --run-dir (run_dir=)"
            )

    def claim(self, *, resume: bool = False) -> RunLock:
        """Make the directory ready for a run; the lock that keeps other trainings out of it.

        Raises RunDirectoryError when it holds a run, is in use or cannot be written to.
        """
        if not resume:
            self.refuse_if_used()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            # First: the leftovers below may be what another training is writing just now.
            lock = RunLock(self.lock_file)
            remove_leftovers(self.path)
            remove_leftovers(self.checkpoints)
        except LockedError as error:
            raise RunDirectoryError(
                f"{self.path} is in use by another training ({error}): wait for its end or stop "
                "it, or choose another --run-dir (run_dir=)"
            ) from None
        except OSError as error:
            reason = error.strerror or error
            raise RunDirectoryError(f"cannot write to {self.path}: {reason}") from error
        return lock

    def rolling(self) -> list[Path]:
        """The rolling checkpoints, oldest first."""
        files = self.checkpoints.glob("step-*.safetensors")
        return sorted((file for file in files if ROLLING.fullmatch(file.name)), key=_steps_of)

    def save(self, state: Mapping[str, Any], num_timesteps: int, keep: int) -> Path:
        """Write a rolling checkpoint and drop all but the newest `keep`. Raises OSError."""
        path = save_checkpoint(self._rolling_file(num_timesteps), state)
        for old in [file for file in self.rolling() if file != path][: -(keep - 1) or None]:
            old.unlink(missing_ok=True)
        return path

    def newer_than(self, num_timesteps: int) -> list[Path]:
        """The rolling checkpoints of more steps than that, oldest first."""
        return [file for file in self.rolling() if _steps_of(file) > num_timesteps]

    def go_back(self, state: Mapping[str, Any], num_timesteps: int) -> None:
        """Make `state` the newest rolling checkpoint; newer ones are kept as `abandoned-...`.

        A resume would go on from them, and `save` drop its own before theirs. Raises OSError.
        """
        save_checkpoint(self._rolling_file(num_timesteps), state)
        newer = self.newer_than(num_timesteps)
        # The newest last: killed in between, this leaves the run as it was.
        for file in newer:
            file.replace(file.with_name(ABANDONED + file.name))
        names = ", ".join(ABANDONED + file.name for file in newer)
        warnings.warn(
            f"{self.path} goes on from step {num_timesteps}; newer checkpoints are kept as {names}",
            stacklevel=2,
        )

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that loads, or None when there is none at all.

        A damaged newest one is passed over with a warning; CheckpointError when none loads.
        """
        failure: CheckpointError | None = None
        for path in reversed(self.rolling()):
            try:
                return path, load_checkpoint(path)
            except CheckpointError as error:
                failure = error
                warnings.warn(f"passing over a checkpoint: {error}", stacklevel=2)
        if failure is not None:
            raise failure
        return None

    def _rolling_file(self, num_timesteps: int) -> Path:
        return self.checkpoints / f"step-{num_timesteps:012d}.safetensors"

    def write_config(self, document: Mapping[str, Any]) -> None:
        """Write config.json."""
        write_atomically(self.config_file, (json.dumps(document, indent=2) + "\n").encode())


def new_run_directory(env_name: str, seed: int, root: Path = ROOT) -> RunDirectory:
    """Create runs/ENV-sSEED-K with the first free K, safely beside other processes."""
    number = max(_numbers(env_name, seed, root), default=0) + 1
    while True:
        directory = RunDirectory(root / f"{_prefix(env_name, seed)}{number}")
        try:
            directory.path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            reason = error.strerror or error
            raise RunDirectoryError(f"cannot create {directory.path}: {reason}") from error
        else:
            return directory


def last_run_directory(env_name: str, seed: int, root: Path = ROOT) -> RunDirectory | None:
    """The existing runs/ENV-sSEED-K with the highest K."""
    numbers = _numbers(env_name, seed, root)
    return RunDirectory(root / f"{_prefix(env_name, seed)}{max(numbers)}") if numbers else None


def _steps_of(rolling: Path) -> int:
    """The steps in a rolling checkpoint's name."""
    return int(rolling.stem.removeprefix("step-"))


def _prefix(env_name: str, seed: int) -> str:
    """Ids such as ALE/Pong-v5 and package:Env-v0 become one plain directory name."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', env_name).strip('.-') or 'env'}-s{seed}-"


def _numbers(env_name: str, seed: int, root: Path) -> list[int]:
    prefix = _prefix(env_name, seed)
    if not root.is_dir():
        return []
    rests = (p.name.removeprefix(prefix) for p in root.iterdir() if p.name.startswith(prefix))
    return [int(rest) for rest in rests if rest.isdecimal() and rest.isascii()]
