"""One page, or one picture, that tells the story of a run or compares several."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from trpo_fast._version import __version__
from trpo_fast.runs import report_figures as figures
from trpo_fast.runs.files import given_path, write_atomically
from trpo_fast.runs.plotting import save_figure
from trpo_fast.runs.report_data import (
    APART,
    Group,
    ReportError,
    Run,
    final_return,
    grouped,
    interquartile_mean,
    read_runs,
    steps_of,
)

VIDEO_BYTES = 16 << 20  # of all videos in one page; others are named
PAGE = Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 0.4rem; }
p.note { color: #666; font-size: 0.85rem; margin: 0.2rem 0 0.8rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; margin-bottom: 0.8rem; }
th, td { text-align: left;
  padding: 0.25rem 0.9rem 0.25rem 0; border-bottom: 1px solid #e6e6e6; white-space: nowrap; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; font-family: system-ui, sans-serif; } video { max-width: 100%; }
summary { cursor: pointer; }
</style></head><body>
<h1>$title</h1><p class="note">$subtitle</p>
$body
</body></html>
"""
)


def write_report(directories: Sequence[str | Path], out: str | Path) -> Path:
    """Write one self-contained HTML page about the runs in these directories; its path.

    Raises ReportError or PlotError for a directory whose run cannot be read, OSError when the page
    cannot be written.
    """
    out = given_path(out, "the page (--out)")
    if out.suffix.lower() not in (".html", ".htm"):
        raise ReportError(f"{out}: the name of a page ends in .html")
    write_atomically(out, page(read_runs(directories)).encode("utf-8", "replace"))
    return out


def write_picture(directories: Sequence[str | Path], out: str | Path) -> Path:
    """Draw the report's curves into one picture; its path. Raises as `write_report` does."""
    groups = grouped(read_runs(directories))
    draws: list[tuple[figures.Draw, Sequence[Group]]] = [
        (figures.returns, same) for same in figures.environments(groups)
    ]
    draws += [(draw, groups) for draw in figures.HEALTH]
    return save_figure(figures.figure_of(draws, 3, 2.4), given_path(out, "the picture (--png)"))


def page(runs: Sequence[Run]) -> str:
    """The page as text."""
    groups = grouped(runs)
    names = sorted({run.environment for run in runs})
    title = f"{', '.join(names)}: {_count(runs, 'run')}"
    body = "\n".join(
        (
            _summary(runs),
            _seeds(groups),
            *_curves(groups),
            _health(runs, groups),
            _time(runs, groups),
            _videos(runs),
            _configuration(groups),
            _machines(runs),
        )
    )
    subtitle = f"trpo_fast {__version__}. Curves are of the progress.csv of each run."
    return PAGE.substitute(title=_text(title), subtitle=_text(subtitle), body=body)


def _summary(runs: Sequence[Run]) -> str:
    rows = [
        (
            run.name,
            run.environment,
            run.seed,
            steps_of(run),
            f"{run.last('time/time_elapsed') or 0:.0f} s",
            _number(run.last("time/fps")),
            _number(final_return(run)),
            _number(run.best),
        )
        for run in runs
    ]
    head = ("run", "environment", "seed", "steps", "time", "steps/s", "final return", "best score")
    note = "The final return is the mean of the last 100 episodes, the best score an evaluation's."
    return _section("Runs", _note(note) + _table(head, rows))


def _seeds(groups: Sequence[Group]) -> str:
    rows = []
    for group in groups:
        finals = [found for run in group.runs if (found := final_return(run)) is not None]
        if len(finals) > 1:
            mean = sum(finals) / len(finals)
            figures_ = (mean, interquartile_mean(finals), min(finals), max(finals))
            rows.append((group.name, len(finals), *map(_number, figures_)))
    if not rows:
        return ""
    head = ("configuration", "runs", "mean", "interquartile mean", "least", "greatest")
    return _section("Final return over seeds", _table(head, rows))


def _curves(groups: Sequence[Group]) -> Iterable[str]:
    for number, same in enumerate(figures.environments(groups)):
        figure = figures.figure_of([(figures.returns, same)], 1, 4.0)
        note = (
            "Lines are interquartile means over seeds, bands reach from the least to the greatest; "
            "dots are evaluations, with their deviation."
        )
        picture = figures.as_svg(figure, f"return-{number}")
        yield _section(f"Return: {same[0].environment}", _note(note) + picture)


def _health(runs: Sequence[Run], groups: Sequence[Group]) -> str:
    figure = figures.figure_of([(draw, groups) for draw in figures.HEALTH], 2, 2.2)
    names = list(dict.fromkeys(name for run in runs for name in run.health))
    rows = [
        (run.name, *(_health_figure(name, found.get(name)) for name in names))
        for run in runs
        for found in [run.health]
    ]
    refused = [
        f"{run.name}: {', '.join(f'{status} {times}' for status, times in found.items())}"
        for run in runs
        if (found := run.refusals())
    ]
    said = f"Updates that were not accepted: {'; '.join(refused)}." if refused else ""
    note = (
        f"Accepted updates, backtracks, CG figures and explained variance are running means of "
        f"{figures.WINDOW} updates. {said}"
    )
    table = _table(("run", *names), rows)
    return _section(
        "Trust region, line search, conjugate gradients",
        _note(note) + table + figures.as_svg(figure, "health"),
    )


def _time(runs: Sequence[Run], groups: Sequence[Group]) -> str:
    if not any(sum(run.seconds.values()) for run in runs):
        return ""
    height = figures.budget_height(len(runs))
    figure = figures.figure_of([(figures.time_budget, groups)], 1, height)
    note = "env is the environments' own steps, which no optimisation of the update can save."
    return _section("Where the time went", _note(note) + figures.as_svg(figure, "time"))


def _videos(runs: Sequence[Run]) -> str:
    parts, left = [], VIDEO_BYTES
    for run in runs:
        for video in run.videos:
            label = _text(f"{run.name}: {video.relative_to(run.path)}")
            try:
                data = video.read_bytes() if video.stat().st_size <= left else b""
            except OSError:
                continue
            left -= len(data)
            if data:
                encoded = base64.b64encode(data).decode()
                player = f'<video controls src="data:video/mp4;base64,{encoded}"></video>'
                parts.append(f"<p>{label}</p>{player}")
            else:
                parts.append(f"<p>{label} (too large for this page)</p>")
    return _section("Videos", "".join(parts)) if parts else ""


def _configuration(groups: Sequence[Group]) -> str:
    names = list(dict.fromkeys(name for group in groups for name in group.runs[0].options))
    if not names:
        return ""
    given = [group.runs[0].options for group in groups]
    differing = [
        name
        for name in names
        if name not in APART and len({_json(options.get(name)) for options in given}) > 1
    ]

    def rows(which: Sequence[str]) -> list[tuple[str, ...]]:
        return [(name, *(_json(options.get(name)) for options in given)) for name in which]

    head = ("option", *(group.name for group in groups))
    some = _table(head, rows(differing)) if differing else ""
    every = f"<details><summary>All options</summary>{_table(head, rows(names))}</details>"
    seeds = "; ".join(
        f"{group.name}: {', '.join(str(run.seed) for run in group.runs)}" for group in groups
    )
    return _section("Configuration", _note(f"Seeds: {seeds}.") + some + every)


def _machines(runs: Sequence[Run]) -> str:
    found = [run for run in runs if run.machine]
    names = list(dict.fromkeys(name for run in found for name in run.machine))
    if not names:
        return ""
    alike = len({_json(run.machine) for run in found}) == 1
    shown = found[:1] if alike else found
    head = ("", *("all runs" if alike else run.name for run in shown))
    rows = [(name, *(str(run.machine.get(name, "")) for run in shown)) for name in names]
    return _section("Machine", _table(head, rows))


def _section(title: str, content: str) -> str:
    return f"<h2>{_text(title)}</h2>{content}"


def _note(text: str) -> str:
    return f'<p class="note">{_text(text)}</p>'


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    names = "".join(f"<th>{_text(name)}</th>" for name in head)
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{names}</tr>{lines}</table></div>'


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    number = text.rstrip("%").translate(str.maketrans("", "", ".-+e")).isdecimal()
    return f"<td{' class=n' if number else ''}>{_text(text)}</td>"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    whole = math.isfinite(value) and (abs(value) >= 1000 or value == int(value))
    return f"{value:.0f}" if whole else f"{value:.3g}"


def _health_figure(name: str, value: float | None) -> str:
    shares = ("accepted", "share of max_kl used")
    return f"{value:.0%}" if name in shares and value is not None else _number(value)


def _json(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return json.dumps(value, sort_keys=True, default=str)
    return "" if value is None else str(value)


def _text(text: str) -> str:
    """Text of a page: what is no character there is shown as a question mark."""
    plain = text.encode("utf-8", "replace").decode()
    return html.escape("".join(c if c.isprintable() else "?" for c in plain))


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"
