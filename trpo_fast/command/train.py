"""`trpo-fast train`."""

from __future__ import annotations

import argparse
import os
import shlex
from functools import partial
from pathlib import Path
from typing import Any

from trpo_fast.agent.agent import TRPO
from trpo_fast.agent.config import ConfigError, differences
from trpo_fast.agent.state import recipe
from trpo_fast.base.output import say
from trpo_fast.base.ranks import Ranks
from trpo_fast.base.time_budget import budget_table
from trpo_fast.command.config_file import merge
from trpo_fast.command.last_resort import LastResort
from trpo_fast.command.options import (
    add_agent_options,
    agent_options,
    check_native_code,
    look_beside_the_user,
    positive,
)
from trpo_fast.command.output import complain
from trpo_fast.command.ranks import is_restart, launched_ranks, on_first
from trpo_fast.command.seeds import Score, seeds, summary
from trpo_fast.environments import mujoco_warnings
from trpo_fast.runs.directory import RunDirectory, last_run_directory, new_run_directory
from trpo_fast.runs.files import given_path
from trpo_fast.runs.tracking import require

DEFAULT_STEPS = 1_000_000
DEFAULT_SEED = 0


def add_train(commands: Any) -> None:
    """Add `train` to the commands of a parser."""
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
        metavar="N",
        help="environment steps after which to stop, counted from the run's very beginning "
        f"(default {DEFAULT_STEPS})",
    )
    run.add_argument(
        "--run-dir",
        metavar="DIR",
        help="where to write (default runs/ENV-sSEED-K; with --seeds each run has DIR/seed-S)",
    )
    run.add_argument(
        "--seeds",
        type=seeds,
        metavar="A-B",
        help="train one run a seed, one after the other (0-4, or 0,3,7), and say what they come to",
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on from the directory's newest checkpoint; without one, start afresh",
    )
    run.add_argument(
        "--config",
        metavar="FILE",
        help="options from a TOML or JSON file, such as a run's config.json; those given here win",
    )
    run.add_argument("--quiet", action="store_true", help="show no progress")
    run.add_argument("--profile", action="store_true", help="print at the end where the time went")
    add_agent_options(train, default_seed=DEFAULT_SEED)
    train.set_defaults(run=_train, parser=train)


def _train(options: argparse.Namespace) -> int:
    check_native_code()
    given = merge(options, agent_options(options))
    options.total_steps = options.total_steps or DEFAULT_STEPS
    look_beside_the_user(options.env_id, given.get("wrapper"))
    mujoco_warnings.show_once(options.env_id)
    options.resume = options.resume or is_restart()
    with launched_ranks(given) as ranks:
        if options.seeds is not None:
            return _train_seeds(options, given, ranks)
        agent = _agent(options, given, ranks)
        directory = agent.run.directory
        if directory is None:  # another rank's, which tells and writes
            with agent:
                agent.learn(max(options.total_steps - agent.num_timesteps, 0), progress_bar=False)
            return 0
        return _learnt(options, agent, directory)[0]


def _train_seeds(options: argparse.Namespace, given: dict[str, Any], ranks: Ranks | None) -> int:
    """One run a seed; the exit code."""
    if ranks is not None:
        raise ConfigError(
            f"--seeds trains its runs in one process, and this is one of {ranks.count} ranks: "
            "start torchrun once a seed, with --seed, or train without torchrun"
        )
    if "seed" in given:
        raise ConfigError("--seed and --seeds are given: which seeds are to be trained?")
    code, scores = 0, list[Score]()
    for seed in options.seeds:
        one = argparse.Namespace(**vars(options))
        if options.run_dir is not None:
            one.run_dir = str(given_path(options.run_dir, "--run-dir") / f"seed-{seed}")
        agent = _agent(one, {**given, "seed": seed}, None)
        directory = agent.run.directory
        assert directory is not None  # noqa: S101 (both ways of making the agent set it)
        failed, score = _learnt(one, agent, directory)
        code = max(code, failed)
        scores.append(score)
    say(summary(scores, options.seeds))
    runs = shlex.join(_short(score.directory) for score in scores)
    say(f"next: trpo-fast report {runs} --out report.html")
    return code


def _agent(options: argparse.Namespace, given: dict[str, Any], ranks: Ranks | None) -> TRPO:
    agent = _resumed(options, given, ranks) if options.resume else None
    return _fresh(options, given, ranks) if agent is None else agent


def _learnt(options: argparse.Namespace, agent: TRPO, directory: RunDirectory) -> tuple[int, Score]:
    """Train one run: its exit code, and what it came to."""
    with LastResort(options.env_id) as last_resort, agent, last_resort.all_said():
        left = options.total_steps - agent.num_timesteps
        if left <= 0:
            say(f"{directory.path} already has {agent.num_timesteps} steps: nothing to do")
            last_resort.ready(0)
            return 0, _score(agent, directory)
        say(f"training on {options.env_id}, seed {agent.seed}, in {directory.path}")
        if agent.shared is not None:
            say(agent.shared.described())
        try:
            agent.learn(left, progress_bar=not options.quiet)
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"Go on with: {_resume_line(options, agent, directory)}")
            raise
        code = _report(agent, directory)
        if options.profile:
            say(f"time in this call\n{budget_table(agent.time_budget)}")
        if options.seeds is None:
            place = shlex.quote(_short(directory.path))
            env = f" --env {shlex.quote(options.env_id)}" if ":" in options.env_id else ""
            say(f"next: trpo-fast eval {place} --episodes 20{env}{_wrapper(agent)}")
            say(f"      trpo-fast report {place} --out report.html")
        last_resort.ready(code)
    return code, _score(agent, directory)


def _score(agent: TRPO, directory: RunDirectory) -> Score:
    returns = agent.training.recent_returns
    final = sum(returns) / len(returns) if returns else None
    return Score(directory.path, final, agent.progress.best_evaluation)


def _short(path: Path) -> str:
    """The path as it is called from here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _fresh(options: argparse.Namespace, given: dict[str, Any], ranks: Ranks | None) -> TRPO:
    chosen = None if options.run_dir is None else RunDirectory(options.run_dir)
    if chosen is not None and not options.resume:
        on_first(ranks, chosen.refuse_if_used)
    agent = TRPO(options.env_id, process_group=ranks, **{"seed": DEFAULT_SEED, **given})
    if not agent.writes:
        return agent
    require(agent.config.track, Path())
    # Only now: a mistake in the command leaves no empty directory behind.
    agent.run.directory = chosen or new_run_directory(options.env_id, agent.seed)
    if options.resume:
        agent.run.goes_on(agent.run.directory.checkpoints)
    return agent


def _newest(options: argparse.Namespace, given: dict[str, Any]) -> tuple[Path, Path, Any] | None:
    """The run directory's path, its newest checkpoint's, and what that holds; None without one."""
    if options.run_dir is not None:
        directory: RunDirectory | None = RunDirectory(options.run_dir)
    else:
        directory = last_run_directory(options.env_id, given.get("seed", DEFAULT_SEED))
    found = None if directory is None else directory.latest()
    return None if directory is None or found is None else (directory.path, *found)


def _resumed(
    options: argparse.Namespace, given: dict[str, Any], ranks: Ranks | None
) -> TRPO | None:
    """The agent of the newest checkpoint; None where there is none."""
    found = on_first(ranks, partial(_newest, options, given))
    if found is None:
        return None
    place, path, state = found
    _, saved, _ = recipe(state, path, options.env_id, {})
    wanted = saved.replace(**given)
    if state["agent"].get("environment") == options.env_id:
        refused = differences(saved, wanted, fixed=True)
        if refused:
            listed = "\n  ".join(refused)
            raise ConfigError(f"--resume cannot change what the run was built with:\n  {listed}")
    agent = TRPO.load(path, options.env_id, run_dir=place, process_group=ranks, **given)
    if not agent.writes:
        return agent
    for change in differences(saved, wanted, fixed=False):
        say(f"changed on resume: {change}")
    say(f"going on from {path} ({agent.num_timesteps} steps)")
    before, now = agent.progress.ranks, 1 if ranks is None else ranks.count
    if before != now and not agent.config.deterministic_ranks:
        say(f"ranks: {before} -> {now}; sums over them are rounded otherwise from here on")
    return agent


def _resume_line(options: argparse.Namespace, agent: TRPO, directory: RunDirectory) -> str:
    steps = f" --total-steps {options.total_steps}{_wrapper(agent)}"
    place = shlex.quote(str(directory.path))
    return f"trpo-fast train {options.env_id}{steps} --run-dir {place} --resume"


def _wrapper(agent: TRPO) -> str:
    """What a command must say that a file may not: code that is to be imported."""
    wrapper = agent.config.wrapper
    return f" --wrapper {shlex.quote(wrapper)}" if wrapper else ""


def _report(agent: TRPO, directory: RunDirectory) -> int:
    recorder = agent.run.recorder
    score = _score(agent, directory).words()
    say(f"done: {agent.num_timesteps} steps in {agent.progress.time_elapsed:.0f} s")
    if score:
        say(f"  {score}")
    checkpoint = None if recorder is None else recorder.last_checkpoint
    for name, path in (
        ("checkpoint", checkpoint),
        ("best", directory.best_file),
        ("progress", directory.progress_file),
        ("picture", directory.picture_file),
    ):
        if path is not None and os.path.exists(path):  # noqa: PTH110 (which asks, and never raises)
            say(f"  {name:<11}{path}")
    missing = recorder.missing if recorder is not None else []
    if missing:
        complain(f"error: could not write {', '.join(missing)} in {directory.path}")
    return 1 if missing else 0
