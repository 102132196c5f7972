"""`trpo-fast tune`."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trpo_fast.agent.agent import TRPO
from trpo_fast.agent.config import OPTIONS, ConfigError
from trpo_fast.agent.policies import box_distribution, first_log_std, named_boxes
from trpo_fast.agent.portable import NotPortable, to_json
from trpo_fast.base.install import install_line
from trpo_fast.base.output import say
from trpo_fast.command.config_file import merge
from trpo_fast.command.options import (
    add_agent_options,
    agent_options,
    check_native_code,
    look_beside_the_user,
    positive,
)
from trpo_fast.command.search import SPACE, Task, best_options, ended, open_study, search
from trpo_fast.environments import mujoco_warnings
from trpo_fast.runs.files import given_path, refusal, write_atomically

if TYPE_CHECKING:
    import optuna

DEFAULT_STEPS = 100_000
DEFAULT_TRIALS = 30
# The first of a trial's: what comes out is judged by trainings with others.
DEFAULT_SEED = 1_000


def add_tune(commands: Any) -> None:
    """Add `tune` to the commands of a parser."""
    command = commands.add_parser(
        "tune",
        help="search for better options",
        usage="trpo-fast tune ENV_ID [options]",
        description="Search for better options by Optuna: one short training a trial, those that "
        f"fall behind are stopped. Searched are {', '.join(SPACE)}, but for what is given here or "
        "by --config, and log_std_init where actions are no Gaussian's. The same command goes on "
        "where it was stopped.",
        allow_abbrev=False,
    )
    command.add_argument("env_id", metavar="ENV_ID", help="a gymnasium id, such as CartPole-v1")
    group = command.add_argument_group("this search")
    group.add_argument(
        "--trials",
        type=positive,
        default=DEFAULT_TRIALS,
        metavar="N",
        help=f"of the study, those that are there included (default {DEFAULT_TRIALS})",
    )
    group.add_argument(
        "--total-steps",
        type=positive,
        metavar="N",
        help=f"environment steps of each training (default {DEFAULT_STEPS})",
    )
    group.add_argument(
        "--seeds-per-trial",
        type=positive,
        default=1,
        metavar="N",
        help="trainings of a trial, whose mean is its score (default 1)",
    )
    group.add_argument(
        "--study", metavar="FILE.db", help="where trials are kept (default tune-ENV_ID.db)"
    )
    group.add_argument(
        "--out", metavar="FILE.json", help="the best options, for --config (default tune-ENV_ID)"
    )
    group.add_argument(
        "--config", metavar="FILE", help="options that are not searched, as in train"
    )
    add_agent_options(command, default_seed=DEFAULT_SEED)
    command.set_defaults(run=_tune, parser=command, run_dir=None, seeds=None)


def _tune(options: argparse.Namespace) -> int:
    check_native_code()
    if find_spec("optuna") is None:
        raise ConfigError(
            f"tune needs a package that is not installed. Install it with: {install_line('tune')}"
        )
    given = merge(options, agent_options(options))
    look_beside_the_user(options.env_id, given.get("wrapper"))
    mujoco_warnings.show_once(options.env_id)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", options.env_id)
    out = given_path(options.out or f"tune-{name}.json", "--out")
    if out.suffix != ".json":
        raise ConfigError(f"--out {out} is written as JSON: give it a name that ends in .json")
    file = given_path(options.study or f"tune-{name}.db", "--study")
    task, defaults = _task(options, given)
    study = open_study(file, task, defaults)
    written = study.user_attrs.get("out")
    if out.exists() and written != str(out.resolve()):
        raise ConfigError(f"--out {out} is there and not of this search: name another file")
    study.set_user_attr("out", str(out.resolve()))
    say(
        f"{len(ended(study))} of {options.trials} trials are in {file}; searched: "
        f"{', '.join(task.searched)}"
    )
    try:
        search(study, task, options.trials, lambda trial: _tell(study, trial))
    finally:
        found = best_options(study, task)
        if found is not None:
            _write(out, found)
            _close(study, options.env_id, out, task)
    return 0


def _task(options: argparse.Namespace, given: dict[str, Any]) -> tuple[Task, dict[str, Any]]:
    """What each trial does, and the defaults in this environment."""
    first = given.pop("seed", DEFAULT_SEED)
    if first is None:
        raise ConfigError("seed must be a number here, got None: a search can be gone on with")
    given.pop("track", None)  # a search has no runs that would be looked at one by one
    defaults = {row: option.default for row, option in OPTIONS.items()}
    with TRPO(options.env_id, **given) as agent:
        distribution = box_distribution(agent.config, agent.action_space)
        defaults["log_std_init"] = first_log_std(None, agent.action_space, distribution)
        searches_std = named_boxes(agent.action_space) and distribution != "beta"
    left_out = {*given, *([] if searches_std else ["log_std_init"])}
    if "relative_damping" in given:  # its range is in units that may not be meant
        left_out.add("damping")
    searched = tuple(name for name in SPACE if name not in left_out)
    if not searched:
        raise ConfigError("all options that could be searched are given: there is nothing to do")
    seeds = tuple(range(first, first + options.seeds_per_trial))
    steps = options.total_steps or DEFAULT_STEPS
    return Task(options.env_id, given, searched, steps, seeds), defaults


def _tell(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    if trial.state.name == "COMPLETE":
        drawn = " ".join(f"{k}={_short(v)}" for k, v in trial.params.items())
        best = " (the best so far)" if study.best_trial.number == trial.number else ""
        say(f"trial {trial.number}: return {trial.value:.1f}{best}  {drawn}")
    else:
        how = "stopped" if trial.state.name == "PRUNED" else "failed"
        say(f"trial {trial.number}: {how}")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace(" ", ",")


def _write(out: Path, found: dict[str, Any]) -> None:
    try:
        kwargs = to_json(found.get("env_kwargs", {}), "env_kwargs")
    except NotPortable as error:
        raise ConfigError(f"{error}, which no file can hold") from None
    document = {**found, "env_kwargs": kwargs} if kwargs else found
    try:
        write_atomically(out, (json.dumps(document, indent=2) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {refusal(error)}") from None


def _close(study: optuna.Study, env_id: str, out: Path, task: Task) -> None:
    """What the search came to, and what to do with it."""
    first = study.trials[0]
    trained = f"trpo-fast train {shlex.quote(env_id)} --total-steps {task.steps}"
    if task.options.get("wrapper"):
        trained += f" --wrapper {shlex.quote(task.options['wrapper'])}"
    say(f"best: trial {study.best_trial.number}, return {study.best_value:.1f}, in {out}")
    if first.value is not None:
        say(f"      the defaults' (trial 0): {first.value:.1f}")
    say(f"next: {trained} --config {shlex.quote(str(out))} --seeds 0-4")
    say("      and the same without --config: was the best better, or lucky?")
