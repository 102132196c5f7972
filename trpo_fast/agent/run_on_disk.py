"""An agent's run as its directory has it: whose past lies there, and what `learn` adds to it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trpo_fast.agent import state as agent_state
from trpo_fast.agent.learner import COLUMNS
from trpo_fast.agent.shared_training import RANK_COLUMNS
from trpo_fast.agent.state import Training
from trpo_fast.runs import tracking
from trpo_fast.runs.directory import RunDirectory
from trpo_fast.runs.recorder import RunRecorder

State = Mapping[str, Any]


class RunOnDisk:
    """The run directory of an agent, if it has one; without one, nothing is written.

    Args:
        directory: where to.

    Attributes:
        directory: likewise.
        recorder: what writes there, from the first `learn` on; None before and without a directory.
    """

    def __init__(self, directory: RunDirectory | None) -> None:
        self.directory = directory
        self.recorder: RunRecorder | None = None
        self._own: set[Path] = set()  # checkpoints/ of the run that is this agent's past

    def goes_on(self, *checkpoints: Path) -> None:
        """The run with one of these for its checkpoints is this agent's own, and is added to."""
        self._own = {_identity(place) for place in checkpoints}

    @contextlib.contextmanager
    def recording(self, training: Training, boundary: State) -> Iterator[RunRecorder | None]:
        """A time in which the run is recorded, from ``boundary`` on.

        Raises:
            RunDirectoryError: the directory cannot be written to, or holds another run.
            TrackingError: the tracker is not installed, or there is no directory.
            ConfigError: no file could tell how to make the environment again.
        """
        self.recorder = recorder = self._open(training, boundary)
        try:
            yield recorder
        except BaseException as error:
            if recorder is not None:
                recorder.close(error)
            raise
        if recorder is not None:
            recorder.close()

    def _open(self, training: Training, boundary: State) -> RunRecorder | None:
        directory, config = self.directory, training.config
        if training.shared is None or training.shared.writes:
            tracking.require(config.track, None if directory is None else directory.path)
        if directory is None:
            return None
        agent_state.require_portable(training)
        place = _identity(directory.checkpoints)
        lock = directory.claim(resume=place in self._own)
        self._own = {place}
        done = training.progress
        return RunRecorder(
            directory,
            lock,
            agent_state.config_document(training),
            boundary,
            columns=COLUMNS if training.shared is None else (*COLUMNS, *RANK_COLUMNS),
            save_every=config.save_every,
            keep=config.keep_checkpoints,
            tracker=config.track,
            last_iteration=done.num_updates,
            last_timesteps=done.num_timesteps,
        )

    def save_after(self, error: BaseException, boundary: State, steps: int) -> None:
        """Save the last whole update when training stops half way, and say where."""
        path = None if self.recorder is None else self.recorder.save(boundary, steps)
        if path is not None:
            error.add_note(f"The last whole update is saved in {path}")


def _identity(directory: Path) -> Path:
    """The directory by its one name without links; not Path.resolve, which raises for a loop."""
    return Path(os.path.realpath(directory))
