"""The command line: `trpo-fast train | eval | plot | report | tune | doctor`.

Exit codes: 0; 1 when something could not be finished (a faulty environment, files that could not
be written); 2 for a mistake in the command; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence

import torch.distributed as dist

from trpo_fast._version import __version__
from trpo_fast.base.errors import EnvironmentFault, RankError, UserError
from trpo_fast.command.doctor import add_doctor
from trpo_fast.command.last_resort import Told, tell
from trpo_fast.command.options import parse
from trpo_fast.command.output import close_output, show_warning
from trpo_fast.command.report import add_report
from trpo_fast.command.results import add_eval, add_plot
from trpo_fast.command.train import add_train
from trpo_fast.command.tune import add_tune
from trpo_fast.runs.interrupts import INTERRUPTED, interrupt_guard


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = parse(build_parser(), arguments)
    try:
        with interrupt_guard(command_line=True), warnings.catch_warnings():
            warnings.showwarning = show_warning
            code: int = options.run(options)
    except Told as told:
        code = told.code
    except (KeyboardInterrupt, EnvironmentFault, RankError, UserError) as error:
        code = tell(error)
    if code == INTERRUPTED and arguments is None:
        # All is saved and closed; taking the interpreter apart can take a second.
        os._exit(code)
    close_output()
    if code and arguments is None and dist.is_available() and dist.is_initialized():
        os._exit(code)  # the interpreter would wait for what other ranks have not sent
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser; the options of `train` come from the agent's configuration."""
    parser = argparse.ArgumentParser(
        prog="trpo-fast", description="Train and inspect TRPO agents.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"trpo-fast {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_train(commands)
    add_eval(commands)
    add_plot(commands)
    add_report(commands)
    add_tune(commands)
    add_doctor(commands)
    return parser
