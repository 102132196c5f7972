"""The directory of one training run, and where its parts are.

config.json, progress.csv, TensorBoard event files, checkpoints/ (rolling, and best), and after
training learning_curve.png.
"""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trpo_fast.base.errors import UserError, users_level
from trpo_fast.runs.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from trpo_fast.runs.files import NO_ROOM, given_path, refusal, remove_leftovers, write_atomically
from trpo_fast.runs.lock import LockedError, RunLock

ROOT = Path("runs")
ROLLING = re.compile(r"step-(\d+)\.safetensors")
ABANDONED = "abandoned-"


class RunDirectoryError(UserError):
    """The directory cannot be used as asked; the text names the way out."""


@contextlib.contextmanager
def _in_words(what: str) -> Iterator[None]:
    """A RunDirectoryError that begins so in place of what the disk refuses within."""
    try:
        yield
    except OSError as error:
        raise RunDirectoryError(f"{what}: {refusal(error)}") from error


class RunDirectory:
    """Paths and files of one run. Creating the object touches nothing on disk.

    A relative path is one below the working directory of now: an environment may change that.
    Raises PathError for an empty one.
    """

    def __init__(self, path: str | Path) -> None:
        with _in_words("the working directory is gone"):
            self.path = given_path(path, "the run directory (--run-dir, run_dir=)").absolute()
        self.config_file = self.path / "config.json"
        self.progress_file = self.path / "progress.csv"
        self.picture_file = self.path / "learning_curve.png"
        self.checkpoints = self.path / "checkpoints"
        self.best_file = self.checkpoints / "best.safetensors"
        self.lock_file = self.path / ".lock"

    def is_used(self) -> bool:
        """Whether a run already wrote here; RunDirectoryError where that cannot be told."""
        files = (self.config_file, self.progress_file, self.best_file)
        with _in_words(f"cannot read {self.path}"):
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
        with _in_words(f"cannot write to {self.path}"):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            try:
                # First: the leftovers below may be what another training is writing just now.
                lock = RunLock(self.lock_file)
            except LockedError as error:
                raise RunDirectoryError(
                    f"{self.path} is in use by another training ({error}): wait for its end or "
                    "stop it, or choose another --run-dir (run_dir=)"
                ) from None
            try:
                remove_leftovers(self.path)
                remove_leftovers(self.checkpoints)
            except BaseException:
                lock.release()
                raise
        return lock

    def rolling(self) -> list[Path]:
        """The rolling checkpoints, oldest first.

        RunDirectoryError where the directory cannot be read: to go on as if it held none would
        begin the run anew.
        """
        with _in_words(f"cannot read {self.checkpoints}"):
            try:
                files = list(self.checkpoints.iterdir())
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted((file for file in files if ROLLING.fullmatch(file.name)), key=_steps_of)

    def save(self, state: Mapping[str, Any], num_timesteps: int, keep: int) -> Path:
        """Write a rolling checkpoint and drop all but the newest `keep`. Raises OSError."""
        file = self._rolling_file(num_timesteps)
        path = self.with_room(lambda: save_checkpoint(file, state))
        for old in [file for file in self.rolling() if file != path][: -(keep - 1) or None]:
            old.unlink(missing_ok=True)
        return path

    def with_room(self, write: Callable[[], Path]) -> Path:
        """What `write` gives; on a full disk, older rolling checkpoints make room, one by one.

        The newest that loads is never among them: until the new one is whole, it is the run.
        Raises OSError where none is left to remove, or the disk refuses for another reason.
        """
        spare: list[Path] | None = None
        while True:
            try:
                return write()
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                spare = self._before_newest() if spare is None else spare
                if not spare:
                    raise
                oldest, reason = spare.pop(0), refusal(error)
            oldest.unlink(missing_ok=True)
            warnings.warn(
                f"cannot write to {self.path}: {reason}; {oldest.name} is removed to make room",
                stacklevel=users_level(),
            )

    def _before_newest(self) -> list[Path]:
        """The rolling checkpoints that are older than the newest that loads, oldest first."""
        files = self.rolling()
        while files:
            with contextlib.suppress(CheckpointError):
                load_checkpoint(files.pop())
                break
        return files

    def newer_than(self, num_timesteps: int) -> list[Path]:
        """The rolling checkpoints of more steps than that, oldest first."""
        return [file for file in self.rolling() if _steps_of(file) > num_timesteps]

    def go_back(self, state: Mapping[str, Any], num_timesteps: int) -> None:
        """Make `state` the newest rolling checkpoint; newer ones are kept as `abandoned-...`.

        A resume would go on from them, and `save` drop its own before theirs. Raises OSError.
        """
        file = self._rolling_file(num_timesteps)
        self.with_room(lambda: save_checkpoint(file, state))
        newer = self.newer_than(num_timesteps)
        # The newest last: killed in between, this leaves the run as it was.
        for file in newer:
            file.replace(file.with_name(ABANDONED + file.name))
        names = ", ".join(ABANDONED + file.name for file in newer)
        warnings.warn(
            f"{self.path} goes on from step {num_timesteps}; newer checkpoints are kept as {names}",
            stacklevel=users_level(),
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
                warnings.warn(f"passing over a checkpoint: {error}", stacklevel=users_level())
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
    with _in_words(f"cannot create {root}"):
        root.mkdir(parents=True, exist_ok=True)
    while True:
        directory = RunDirectory(root / f"{_prefix(env_name, seed)}{number}")
        with _in_words(f"cannot create {directory.path}"):
            try:
                directory.path.mkdir()
            except FileExistsError:
                number += 1
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
    with _in_words(f"cannot read {root}"):
        names = [path.name for path in root.iterdir()] if root.is_dir() else []
    rests = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    return [int(rest) for rest in rests if rest.isdecimal() and rest.isascii()]
