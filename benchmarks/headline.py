"""What README and docs promise, run whole, through the command line: before a release.

    make headline                      # or: OMP_NUM_THREADS=1 python benchmarks/headline.py

trains for full lengths with checkpoints, kills and resumes, evaluates and plots; checks exit codes,
files, scores, and that the weights of the killed run are those of the uninterrupted one. It goes on
where an earlier call was stopped: a stage that is done is remembered in --out, a training that is
not goes on from its newest checkpoint. The summary is a table in Markdown, which --page puts into
docs/learning-results.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trpo_fast.runs.directory import RunDirectory
from trpo_fast.runs.files import write_atomically
from trpo_fast.runs.logger import TIMESTEPS, read_progress

ROOT = Path(__file__).resolve().parent.parent
HEADING = "## The headline commands, run whole"
FULL = 1_000_000
EPISODES = 20
# Between two looks at how far a training is that is to be killed.
LOOK_S = 0.1


@dataclass(frozen=True)
class Promise:
    """One training, its score's floor, and the steps after which it is killed and resumed.

    `alike` names the promise whose final weights it must have.
    """

    name: str
    env: str
    steps: int
    floor: float | None = None
    options: tuple[str, ...] = ()
    kills: tuple[int, ...] = ()
    alike: str | None = None


@dataclass
class Outcome:
    """What came of a promise; `faults` is empty where it was kept."""

    name: str
    command: str
    steps: int
    floor: float | None
    faults: list[str]
    score: str = ""
    notes: str = ""


# Floors are of learning, not of luck: docs/learning-results.md has what the defaults reach.
PROMISES = (
    Promise("short", "Pendulum-v1", 4_000, None, ("--rollout-steps", "200", "--save-every", "1")),
    Promise("pendulum-120k", "Pendulum-v1", 120_000),
    Promise("reacher-120k", "Reacher-v5", 120_000),
    Promise("readme", "CartPole-v1", 100_000, 475, ("--seed", "1")),
    Promise("cheetah", "HalfCheetah-v5", FULL, 2_500),
    Promise("cheetah-killed", "HalfCheetah-v5", FULL, 2_500, (), (400_000, 512_000), "cheetah"),
    Promise("reacher", "Reacher-v5", FULL, -6),
    Promise("pendulum", "Pendulum-v1", FULL, -250),
    Promise("cartpole", "CartPole-v1", FULL, 475),
)


class Fault(Exception):  # noqa: N818
    """A promise was not kept; the text says how."""


def trpo_fast(*arguments: str) -> str:
    """Run the command line in a process of its own; its stdout. Raises Fault for another exit."""
    done = subprocess.run(program(*arguments), capture_output=True, text=True, check=False)
    if done.returncode:
        last = "; ".join(done.stderr.strip().splitlines()[-2:])
        raise Fault(f"`{shown(arguments)}` ended with {done.returncode}: {last}")
    return done.stdout


def program(*arguments: str) -> list[str]:
    """How to start the command line in this Python."""
    return [sys.executable, "-m", "trpo_fast", *arguments]


def shown(arguments: Sequence[str]) -> str:
    """A command as one types it."""
    return " ".join(["trpo-fast", *arguments])


def kill_after(steps: int, directory: Path, arguments: Sequence[str]) -> int:
    """Train until more than `steps` are in the log, then SIGKILL; the steps that were done."""
    with subprocess.Popen(program(*arguments), stdout=subprocess.DEVNULL) as training:
        try:
            while steps_in(directory) <= steps:
                if training.poll() is not None:
                    raise Fault(f"ended with {training.returncode} before it could be killed")
                time.sleep(LOOK_S)
        finally:
            training.kill()
    return steps_in(directory)


def steps_in(directory: Path) -> int:
    """The steps that a run's log has."""
    rows = read_progress(directory / "progress.csv")
    return int(rows[-1][TIMESTEPS]) if rows else 0


def keep(promise: Promise, out: Path) -> Outcome:
    """Train as promised and check what is there afterwards."""
    directory = out / promise.name
    given = ["train", promise.env, "--total-steps", str(promise.steps), *promise.options]
    outcome = Outcome(promise.name, shown(given), 0, promise.floor, [])
    arguments = [*given, "--run-dir", str(directory), "--resume", "--quiet"]
    try:
        kills = out / f"{promise.name}.kills"  # told here too where this script is stopped
        told = kills.read_text().splitlines() if kills.exists() else []
        for steps in promise.kills[len(told) :]:
            done = kill_after(steps, directory, arguments)
            told.append(f"killed at {done:,}, resumed at {newest(directory)[0]:,}")
            write_atomically(kills, "\n".join(told).encode())
        outcome.notes = "; ".join(told)
        trpo_fast(*arguments)
        outcome.steps = steps_in(directory)
        check_files(directory, promise)
        outcome.score = evaluated(directory, promise)
        if promise.alike is not None:
            check_alike(out / promise.alike, directory)
            outcome.notes += f"; the weights are those of `{promise.alike}`"
    except Fault as fault:
        outcome.faults.append(str(fault))
    return outcome


def newest(directory: Path) -> tuple[int, dict[str, Any]]:
    """The steps and the state of a run's newest checkpoint."""
    found = RunDirectory(directory).latest()
    if found is None:
        raise Fault(f"{directory} holds no checkpoint")
    return found[1]["progress"]["num_timesteps"], found[1]


def check_files(directory: Path, promise: Promise) -> None:
    """Fault where the run left less than README says, or a log with gaps."""
    run = RunDirectory(directory)
    for file in (run.config_file, run.progress_file, run.picture_file):
        if not (file.exists() and file.stat().st_size):
            raise Fault(f"{file} is missing")
    if not list(directory.glob("events.out.tfevents.*")):
        raise Fault(f"{directory} has no TensorBoard events")
    steps, _ = newest(directory)
    iterations = [int(row["time/iterations"]) for row in read_progress(run.progress_file)]
    if iterations != list(range(1, len(iterations) + 1)):
        raise Fault(f"{run.progress_file} has gaps or rows twice")
    if not steps == steps_in(directory) >= promise.steps:
        raise Fault(f"{directory} has {steps} steps of {promise.steps} in its newest checkpoint")


def evaluated(directory: Path, promise: Promise) -> str:
    """The score of `trpo-fast eval`; plots as well. Fault below the floor, or without picture."""
    told = trpo_fast("eval", str(directory), "--episodes", str(EPISODES))
    found = re.search(r"return (\S+) \+- (\S+) over", told)
    if found is None:
        raise Fault(f"eval said {told!r}")
    picture = directory / "plotted.png"
    trpo_fast("plot", str(directory), "--out", str(picture))
    if not picture.exists():
        raise Fault(f"plot left no {picture}")
    if promise.floor is not None and float(found[1]) < promise.floor:
        raise Fault(f"scored {found[1]}, promised {promise.floor:g}")
    return f"{float(found[1]):.1f} ± {float(found[2]):.1f}"


def check_alike(one: Path, other: Path) -> None:
    """Fault where the newest checkpoints differ in a bit, but for the wall clock."""
    wanted, found = newest(one)[1], newest(other)[1]
    for state in (wanted, found):
        del state["progress"]["time_elapsed"]
    place = difference(wanted, found)
    if place:
        raise Fault(f"{other} is not {one}: they differ in {place}")


def difference(a: Any, b: Any, place: str = "") -> str:
    """Where two states first differ; "" where they are the same to the last bit."""
    if type(a) is not type(b):
        return place or "/"
    if isinstance(a, dict | list):
        keys = list(a) if isinstance(a, dict) else range(len(a))
        if len(a) != len(b) or (isinstance(a, dict) and keys != list(b)):
            return place or "/"
        return next(filter(None, (difference(a[k], b[k], f"{place}/{k}") for k in keys)), "")
    if isinstance(a, torch.Tensor | np.ndarray):
        alike = (a.dtype, tuple(a.shape)) == (b.dtype, tuple(b.shape))
        return "" if alike and bytes(np.asarray(a)) == bytes(np.asarray(b)) else place
    return "" if a == b else place


def once(out: Path, promise: Promise, make: Callable[[Promise, Path], Outcome]) -> Outcome:
    """What came of a promise; from an earlier call where it was kept then."""
    remembered = out / f"{promise.name}.json"
    if remembered.exists():
        return Outcome(**json.loads(remembered.read_text()))
    outcome = make(promise, out)
    if not outcome.faults:
        write_atomically(remembered, json.dumps(asdict(outcome)).encode())
    return outcome


def table(outcomes: Sequence[Outcome]) -> str:
    """The section of the page, in Markdown."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    lines = [
        HEADING,
        "",
        "Made by `make headline`, which is `OMP_NUM_THREADS=1 python benchmarks/headline.py`",
        f"({versions}, {platform.machine()}, CPU only): each command with `--run-dir`, then",
        f"`trpo-fast eval` over {EPISODES} episodes, and `trpo-fast plot`. Checked are exit codes,",
        "files, a log without gaps, and a floor of the score.",
        "",
        "| name | command | steps | score | at least | kept |",
        "|---|---|---|---|---|---|",
    ]
    for it in outcomes:
        floor = "" if it.floor is None else f"{it.floor:g}"
        kept = "no: " + "; ".join(it.faults) if it.faults else f"yes{it.notes and ', '}{it.notes}"
        cells = (it.name, f"`{it.command}`", f"{it.steps:,}", it.score, floor, kept)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def put_into(page: Path, section: str) -> None:
    """Replace the section of the page, which is its last, or append it."""
    before = page.read_text().partition(HEADING)[0].rstrip("\n")
    page.write_text(f"{before}\n\n{section}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep every promise; 1 where one was not kept."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "headline", metavar="DIR")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="put the table into it")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these alone")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for promise in PROMISES:
        if options.only is None or promise.name in options.only:
            outcomes.append(once(options.out, promise, keep))
            print(f"{promise.name:<16}{'; '.join(outcomes[-1].faults) or 'kept'}", flush=True)
    section = table(outcomes)
    print(f"\n{section}")
    if options.page is not None:
        put_into(options.page, section)
    return 1 if any(outcome.faults for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
