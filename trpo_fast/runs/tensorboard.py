"""TensorBoard event files, one event a row.

torch.utils.tensorboard writes from a thread of its own, whose errors nobody can catch, and spends
one event on every number. The file format is TensorBoard's; the files are read by it alone.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trpo_fast.runs.tracking import Outcome

_count = itertools.count()


class EventFile:
    """A new event file in `directory`.

    `purge_step` makes TensorBoard forget what earlier files of the directory have from that step
    on. Raises OSError when the disk refuses, ValueError for a path that cannot be encoded.
    """

    def __init__(self, directory: Path, purge_step: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        # TensorBoard reads the files of one second in the order of their names.
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_count):06d}"
        # "x": whatever somebody put at that name beforehand is not written to.
        self._writer: Any = RecordWriter((directory / f"events.out.tfevents.{name}").open("xb"))
        self._put(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._put(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add one number for each tag at `step`."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._put(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def close(self, outcome: Outcome) -> None:  # noqa: ARG002 (its files have no place for it)
        """Close the file."""
        self._writer.close()

    def _put(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._writer.flush()
