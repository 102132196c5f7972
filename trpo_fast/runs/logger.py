"""The record of a run: progress.csv and TensorBoard events, one row an update.

Column names follow Stable-Baselines3. After a resume the CSV has neither gaps nor duplicates:
rows of updates later than the checkpoint are dropped, and they are computed again.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trpo_fast.base.errors import UserError, users_level
from trpo_fast.base.time_budget import COLUMNS as TIME_COLUMNS
from trpo_fast.runs.files import open_to_change, open_to_read, write_atomically
from trpo_fast.runs.tensorboard import EventFile
from trpo_fast.runs.tracking import Outcome, Sink

ITERATION = "time/iterations"
TIMESTEPS = "time/total_timesteps"
# Those of every run; what an update tells comes after them.
COLUMNS = (
    ITERATION,
    TIMESTEPS,
    "time/time_elapsed",
    "time/fps",
    *TIME_COLUMNS,
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "rollout/episodes",
    "rollout/dropped_episodes",
    "eval/mean_reward",
    "eval/std_reward",
    "eval/mean_ep_length",
)
Row = Mapping[str, Any]


class ProgressFileError(UserError):
    """A progress.csv that was damaged after it was written; the text says where."""


class RunLogger:
    """Appends rows to progress.csv and TensorBoard; survives a disk that refuses for a while.

    `columns` are those of progress.csv that an update fills, besides `COLUMNS`; `sinks` make what
    else takes the rows, by the name that a warning has for it.
    `last_iteration` is the last update that counts: on resume, rows after it are dropped, and
    TensorBoard is told to forget what came after `last_timesteps`.

    Raises ProgressFileError for a damaged progress.csv, which is then left as it is; OSError.
    """

    def __init__(
        self,
        directory: Path,
        columns: Sequence[str] = (),
        *,
        last_iteration: int = 0,
        last_timesteps: int = 0,
        sinks: Mapping[str, Callable[[], Sink]] | None = None,
    ) -> None:
        self._path = directory / "progress.csv"
        self._columns = (*COLUMNS, *columns)
        self._pending: list[bytes] = []
        self._told = ""  # why they are pending
        self._end = _start_csv(self._path, self._columns, last_iteration)
        purge_step = last_timesteps + 1 if last_iteration else None
        self._sinks: dict[str, Sink] = {}
        self._open("TensorBoard events", lambda: EventFile(directory, purge_step))
        for name, make in (sinks or {}).items():
            self._open(name, make)

    @property
    def has_unwritten_rows(self) -> bool:
        """Whether some rows have not reached the disk."""
        return bool(self._pending)

    def write(self, row: Row) -> None:
        """Record one update. A row the disk refuses is kept and written with a later one."""
        self._pending.append(_line(row.get(column) for column in self._columns))
        self.flush()
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, int | float)}
        for name, sink in list(self._sinks.items()):
            self._guard(name, partial(sink.write, int(row[TIMESTEPS]), numbers))

    def flush(self) -> bool:
        """Try to put everything on disk; False where that fails, with a warning of each reason."""
        try:
            self._append(b"".join(self._pending))
        except Exception as error:  # noqa: BLE001 (as for a checkpoint: see recorder.py)
            reason = reason_of(error)
        else:
            self._pending.clear()
            self._told = ""
            return True
        if reason != self._told:
            self._told = reason
            warnings.warn(
                f"cannot write {self._path}: {reason}; will try again", stacklevel=users_level()
            )
        return False

    def close(self, outcome: Outcome = Outcome.FINISHED) -> None:
        """Write what is left and close the files of a run that ended so."""
        if self._pending:
            self.flush()
        for name, sink in list(self._sinks.items()):
            self._guard(name, partial(sink.close, outcome))
        self._sinks.clear()

    def _append(self, data: bytes) -> None:
        with open_to_change(self._path) as file:
            if os.fstat(file.fileno()).st_size < self._end:
                # Deleted or cut by somebody: to go on at its old end would leave a hole of zeros.
                warnings.warn(
                    f"{self._path} has lost its rows: it begins anew", stacklevel=users_level()
                )
                self._end = 0
            if not self._end:
                data = _line(self._columns) + data
            # What an earlier, refused write left behind goes first.
            file.truncate(self._end)
            file.seek(self._end)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._end += len(data)

    def _open(self, name: str, make: Callable[[], Sink]) -> None:
        def start() -> None:
            self._sinks[name] = make()

        self._guard(name, start)

    def _guard(self, name: str, action: Callable[[], None]) -> None:
        """These are conveniences: when one fails, it is switched off with a warning."""
        try:
            action()
        except Exception as error:  # noqa: BLE001
            reason = reason_of(error)
        else:
            return
        failed = self._sinks.pop(name, None)
        if failed is not None:
            with contextlib.suppress(Exception):
                failed.close(Outcome.INTERRUPTED)  # this record ends before its run does
        warnings.warn(f"{name} switched off: {reason}", stacklevel=users_level())


def reason_of(error: Exception) -> str:
    """Why something was not written; with the place, unless that is the disk's word."""
    if isinstance(error, OSError):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"


def read_progress(path: Path) -> list[dict[str, str]]:
    """The whole rows of a progress.csv in order, each update once; [] without a file.

    Raises ProgressFileError where a row that others follow is none, or the text is no text;
    OSError for what is no file.
    """
    try:
        with open_to_read(path) as file:
            data = file.read()
    except FileNotFoundError:
        return []
    # A killed process can leave half a line: only what a newline ends counts.
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    if not lines:
        return []
    names = _cells(path, 1, lines[0])
    if ITERATION not in names or TIMESTEPS not in names:
        raise _damaged(path, 1, f"it has no columns {ITERATION} and {TIMESTEPS}")
    rows: list[dict[str, str]] = []
    for number, line in enumerate(lines[1:], 2):
        cells = _cells(path, number, line)
        row = dict(zip(names, cells, strict=False))
        if not cells:
            continue  # a blank line
        if len(cells) != len(names) or not row[ITERATION].isdecimal():
            if number < len(lines):
                raise _damaged(path, number, f"{len(cells)} cells of {len(names)}, or no number")
        elif not rows or int(row[ITERATION]) > int(rows[-1][ITERATION]):
            rows.append(row)
    return rows


def _cells(path: Path, number: int, line: bytes) -> list[str]:
    try:
        return next(csv.reader([line.decode()]), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise _damaged(path, number, str(error)) from None


def _damaged(path: Path, number: int, reason: str) -> ProgressFileError:
    return ProgressFileError(
        f"{path} is damaged in line {number} ({reason}): take the line out, or move the file away; "
        "a run that is resumed then begins a new one"
    )


def _start_csv(path: Path, columns: Sequence[str], last_iteration: int) -> int:
    """Leave a file with the header and the rows that count; returns its size in bytes."""
    rows = [row for row in read_progress(path) if int(row[ITERATION]) <= last_iteration]
    lines = [_line(columns), *(_line(row.get(column) for column in columns) for row in rows)]
    data = b"".join(lines)
    write_atomically(path, data)
    return len(data)


def _line(values: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([_cell(value) for value in values])
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.9g}" if isinstance(value, float) else str(value)
