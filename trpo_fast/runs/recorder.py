"""What `learn` leaves on disk: config, rows, checkpoints, the picture.

A disk that refuses does not end the training, nor does a mistake in saving: a warning names the
cause, the write is tried again with the next update, and what is still missing at the end is listed
in `missing`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from trpo_fast.base.errors import users_level
from trpo_fast.runs.checkpoint import save_checkpoint
from trpo_fast.runs.directory import RunDirectory, RunDirectoryError
from trpo_fast.runs.files import refusal
from trpo_fast.runs.lock import RunLock
from trpo_fast.runs.logger import ITERATION, TIMESTEPS, Row, RunLogger, read_progress, reason_of
from trpo_fast.runs.plotting import PlotError, plot_runs
from trpo_fast.runs.tracking import Outcome, Sink, opened

State = Mapping[str, Any]


class Output(Enum):
    """What is written again where the disk refused it; its text says so in messages."""

    CONFIG = "config.json"
    CHECKPOINT = "the checkpoint"
    BEST_CHECKPOINT = "the best checkpoint"
    LEARNING_CURVE = "the learning curve"

    def __str__(self) -> str:
        return self.value


class RunRecorder:
    """Writes one run into its directory.

    Raises RunDirectoryError when it cannot be written to, ProgressFileError when its progress.csv
    is damaged; nobody holds the lock then.

    Args:
        directory: where to.
        lock: that the directory's `claim` gave; held until `close`.
        document: what config.json holds.
        state: what the run goes on from. Rolling checkpoints and rows of later updates, where an
            older one was loaded, are not of this run any more.
        columns: what an update tells, for progress.csv.
        save_every: updates between rolling checkpoints; 0 for none before the end.
        keep: rolling checkpoints kept.
        tracker: what else takes the rows, one of `tracking.TRACKERS`.
        last_iteration: updates done before (on resume).
        last_timesteps: steps done before.
    """

    def __init__(
        self,
        directory: RunDirectory,
        lock: RunLock,
        document: Mapping[str, Any],
        state: State,
        *,
        columns: Sequence[str],
        save_every: int,
        keep: int,
        tracker: str = "none",
        last_iteration: int,
        last_timesteps: int,
    ) -> None:
        self.directory = directory
        self.last_checkpoint: Path | None = None
        self._save_every = save_every
        self._keep = keep
        self._unsaved: dict[Output, Callable[[], None]] = {}
        self._reasons: dict[Output, str] = {}  # of what is in _unsaved, as last told
        self._saved_at = -1
        self._lock = lock
        try:
            # The log first: where it is refused as damaged, nothing has been written.
            if directory.newer_than(last_timesteps):
                read_progress(directory.progress_file)
                # Before later rows are dropped, so that no resume finds a checkpoint without them.
                directory.go_back(state, last_timesteps)
            self._logger = RunLogger(
                directory.path,
                columns,
                last_iteration=last_iteration,
                last_timesteps=last_timesteps,
                sinks=_tracking(tracker, directory.path, document),
            )
            directory.write_config(document)
        except OSError as error:
            # Before the first update nothing is lost by saying so.
            lock.release()
            raise RunDirectoryError(
                f"cannot write to {directory.path}: {refusal(error)}"
            ) from error
        except BaseException:
            lock.release()
            raise

    @property
    def missing(self) -> list[str]:
        """What could not be written, in words; empty when all is on disk."""
        rows = [self.directory.progress_file.name] if self._logger.has_unwritten_rows else []
        return [*rows, *map(str, self._unsaved)]

    def describe(self, document: Mapping[str, Any]) -> None:
        """Replace what config.json holds."""
        self._try(Output.CONFIG, lambda: self.directory.write_config(document))

    def record(self, row: Row, state: State, *, best: bool) -> None:
        """Write one update's row, and a checkpoint when it is time for one."""
        self._logger.write(row)
        retry = Output.CHECKPOINT in self._unsaved
        if best:
            self._try(Output.BEST_CHECKPOINT, lambda: self._save_best(state))
        elif Output.BEST_CHECKPOINT in self._unsaved:
            self._try(Output.BEST_CHECKPOINT, self._unsaved[Output.BEST_CHECKPOINT])
        if retry or (self._save_every and row[ITERATION] % self._save_every == 0):
            self.save(state, row[TIMESTEPS])

    def save(self, state: State, num_timesteps: int) -> Path | None:
        """Write a rolling checkpoint; its path, or None with a warning where that failed."""
        if self._saved_at != num_timesteps:
            self._try(Output.CHECKPOINT, lambda: self._save_rolling(state, num_timesteps))
        return self.last_checkpoint if self._saved_at == num_timesteps else None

    def finish(self, state: State, num_timesteps: int) -> None:
        """Write everything that is still to be written, and the learning curve."""
        for output, action in list(self._unsaved.items()):
            self._try(output, action)
        self.save(state, num_timesteps)
        self._try(Output.LEARNING_CURVE, self._draw)
        self.close()

    def close(self, error: BaseException | None = None) -> None:
        """Close the log files of a run that ended so, and leave the directory to others."""
        self._logger.close(Outcome.of(error))
        self._lock.release()

    def _save_rolling(self, state: State, num_timesteps: int) -> None:
        self.last_checkpoint = self.directory.save(state, num_timesteps, self._keep)
        self._saved_at = num_timesteps

    def _save_best(self, state: State) -> None:
        self.directory.with_room(lambda: save_checkpoint(self.directory.best_file, state))

    def _draw(self) -> None:
        try:
            plot_runs([self.directory.path], self.directory.picture_file)
        except PlotError:
            return  # a run too short to finish an episode has no curve: nothing is missing
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 (a picture is no reason to fail a training)
            warnings.warn(f"no learning curve: {error}", stacklevel=users_level())

    def _try(self, output: Output, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 (training is not to be lost to a mistake of ours)
            reason = reason_of(error)
        else:
            self._unsaved.pop(output, None)
            self._reasons.pop(output, None)
            return
        self._unsaved[output] = action
        if reason != self._reasons.get(output):
            self._reasons[output] = reason
            warnings.warn(
                f"cannot write {output}: {reason}; will try again", stacklevel=users_level()
            )


def _tracking(
    tracker: str, directory: Path, document: Mapping[str, Any]
) -> dict[str, Callable[[], Sink]]:
    return {} if tracker == "none" else {tracker: lambda: opened(tracker, directory, document)}
