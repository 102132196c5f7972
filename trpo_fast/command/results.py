"""`trpo-fast eval` and `trpo-fast plot`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trpo_fast.agent.agent import TRPO
from trpo_fast.base.output import say
from trpo_fast.command.last_resort import LastResort
from trpo_fast.command.options import (
    check_native_code,
    look_beside_the_user,
    non_negative,
    positive,
)
from trpo_fast.command.output import complain
from trpo_fast.environments import env_pool, mujoco_warnings
from trpo_fast.runs.checkpoint import load_checkpoint
from trpo_fast.runs.directory import RunDirectory, RunDirectoryError
from trpo_fast.runs.files import DISK_TROUBLE, given_path, refusal
from trpo_fast.runs.plotting import plot_runs


def add_eval(commands: Any) -> None:
    """Add `eval` to the commands of a parser."""
    command = commands.add_parser(
        "eval", help="play episodes with a trained agent", allow_abbrev=False
    )
    command.add_argument("run_dir", metavar="RUN_DIR", help="or a checkpoint file")
    command.add_argument("--episodes", type=positive, default=20, metavar="K", help="(default 20)")
    command.add_argument("--video", metavar="DIR", help="record each episode there")
    command.add_argument(
        "--best", action="store_true", help="the best checkpoint instead of the newest"
    )
    command.add_argument(
        "--env", metavar="ENV_ID", help="needed when the saved id imports a module (module:Name-v0)"
    )
    command.add_argument(
        "--wrapper", metavar="NAME", help="needed when the run had one (module:Class)"
    )
    command.add_argument("--seed", type=non_negative, help="of the episodes (default: the run's)")
    command.set_defaults(run=_eval, parser=command)


def _eval(options: argparse.Namespace) -> int:
    check_native_code()
    look_beside_the_user(options.env, options.wrapper)
    path = _checkpoint_of(options.run_dir, best=options.best)
    # One environment tells the spaces; the episodes are played in others.
    state = load_checkpoint(path)
    env = options.env or _found(state, "agent", "environment")
    mujoco_warnings.show_once(env)
    stepped = _found(state, "config", "vectorization")
    kept = stepped == "tensor" or env_pool.only_here(env, stepped)
    changes: dict[str, Any] = {"num_envs": 1, "vectorization": stepped if kept else "sync"}
    for name in ("seed", "wrapper"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    with (
        LastResort(str(env)) as last_resort,
        TRPO.load(path, options.env, **changes) as agent,
        last_resort.all_said(),
    ):

        def tell(mean: float, std: float) -> None:
            say(f"{path}: return {mean:.2f} +- {std:.2f} over {options.episodes} episodes")
            last_resort.ready(0)

        if options.video is None:
            agent.evaluate(options.episodes, done=lambda found: tell(found.mean, found.std))
        else:
            found = agent.record(options.episodes, options.video)
            say(f"videos in {options.video}")
            tell(*found)
    return 0


def _found(state: Mapping[str, Any], part: str, name: str) -> str | None:
    """A word in a part of a checkpoint; None where there is none, for `load` to complain of."""
    held = state.get(part)
    found = held.get(name) if isinstance(held, Mapping) else None
    return found if isinstance(found, str) else None


def _checkpoint_of(given: str, *, best: bool) -> Path:
    path = given_path(given, "RUN_DIR")
    try:
        if path.is_file():
            return path
        directory = RunDirectory(path)
        if best:
            if not directory.best_file.exists():
                raise RunDirectoryError(f"{path} has no best checkpoint: train with --eval-every")
            return directory.best_file
    except OSError as error:
        raise RunDirectoryError(f"cannot read {path}: {refusal(error)}") from error
    found = directory.latest()
    if found is None:
        raise RunDirectoryError(f"{path} holds no checkpoint: name a run directory or a file")
    return found[0]


def add_plot(commands: Any) -> None:
    """Add `plot` to the commands of a parser."""
    command = commands.add_parser("plot", help="draw learning curves", allow_abbrev=False)
    command.add_argument("run_dirs", metavar="RUN_DIR", nargs="+")
    command.add_argument("--out", metavar="FILE.png", required=True, help="the picture")
    command.set_defaults(run=_plot, parser=command)


def _plot(options: argparse.Namespace) -> int:
    try:
        out = plot_runs(options.run_dirs, options.out)
    except OSError as error:
        complain(f"error: cannot write {options.out}: {error.strerror or error}")
        # Where no file can be, another place is to be named; a disk can have room again.
        return 1 if error.errno in DISK_TROUBLE else 2
    say(f"picture    {out}")
    return 0
