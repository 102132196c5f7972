"""Learning curves as a picture, from the progress.csv of one run or several."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trpo_fast.base.errors import UserError
from trpo_fast.runs.files import given_path, write_atomically
from trpo_fast.runs.logger import TIMESTEPS, ProgressFileError, read_progress

Series = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

# Okabe & Ito 2008: told apart by readers with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#555555"


class PlotError(UserError):
    """There is nothing to draw, or no such kind of picture; the text says what to do."""


def plot_runs(directories: Sequence[str | Path], out: str | Path, title: str | None = None) -> Path:
    """Draw return against steps for each run directory into one picture.

    A single run also gets its evaluations and a second panel with the KL of each update. Raises
    PlotError for a directory without finished episodes or whose rows cannot be read, OSError when
    the picture cannot be written.
    """
    paths = {str(d): given_path(d, "a run directory") for d in directories}
    out = given_path(out, "the picture")
    runs = {name: read_rows(path / "progress.csv") for name, path in paths.items()}
    for name, rows in runs.items():
        if not column(rows, "rollout/ep_rew_mean")[0].size:
            raise PlotError(f"{name} has no progress.csv with a finished episode: nothing to plot")
    names = run_names(list(runs))
    figure, axes = _panels(2 if len(runs) == 1 else 1)
    labels = [as_label(name) for name in names] if len(runs) > 1 else ["training"]
    for colour, label, rows in zip(colours(len(runs)), labels, runs.values(), strict=True):
        curve(axes[0], column(rows, "rollout/ep_rew_mean"), color=colour, lw=1.8, label=label)
        scores = column(rows, "eval/mean_reward")
        if scores[0].size:
            dots = "evaluation" if len(runs) == 1 else f"{label}, evaluation"
            axes[0].plot(*scores, "o", color=colour, markersize=4, label=dots)
    if len(runs) == 1:
        curve(axes[1], column(next(iter(runs.values())), "train/kl"), color=GREY, lw=1.0)
        axes[1].set_ylabel("KL of the update")
        axes[1].set_ylim(bottom=0)
    axes[0].set_title(as_label(title or (names[0] if len(names) == 1 else "Learning curves")))
    axes[0].set_ylabel("mean return of 100 episodes")
    axes[-1].set_xlabel("environment steps")
    if len(axes[0].lines) > 1:
        axes[0].legend(frameon=False, fontsize=8)
    return save_figure(figure, out)


def curve(axis: Any, series: Series, **style: Any) -> None:
    """A line, with a dot wherever a point has no neighbour to draw a line to."""
    steps, values = series
    known = np.concatenate([[False], np.isfinite(values), [False]])
    alone = np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])
    # matplotlib takes an empty list of markers for all of them.
    dots = {"marker": "o", "markersize": 4, "markevery": alone.tolist()} if len(alone) else {}
    axis.plot(steps, values, **style, **dots)


def read_rows(file: Path) -> list[dict[str, str]]:
    """The rows of a progress.csv; PlotError where they cannot be read."""
    try:
        return read_progress(file)
    except ProgressFileError as error:
        raise PlotError(str(error)) from None
    except OSError as error:
        raise PlotError(f"cannot read {file}: {error.strerror or error}") from None


def column(rows: Sequence[dict[str, str]], name: str) -> Series:
    """Steps and values of one column, rows without a value left out.

    Raises PlotError for a cell that is not a number.
    """
    pairs = [(row[TIMESTEPS], row[name]) for row in rows if row.get(name) not in (None, "")]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    try:
        return np.array(steps, np.float64), np.array(values, np.float64)
    except ValueError as error:
        raise PlotError(f"the column {name} of a progress.csv is damaged: {error}") from None


def style(axis: Any) -> None:
    """The one look of every picture: light grid, no box, steps as 100k."""
    from matplotlib.ticker import EngFormatter

    axis.grid(color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def new_figure(
    rows: int, columns: int = 1, *, size: tuple[float, float], **layout: Any
) -> tuple[Any, list[Any]]:
    """A figure of `size` inches and its styled axes, row by row."""
    # Not pyplot: no global state, no display, nothing to close.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False, **layout).ravel())
    for axis in axes:
        style(axis)
    return figure, axes


def _panels(count: int) -> tuple[Any, list[Any]]:
    ratios = [3, 1][:count]
    return new_figure(count, size=(7.0, 2.2 + 1.4 * count), sharex=True, height_ratios=ratios)


def save_figure(figure: Any, out: Path) -> Path:
    """Write a picture, whole or not at all, making its directory; returns its path.

    Raises PlotError for a suffix that matplotlib cannot write, OSError.
    """
    kinds = figure.canvas.get_supported_filetypes()
    kind = out.suffix.lstrip(".").lower()
    if kind not in kinds:
        raise PlotError(f"{out}: the name of a picture ends in one of .{', .'.join(sorted(kinds))}")
    data = io.BytesIO()
    figure.savefig(data, dpi=150, format=kind)
    write_atomically(out, data.getvalue())
    return out


def run_names(paths: Sequence[str]) -> list[str]:
    """Directory names, or whole paths where those alone would not tell the runs apart."""
    # Not Path.resolve, which raises where links form a loop.
    short = [_printable(Path(os.path.realpath(path)).name) for path in paths]
    return short if len(set(short)) == len(short) else [_printable(path) for path in paths]


def _printable(name: str) -> str:
    """A file name that a font can draw: bytes outside the locale reach Python as surrogates."""
    plain = name.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else "?" for c in plain)


def as_label(text: str) -> str:
    """Text as matplotlib writes it: between two dollars it would see formulas."""
    return _printable(text).replace("$", r"\$")


def colours(count: int) -> list[str]:
    """So many, alike only beyond seven."""
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
