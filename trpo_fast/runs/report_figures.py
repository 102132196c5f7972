"""The pictures of a report: curves with bands over seeds, the health of updates, the time."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trpo_fast.runs.plotting import COLOURS, GREY, as_label, colours, curve, new_figure
from trpo_fast.runs.report_data import (
    EVALUATION,
    RETURN,
    Group,
    thinned,
)

Draw = Callable[[Any, Sequence[Group]], None]
WINDOW = 50  # updates of a running mean


def returns(axis: Any, groups: Sequence[Group]) -> None:
    """Return against steps: the interquartile mean of the seeds, and all between the extremes."""
    for colour, group in zip(colours(len(groups)), groups, strict=True):
        extent = f" ({group.extent})" if len(group.runs) > 1 else ""
        label = as_label(group.name + extent)
        if len(group.runs) == 1:
            curve(axis, thinned(group.runs[0].column(RETURN)), color=colour, lw=1.8, label=label)
        else:
            steps, middle, low, high = group.band(RETURN)
            axis.plot(steps, middle, color=colour, lw=1.8, label=label)
            axis.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)
        _evaluations(axis, group, colour, "evaluation" if group is groups[0] else None)
    axis.set_ylabel("mean return of 100 episodes")
    axis.set_xlabel("environment steps")
    if len(groups) > 1 or len(axis.lines) > 1 or axis.collections:
        axis.legend(frameon=False, fontsize=8)


def _evaluations(axis: Any, group: Group, colour: str, label: str | None) -> None:
    steps, middle, low, high = group.band(EVALUATION)
    if not len(steps):
        return
    if len(group.runs) == 1:
        spread = np.interp(steps, *group.runs[0].column("eval/std_reward"))
        low, high = middle - spread, middle + spread
    # Where lines of one point have nothing between their ends.
    spread = np.array([middle - low, high - middle]).clip(min=0)
    axis.errorbar(
        steps,
        middle,
        spread,
        fmt="o",
        color=colour,
        markersize=4,
        elinewidth=0.8,
        alpha=0.8,
        label=label,
    )


def divergence(axis: Any, groups: Sequence[Group]) -> None:
    """The KL of each update, and the bound on it."""
    _lines(axis, groups, "train/kl", "KL of the update")
    found = (group.runs[0].max_kl for group in groups)
    bounds = {float(f"{bound:.3g}") for bound in found if bound is not None}
    for bound in sorted(bounds):
        axis.axhline(bound, color=GREY, lw=1.0, ls="--", label=f"bound {bound:.3g}")
    if bounds or len(groups) > 1:
        axis.legend(frameon=False, fontsize=7)


def region_used(axis: Any, groups: Sequence[Group]) -> None:
    """The share of max_kl that accepted updates spent."""
    _lines(axis, groups, "train/region_used", "share of max_kl used")
    axis.axhline(1.0, color=GREY, lw=1.0, ls="--")


def line_search(axis: Any, groups: Sequence[Group]) -> None:
    """The share of updates that the line search accepted, as a running mean."""
    _lines(axis, groups, "train/accepted", "accepted updates", running=True)
    axis.set_ylim(-0.02, 1.05)


def backtracks(axis: Any, groups: Sequence[Group]) -> None:
    """Candidates tried after the first."""
    _lines(axis, groups, "train/backtracks", "backtracks", running=True)


def iterations(axis: Any, groups: Sequence[Group]) -> None:
    """Conjugate-gradient iterations."""
    _lines(axis, groups, "train/cg_iters", "CG iterations", running=True)


def residual(axis: Any, groups: Sequence[Group]) -> None:
    """The relative residual of conjugate gradients."""
    _lines(axis, groups, "train/cg_residual", "CG residual", running=True)
    axis.set_ylim(bottom=0)


def explained(axis: Any, groups: Sequence[Group]) -> None:
    """What of the returns' variance the critic explains."""
    _lines(axis, groups, "train/explained_variance", "explained variance", running=True)
    axis.set_ylim(-1.05, 1.05)


def entropy(axis: Any, groups: Sequence[Group]) -> None:
    """The policy's entropy."""
    _lines(axis, groups, "train/entropy", "entropy")


HEALTH: tuple[Draw, ...] = (
    *(divergence, region_used, line_search, backtracks),
    *(iterations, residual, explained, entropy),
)


def _lines(
    axis: Any, groups: Sequence[Group], name: str, label: str, *, running: bool = False
) -> None:
    for colour, group in zip(colours(len(groups)), groups, strict=True):
        for number, run in enumerate(group.runs):
            steps, values = run.column(name)
            if running and len(values):
                values = _running_mean(values)
            shown = as_label(group.name) if len(groups) > 1 and not number else None
            curve(axis, thinned((steps, values)), color=colour, lw=1.0, alpha=0.8, label=shown)
    axis.set_ylabel(label)
    axis.set_xlabel("environment steps")


def _running_mean(values: Any) -> Any:
    sums = np.cumsum(np.insert(np.nan_to_num(values), 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - WINDOW)
    return (sums[ends] - sums[starts]) / (ends - starts)


def time_budget(axis: Any, groups: Sequence[Group]) -> None:
    """Shares of each run's time by phase."""
    runs = [run for group in groups for run in group.runs]
    lefts = np.zeros(len(runs))
    totals = np.array([sum(run.seconds.values()) or 1.0 for run in runs])
    palette = [*COLOURS[:5], "#BBBBBB"]
    for colour, phase in zip(palette, runs[0].seconds, strict=True):
        shares = np.array([run.seconds[phase] for run in runs]) / totals
        axis.barh(range(len(runs)), shares, left=lefts, color=colour, height=0.6, label=phase)
        lefts += shares
    axis.set_yticks(range(len(runs)), [as_label(run.name) for run in runs])
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("share of the training time")
    axis.legend(frameon=False, fontsize=8, ncols=6, loc="lower left", bbox_to_anchor=(0, 1))


def figure_of(draws: Sequence[tuple[Draw, Sequence[Group]]], columns: int, height: float) -> Any:
    """One figure with a panel for each drawing."""
    rows = -(-len(draws) // columns)
    figure, axes = new_figure(rows, columns, size=(9.0, height * rows))
    for axis, (draw, groups) in zip(axes, draws, strict=False):
        draw(axis, groups)
        axis.xaxis.label.set_size(9)
        axis.yaxis.label.set_size(9)
        if draw is returns:
            axis.set_title(as_label(groups[0].environment), fontsize=10)
    for axis in axes[len(draws) :]:
        axis.set_visible(False)
    return figure


def as_svg(figure: Any, name: str) -> str:
    """The figure as an element of an HTML page, its ids apart from those of others."""
    import matplotlib as mpl

    data = io.StringIO()
    # Text as text: a page without it would be large, and cannot be searched.
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
    text = data.getvalue()
    return text[text.index("<svg") :]


def budget_height(runs: int) -> float:
    """Inches of the time budget's picture."""
    return 1.2 + 0.32 * runs


def environments(groups: Sequence[Group]) -> list[list[Group]]:
    """The groups by environment."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.environment, []).append(group)
    return list(found.values())
