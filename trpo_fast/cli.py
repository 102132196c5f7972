"""The command line: `trpo-fast train | eval | plot | doctor`.

Exit codes: 0; 1 when something could not be finished (a faulty environment, files that could not
be written); 2 for a mistake in the command; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trpo_fast import __version__, mujoco_warnings
from trpo_fast.cli_options import add_agent_options, agent_options, non_negative, parse, positive
from trpo_fast.interrupts import INTERRUPTED, interrupt_guard
from trpo_fast.time_budget import budget_table

if TYPE_CHECKING:
    from trpo_fast.agent import TRPO
    from trpo_fast.run_directory import RunDirectory

DEFAULT_STEPS = 1_000_000
DEFAULT_SEED = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    from trpo_fast.environments import EnvironmentFault

    options = parse(build_parser(), arguments)
    try:
        with interrupt_guard(command_line=True), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code: int = options.run(options)
    except KeyboardInterrupt as interrupt:
        _complain("interrupted", interrupt)
        code = INTERRUPTED
        if arguments is None:
            # All is saved and closed; taking the interpreter apart can take a second.
            os._exit(code)
    except EnvironmentFault as fault:
        # The environment's own traceback helps its author; ours would not. One from another
        # process is among the notes already.
        noted = any(fault.traceback in note for note in getattr(fault, "__notes__", []))
        _complain(f"{'' if noted else fault.traceback}error: {fault}", fault)
        code = 1
    except ValueError as error:
        if not _is_users(error):
            raise
        _complain(f"error: {error}", error)
        code = 2
    _close_output()
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser; the options of `train` come from the agent's configuration."""
    parser = argparse.ArgumentParser(
        prog="trpo-fast", description="Train and inspect TRPO agents.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"trpo-fast {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_train(commands)
    _add_eval(commands)
    plot = commands.add_parser("plot", help="draw learning curves", allow_abbrev=False)
    plot.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", type=Path)
    plot.add_argument("--out", metavar="FILE.png", type=Path, required=True, help="the picture")
    plot.set_defaults(run=_plot, parser=plot)
    doctor = commands.add_parser("doctor", help="check this installation", allow_abbrev=False)
    doctor.add_argument("--json", action="store_true", help="as JSON")
    doctor.set_defaults(run=_doctor, parser=doctor)
    return parser


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train an agent",
        allow_abbrev=False,
        usage="trpo-fast train ENV_ID [options]",
        description="Train an agent. Ctrl-C saves a checkpoint and stops; twice, it stops at once.",
    )
    train.add_argument("env_id", metavar="ENV_ID", help="a gymnasium id, such as CartPole-v1")
    run = train.add_argument_group("this run")
    run.add_argument(
        "--total-steps",
        type=positive,
        default=DEFAULT_STEPS,
        metavar="N",
        help="environment steps after which to stop, counted from the run's very beginning "
        f"(default {DEFAULT_STEPS})",
    )
    run.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="where to write (default runs/ENV-sSEED-K)"
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on from the directory's newest checkpoint; without one, start afresh",
    )
    run.add_argument("--quiet", action="store_true", help="show no progress")
    run.add_argument("--profile", action="store_true", help="print at the end where the time went")
    add_agent_options(train, default_seed=DEFAULT_SEED)
    train.set_defaults(run=_train, parser=train)


def _add_eval(commands: Any) -> None:
    command = commands.add_parser(
        "eval", help="play episodes with a trained agent", allow_abbrev=False
    )
    command.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="or a checkpoint file")
    command.add_argument("--episodes", type=positive, default=20, metavar="K", help="(default 20)")
    command.add_argument("--video", type=Path, metavar="DIR", help="record each episode there")
    command.add_argument(
        "--best", action="store_true", help="the best checkpoint instead of the newest"
    )
    command.add_argument(
        "--env", metavar="ENV_ID", help="needed when the saved id imports a module (module:Name-v0)"
    )
    command.add_argument("--seed", type=non_negative, help="of the episodes (default: the run's)")
    command.set_defaults(run=_eval, parser=command)


# train


def _train(options: argparse.Namespace) -> int:
    _check_instruction_set()
    given = agent_options(options)
    mujoco_warnings.show_once(options.env_id)
    agent = _resumed(options, given) if options.resume else None
    if agent is None:
        agent = _fresh(options, given)
    directory = agent.run_directory
    assert directory is not None  # noqa: S101 (both ways of making the agent set it)
    with agent:
        left = options.total_steps - agent.num_timesteps
        if left <= 0:
            _say(f"{directory.path} already has {agent.num_timesteps} steps: nothing to do")
            return 0
        _say(f"training on {options.env_id}, seed {agent.seed}, in {directory.path}")
        try:
            agent.learn(left, progress_bar=not options.quiet)
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"Go on with: {_resume_line(options, directory)}")
            raise
    code = _report(agent, directory)
    if options.profile:
        _say(f"time in this call\n{budget_table(agent.time_budget)}")
    return code


def _check_instruction_set() -> None:
    """ConfigError where TRPO_FAST_ISA names what this CPU or build cannot run."""
    from trpo_fast import _native
    from trpo_fast.config import ConfigError

    try:
        if _native.core is not None:
            _native.core.isa()
    except RuntimeError as error:
        raise ConfigError(str(error)) from None


def _fresh(options: argparse.Namespace, given: dict[str, Any]) -> TRPO:
    from trpo_fast.agent import TRPO
    from trpo_fast.run_directory import RunDirectory, new_run_directory

    chosen = None if options.run_dir is None else RunDirectory(options.run_dir)
    if chosen is not None and not options.resume:
        chosen.refuse_if_used()
    agent = TRPO(options.env_id, **{"seed": DEFAULT_SEED, **given})
    # Only now: a mistake in the command leaves no empty directory behind.
    agent.run_directory = chosen or new_run_directory(options.env_id, agent.seed)
    if options.resume:
        agent.continues = agent.run_directory.path.resolve()
    return agent


def _resumed(options: argparse.Namespace, given: dict[str, Any]) -> TRPO | None:
    """The agent of the newest checkpoint; None where there is none."""
    from trpo_fast.agent import TRPO
    from trpo_fast.agent_state import recipe
    from trpo_fast.config import ConfigError, differences
    from trpo_fast.run_directory import RunDirectory, last_run_directory

    if options.run_dir is not None:
        directory: RunDirectory | None = RunDirectory(options.run_dir)
    else:
        directory = last_run_directory(options.env_id, given.get("seed", DEFAULT_SEED))
    found = None if directory is None else directory.latest()
    if directory is None or found is None:
        return None
    path, state = found
    _, saved, _ = recipe(state, path, options.env_id, {})
    wanted = saved.replace(**given)
    if state["agent"].get("environment") == options.env_id:
        refused = differences(saved, wanted, fixed=True)
        if refused:
            listed = "\n  ".join(refused)
            raise ConfigError(f"--resume cannot change what the run was built with:\n  {listed}")
    agent = TRPO.load(path, options.env_id, run_dir=directory.path, **given)
    for change in differences(saved, wanted, fixed=False):
        _say(f"changed on resume: {change}")
    _say(f"going on from {path} ({agent.num_timesteps} steps)")
    return agent


def _resume_line(options: argparse.Namespace, directory: RunDirectory) -> str:
    steps = f" --total-steps {options.total_steps}"
    return f"trpo-fast train {options.env_id}{steps} --run-dir {directory.path} --resume"


def _report(agent: TRPO, directory: RunDirectory) -> int:
    recorder = agent.recorder
    _say(f"done: {agent.num_timesteps} steps in {agent.progress.time_elapsed:.0f} s")
    checkpoint = None if recorder is None else recorder.last_checkpoint
    for name, path in (
        ("checkpoint", checkpoint),
        ("best", directory.best_file),
        ("progress", directory.progress_file),
        ("picture", directory.picture_file),
    ):
        if path is not None and path.exists():
            _say(f"  {name:<11}{path}")
    missing = recorder.missing if recorder is not None else []
    if missing:
        _complain(f"error: could not write {', '.join(missing)} in {directory.path}")
    return 1 if missing else 0


# eval, plot, doctor


def _eval(options: argparse.Namespace) -> int:
    from trpo_fast.agent import TRPO
    from trpo_fast.checkpoint import load_checkpoint

    _check_instruction_set()
    path = _checkpoint_of(options.run_dir, best=options.best)
    # One environment tells the spaces; the episodes are played in others.
    described = load_checkpoint(path).get("agent")
    mujoco_warnings.show_once(options.env or (described or {}).get("environment"))
    changes: dict[str, Any] = {"num_envs": 1, "vectorization": "sync"}
    if options.seed is not None:
        changes["seed"] = options.seed
    with TRPO.load(path, options.env, **changes) as agent:
        if options.video is None:
            mean, std = agent.evaluate(options.episodes)
        else:
            mean, std = agent.record(options.episodes, options.video)
            _say(f"videos in {options.video}")
    _say(f"{path}: return {mean:.2f} +- {std:.2f} over {options.episodes} episodes")
    return 0


def _checkpoint_of(path: Path, *, best: bool) -> Path:
    from trpo_fast.run_directory import RunDirectory, RunDirectoryError

    if path.is_file():
        return path
    directory = RunDirectory(path)
    if best:
        if not directory.best_file.exists():
            raise RunDirectoryError(f"{path} has no best checkpoint: train with --eval-every")
        return directory.best_file
    found = directory.latest()
    if found is None:
        raise RunDirectoryError(f"{path} holds no checkpoint: name a run directory or a file")
    return found[0]


def _plot(options: argparse.Namespace) -> int:
    from trpo_fast.plotting import plot_runs

    try:
        out = plot_runs(options.run_dirs, options.out)
    except OSError as error:
        _complain(f"error: cannot write {options.out}: {error.strerror or error}")
        return 1
    _say(f"picture    {out}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from trpo_fast.doctor import doctor_report, format_report

    report = doctor_report()
    _say(json.dumps(report, indent=2) if options.json else format_report(report))
    return 0


# Talking


def _is_users(error: ValueError) -> bool:
    """Whether an error is one that the user can mend by following its text."""
    from trpo_fast.checkpoint import CheckpointError
    from trpo_fast.config import ConfigError
    from trpo_fast.environments import EnvironmentSetupError, UnsupportedSpaceError
    from trpo_fast.logger import ProgressFileError
    from trpo_fast.plotting import PlotError
    from trpo_fast.run_directory import RunDirectoryError

    return isinstance(
        error,
        CheckpointError
        | ConfigError
        | EnvironmentSetupError
        | UnsupportedSpaceError
        | PlotError
        | ProgressFileError
        | RunDirectoryError,
    )


def _say(text: str) -> None:
    _print(text, sys.stdout)


def _complain(text: str, error: BaseException | None = None) -> None:
    _print("\n".join([text, *getattr(error, "__notes__", [])]), sys.stderr)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _print(f"warning: {message}", sys.stderr)


def _print(text: str, stream: Any) -> None:
    """Print, come what may: a closed pipe or a narrow encoding is no reason to fail."""
    with contextlib.suppress(OSError, ValueError):
        encoding = getattr(stream, "encoding", None) or "utf-8"
        print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)


def _close_output() -> None:
    """Keep the interpreter from failing at exit on a stdout that nobody reads."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
