"""What run directories tell of their runs, seeds of one configuration put together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trpo_fast.base.errors import UserError
from trpo_fast.base.time_budget import COLUMNS as TIME_COLUMNS
from trpo_fast.runs.files import given_path
from trpo_fast.runs.logger import TIMESTEPS
from trpo_fast.runs.plotting import Series, column, read_rows, run_names

RETURN, EVALUATION = "rollout/ep_rew_mean", "eval/mean_reward"
POINTS = 400  # of a curve in a picture
VIDEOS = ("*.mp4", "*/*.mp4")
# Of no consequence to what is learnt, or another one for each run of a comparison.
APART = ("seed", "save_every", "keep_checkpoints")


class ReportError(UserError):
    """A run of which nothing can be reported; the text says why."""


@dataclass(frozen=True)
class Run:
    """One run as its directory has it.

    Attributes:
        name: What to call it: the directory's name, or its path where names are alike.
        path: The directory.
        environment: The id; "an environment" for an object or a function.
        options: Of the agent, as config.json has them.
        machine: What it was made on; empty in directories of older versions.
        rows: Of progress.csv.
        videos: Files of recorded episodes.
    """

    name: str
    path: Path
    environment: str
    options: Mapping[str, Any]
    machine: Mapping[str, Any]
    rows: Sequence[dict[str, str]]
    videos: Sequence[Path]

    def column(self, name: str) -> Series:
        """Steps and values of one column, rows without a value left out."""
        steps, values = column(self.rows, name)
        bound = self.max_kl
        if name == "train/region_used" and not len(values) and bound:  # of an older version
            steps, values = column(self.rows, "train/kl")
            values = values / bound
        return steps, values

    @property
    def max_kl(self) -> float | None:
        """The bound on the joint action's KL of an update; None where it is not known."""
        # As the updates had it: the option may be for each dimension of an action.
        spent = dict(zip(*column(self.rows, "train/region_used"), strict=True))
        kls = zip(*column(self.rows, "train/kl"), strict=True)
        bounds = [kl / spent[step] for step, kl in kls if spent.get(step, 0) > 0]
        if bounds:
            return float(max(bounds))  # of rollouts that had the whole of it
        found = self.options.get("max_kl")
        joint = self.options.get("max_kl_per", "action") == "action"
        return float(found) if joint and isinstance(found, int | float) else None

    def last(self, name: str) -> float | None:
        """The last value of a column."""
        values = self.column(name)[1]
        return float(values[-1]) if len(values) else None

    @property
    def seed(self) -> Any:
        """Of everything random."""
        return self.options.get("seed")

    @property
    def best(self) -> float | None:
        """The best evaluation."""
        scores = self.column(EVALUATION)[1]
        scores = scores[np.isfinite(scores)]
        return float(scores.max()) if len(scores) else None

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase."""
        phases = {name.removeprefix("time/"): self.column(name)[1] for name in TIME_COLUMNS}
        return {name: float(values.sum()) for name, values in phases.items()}

    @property
    def health(self) -> dict[str, float]:
        """Figures of its updates: shares, means and medians."""
        accepted = self.column("train/accepted")[1]
        figures = {
            "updates": float(len(accepted)),
            "accepted": _mean(accepted),
            "share of max_kl used": _median(self.column("train/region_used")[1]),
            "backtracks": _mean(self.column("train/backtracks")[1]),
            "CG iterations": _mean(self.column("train/cg_iters")[1]),
            "CG residual": _median(self.column("train/cg_residual")[1]),
            "explained variance": self.last("train/explained_variance"),
            "episodes dropped": self.last("rollout/dropped_episodes"),
        }
        return {name: value for name, value in figures.items() if value is not None}

    def refusals(self) -> dict[str, int]:
        """How often updates were not accepted, by their status."""
        found: dict[str, int] = {}
        for row in self.rows:
            status = row.get("train/status") or "accepted"
            if status != "accepted":
                found[status] = found.get(status, 0) + 1
        return found


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone."""

    name: str
    runs: Sequence[Run]

    @property
    def environment(self) -> str:
        """The id of the environment."""
        return self.runs[0].environment

    @property
    def extent(self) -> str:
        """How many there are: "3 seeds", or "3 runs, 2 seeds" where some have the same one."""
        runs, seeds = len(self.runs), len({str(run.seed) for run in self.runs})
        said = f"{seeds} seed{'s' * (seeds > 1)}"
        return said if runs == seeds else f"{runs} runs, {said}"

    def band(self, name: str) -> tuple[npt.NDArray[Any], ...]:
        """Steps, and of one column the interquartile mean, the least and the greatest of the runs.

        As far as all of them have come; linear between rows.
        """
        found = [run.column(name) for run in self.runs]
        found = [(steps, values) for steps, values in found if len(steps)]
        if not found:
            none: npt.NDArray[Any] = np.empty(0)
            return none, none, none, none
        first = max(float(steps[0]) for steps, _ in found)
        last = max(first, min(float(steps[-1]) for steps, _ in found))
        count = min(POINTS, max(len(steps) for steps, _ in found))
        grid = np.linspace(first, last, count)
        each = np.stack([np.interp(grid, steps, values) for steps, values in found])
        middle = np.array([interquartile_mean(values) for values in each.T])
        return grid, middle, each.min(axis=0), each.max(axis=0)


def interquartile_mean(values: Sequence[float] | npt.NDArray[Any]) -> float:
    """The mean without the lowest and the highest quarter (Agarwal et al. 2021).

    A quarter that is no whole number of values counts the last of them in part, so that four values
    are two and five are three of weight 1, 3/4 on either side.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    edges = np.arange(len(ordered) + 1) / len(ordered)
    weights = np.diff(np.clip(edges, 0.25, 0.75))
    return float((ordered * weights).sum() / weights.sum())


def read_runs(directories: Sequence[str | Path]) -> list[Run]:
    """The runs in these directories.

    Raises:
        ReportError: a directory holds no run, or a config.json that is none.
        PlotError: rows that cannot be read.
    """
    paths = [given_path(directory, "a run directory") for directory in directories]
    names = run_names([str(path) for path in paths])
    return [_read(path, name) for path, name in zip(paths, names, strict=True)]


def _read(path: Path, name: str) -> Run:
    rows = read_rows(path / "progress.csv")
    if not rows:
        raise ReportError(f"{path} has no progress.csv with an update in it: nothing to report")
    document = _config(path / "config.json")
    options, machine = document.get("options"), document.get("machine")
    return Run(
        name,
        path,
        str(document.get("environment") or "an environment"),
        options if isinstance(options, dict) else {},
        machine if isinstance(machine, dict) else {},
        rows,
        sorted({video for pattern in VIDEOS for video in path.glob(pattern)}),
    )


def _config(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ReportError(f"cannot read {file}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{file} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise ReportError(f"{file} is damaged: it holds no options")
    return found


def grouped(runs: Sequence[Run]) -> list[Group]:
    """The runs by environment and options, seeds together, in the order of their first."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        options = {name: value for name, value in run.options.items() if name not in APART}
        key = json.dumps([run.environment, options], sort_keys=True, default=str)
        found.setdefault(key if run.options else str(run.path), []).append(run)
    groups = list(found.values())
    return [Group(_name(members, groups), members) for members in groups]


def _name(members: Sequence[Run], groups: Sequence[Sequence[Run]]) -> str:
    """What tells a group from the others of its environment."""
    first = members[0]
    others = [
        other[0]
        for other in groups
        if other is not members and other[0].environment == first.environment
    ]
    if not others:
        return first.environment if len(members) > 1 else first.name
    names = sorted(
        name
        for name in first.options
        if name not in APART
        and any(other.options.get(name) != first.options[name] for other in others)
    )
    if not names or len(names) > 3:
        return first.name
    return ", ".join(f"{name}={first.options[name]}" for name in names)


def thinned(series: Series, points: int = POINTS) -> Series:
    """At most so many points: means of neighbours."""
    steps, values = series
    if len(steps) <= points:
        return series
    edges = np.linspace(0, len(steps), points + 1).astype(int)[:-1]
    counts = np.diff(np.append(edges, len(steps)))
    return np.add.reduceat(steps, edges) / counts, np.add.reduceat(values, edges) / counts


def final_return(run: Run) -> float | None:
    """The mean return of the last 100 episodes at the run's end."""
    return run.last(RETURN)


def steps_of(run: Run) -> int:
    """How many steps it has learnt from."""
    return int(float(run.rows[-1][TIMESTEPS]))


def _mean(values: npt.NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def _median(values: npt.NDArray[Any]) -> float | None:
    return float(np.median(values)) if len(values) else None
