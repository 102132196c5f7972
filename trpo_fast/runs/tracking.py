"""The rows of a run in an experiment tracker, beside the files of its directory.

Each tracker's own environment variables say where to (WANDB_PROJECT, WANDB_MODE,
MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME). What names the record there is kept in the run
directory, so that a resumed run goes on in it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from trpo_fast.base.errors import UserError
from trpo_fast.base.install import install_line
from trpo_fast.runs.files import open_to_read, write_atomically

FILE = "tracking.json"
PROJECT = "trpo_fast"
_STEP = "time/total_timesteps"


class TrackingError(UserError):
    """A tracker that is not installed, or a run without a directory; the text says what to do."""


class Outcome(Enum):
    """How a run came to its end."""

    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"

    @classmethod
    def of(cls, error: BaseException | None) -> Outcome:
        """That of a run which ended with an error, or without one."""
        if error is None:
            return cls.FINISHED
        return cls.FAILED if isinstance(error, Exception) else cls.INTERRUPTED


class Sink(Protocol):
    """What takes the rows of a run."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the figures of an update, which ended at ``step``."""

    def close(self, outcome: Outcome) -> None:
        """Nothing more comes: the run ended so."""


class Wandb:
    """A run of Weights & Biases (https://docs.wandb.ai).

    Args:
        directory: of the run; `wandb/` is made in it.
        config: what config.json holds.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        import wandb

        settings = wandb.Settings(console="off", disable_git=True)
        self._run: Any = wandb.init(
            project=None if os.environ.get("WANDB_PROJECT") else PROJECT,
            dir=str(directory),
            name=os.environ.get("WANDB_NAME") or directory.name,
            config=dict(config),
            id=_known(directory, "wandb"),
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        self._run.define_metric("*", step_metric=_STEP)
        _remember(directory, "wandb", self._run.id)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the figures of an update."""
        self._run.log({_STEP: step, **numbers})

    def close(self, outcome: Outcome) -> None:
        """Send what is left, and how the run ended: there, all but 0 is a failure."""
        self._run.finish(exit_code=_WANDB_CODE[outcome])


class Mlflow:
    """A run of MLflow (https://mlflow.org/docs); the arguments are those of `Wandb`."""

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient

        self._client: Any = MlflowClient()
        found = _known(directory, "mlflow")
        if found is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
            known = self._client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else self._client.create_experiment(name)
            found = self._client.create_run(experiment, run_name=directory.name).info.run_id
            for name, value in _flat(config).items():
                self._client.log_param(found, name, value)
            _remember(directory, "mlflow", found)
        else:
            self._client.set_terminated(found, status="RUNNING")
        self._id = found

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the figures of an update."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        figures = [Metric(k, v, now, step) for k, v in numbers.items() if math.isfinite(v)]
        self._client.log_batch(self._id, metrics=figures)

    def close(self, outcome: Outcome) -> None:
        """The run is over."""
        self._client.set_terminated(self._id, status=_MLFLOW_STATUS[outcome])


# 255 is what wandb itself gives for Ctrl-C.
_WANDB_CODE = {Outcome.FINISHED: 0, Outcome.INTERRUPTED: 255, Outcome.FAILED: 1}
_MLFLOW_STATUS = {
    Outcome.FINISHED: "FINISHED",
    Outcome.INTERRUPTED: "KILLED",
    Outcome.FAILED: "FAILED",
}
_TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Sink]] = {
    "wandb": Wandb,
    "mlflow": Mlflow,
}
TRACKERS = ("none", *_TRACKERS)


def require(tracker: str, directory: Path | None) -> None:
    """Raise TrackingError where a tracker (of ``TRACKERS``) could not be used."""
    if tracker == "none":
        return
    if directory is None:
        raise TrackingError(
            f"track={tracker!r} sends the rows that a run directory gets, and there is none: give "
            "run_dir="
        )
    if find_spec(tracker) is None:
        line = install_line("track") if tracker == "wandb" else f"pip install {tracker}"
        raise TrackingError(
            f"track={tracker!r} needs a package that is not installed. Install it with: {line}"
        )


def opened(tracker: str, directory: Path, config: Mapping[str, Any]) -> Sink:
    """The tracker of that name, for a run and its configuration."""
    return _TRACKERS[tracker](directory, config)


def _names(directory: Path) -> dict[str, str]:
    """What names the run at each tracker; nothing for a new one, or where the file is damaged."""
    try:
        with open_to_read(directory / FILE) as file:
            found = json.loads(file.read())
    except (OSError, ValueError, RecursionError):
        return {}
    found = found if isinstance(found, dict) else {}
    return {tracker: name for tracker, name in found.items() if isinstance(name, str)}


def _known(directory: Path, tracker: str) -> str | None:
    return _names(directory).get(tracker)


def _remember(directory: Path, tracker: str, name: str) -> None:
    names = _names(directory) | {tracker: name}
    write_atomically(directory / FILE, (json.dumps(names) + "\n").encode())


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The values of nested tables by their path, as MLflow wants them."""
    found: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = str(value)[:500]
    return found
