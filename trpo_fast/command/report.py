"""`trpo-fast report`."""

from __future__ import annotations

import argparse
from typing import Any

from trpo_fast.base.output import say
from trpo_fast.command.output import complain
from trpo_fast.runs.files import DISK_TROUBLE
from trpo_fast.runs.report import write_picture, write_report


def add_report(commands: Any) -> None:
    """Add `report` to the commands of a parser."""
    command = commands.add_parser(
        "report",
        help="one page about a run, or several side by side",
        description="Write one self-contained HTML page: curves with bands over seeds, "
        "evaluations, the trust region, line search and CG, where the time went, configuration "
        "and machine. Runs that differ in their seeds alone are put together.",
        allow_abbrev=False,
    )
    command.add_argument("run_dirs", metavar="RUN_DIR", nargs="+")
    command.add_argument("--out", metavar="FILE.html", help="the page")
    command.add_argument("--png", metavar="FILE.png", help="its curves as one picture")
    command.set_defaults(run=_report, parser=command)


def _report(options: argparse.Namespace) -> int:
    if options.out is None and options.png is None:
        options.parser.error("name --out FILE.html, --png FILE.png, or both")
    for name, path, write in (
        ("page", options.out, write_report),
        ("picture", options.png, write_picture),
    ):
        if path is None:
            continue
        try:
            out = write(options.run_dirs, path)
        except OSError as error:
            complain(f"error: cannot write {path}: {error.strerror or error}")
            return 1 if error.errno in DISK_TROUBLE else 2
        say(f"{name:<10} {out}")
    return 0
