"""Seconds until training reaches a score: the steps that it took, over the steps of a second.

    OMP_NUM_THREADS=1 python benchmarks/seconds_to_score.py --turns 3
    OMP_NUM_THREADS=1 python benchmarks/seconds_to_score.py --train 0 1 2

The steps are from the curves in benchmarks/results/learning.csv (learning.py), whose trainings may
have shared a machine. Peers take hours for those; `--train` trains the seeds that are missing there
no longer than to the highest score, and keeps them in benchmarks/results/to_score.csv. How many
steps each agent makes a second is measured here, with the settings of those trainings, every
contender in a process of its own and in turns: that needs a quiet machine. Turns are added to those
in benchmarks/results/pace.json; learning.py writes the table into docs/learning-results.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from math import inf, isfinite
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from training_runs import AGENTS, OURS, Run, RunTable

ROOT = Path(__file__).resolve().parent.parent
SCORES = {"HalfCheetah-v5": (2000, 4000), "Hopper-v5": (2000,), "Walker2d-v5": (2000,)}
STEPS = 1_000_000  # of the trainings
STOPPED = "to_score.csv"  # of those that ended at the highest score, beside pace.json
# Of each contender's turn, after a first learning that only warms up.
CHUNK, SECONDS = 2048, 2.0
# environment -> turns; a turn: agent -> steps per second
Paces = dict[str, list[dict[str, float]]]


def steps_to(score: float, run: Run) -> float:
    """Environment steps until the mean of the last 100 training episodes is there; inf: never."""
    steps, returns = run.points()
    there = np.flatnonzero(returns >= score)
    if not len(there):
        return inf
    first = int(there[0])
    if first == 0:
        return float(steps[0])
    return float(np.interp(score, returns[first - 1 : first + 1], steps[first - 1 : first + 1]))


def pace(turns: Sequence[Mapping[str, float]], agent: str) -> float:
    """Steps per second, best of the turns; 0 where it was in none."""
    return max((turn[agent] for turn in turns if agent in turn), default=0.0)


def known(env: str, agent: str, whole: RunTable, stopped: RunTable) -> list[Run]:
    """An agent's run of each seed, the whole one where there is one."""
    found = {run.seed: run for table in (stopped, whole) for run in table.of(env, STEPS, agent)}
    return [found[seed] for seed in sorted(found)]


def train_missing(seeds: Sequence[int], envs: Sequence[str], whole: RunTable, to: Path) -> None:
    """Train the peers' missing seeds until the last 100 episodes are worth the highest score."""
    from learning_peers import train_peer

    for seed in seeds:
        for env in envs:
            for agent in AGENTS[1:]:
                stopped = RunTable(to)  # read anew: another process may train other ones
                key = (env, STEPS, seed, agent)
                if key not in stopped and key not in whole:
                    stopped.add(train_peer(agent, env, STEPS, seed, until=max(SCORES[env])))


def table(agents: Sequence[str], runs: RunTable, stopped: RunTable, paces: Paces) -> str:
    """A row for each environment, score and agent that has runs; the first agent is ours."""
    heads = "environment | score | agent | seeds | reached by | steps | steps a second | seconds"
    lines = [f"| {heads} | to ours |", "|---|---:|---|---:|---:|---:|---:|---:|---:|"]
    for env, score in ((env, score) for env, scores in SCORES.items() for score in scores):
        ours = inf
        for agent in agents:
            taken = [steps_to(score, run) for run in known(env, agent, runs, stopped)]
            if not taken:
                continue
            speed = pace(paces.get(env, []), agent)
            seconds = median(taken) / speed if speed else inf
            ours = seconds if agent == agents[0] else ours
            ratio = f"{seconds / ours:.3g}" if isfinite(seconds) and isfinite(ours) else "-"
            counts = f"{len(taken)} | {sum(map(isfinite, taken))}"
            figures = " | ".join(map(_number, (median(taken), speed or inf, seconds)))
            lines.append(f"| {env} | {score:,} | {agent} | {counts} | {figures} | {ratio} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if isfinite(value) else "-"


def section(agents: Sequence[str], runs: RunTable, path: Path) -> str:
    """The table with its explanation, for a page; "" where no agent has runs or a pace."""
    stopped = RunTable(path.with_name(STOPPED))
    found = table(agents, runs, stopped, read(path)) if path.exists() else ""
    if not found:
        return ""
    return f"""
## Seconds to a score

The score is the mean return of the last 100 training episodes; steps to it are medians over the
seeds of the runs above, and of others that ended at the highest score (`--train`; "-": half of them
or more did not get there). The trainings may have shared a machine, so a second's steps were
measured apart, by `OMP_NUM_THREADS=1 python benchmarks/seconds_to_score.py` with each agent's
settings, from their first steps on, in turns, best of them (two cores, AMX; ours steps its
environments on both, which is its default). "To ours" is the ratio of the seconds.

{found}"""


def read(path: Path) -> Paces:
    """What was measured so far."""
    found: Paces = json.loads(path.read_text()) if path.exists() else {}
    return found


def learner(agent: str, env: str) -> Callable[[], object]:
    """Learning of `CHUNK` more steps, with the settings of the trainings."""
    if agent == OURS:
        from trpo_fast import TRPO

        ours = TRPO(env, seed=0)
        return lambda: ours.learn(CHUNK, progress_bar=False)
    from learning_peers import make_peer

    model: Any = make_peer(agent, env, 0)
    return lambda: model.learn(CHUNK, reset_num_timesteps=False)


def one(agent: str, env: str) -> None:
    """A contender's turn, in its own process."""
    warnings.simplefilter("ignore")
    learn = learner(agent, env)
    learn()
    steps, began = 0, time.perf_counter()
    while time.perf_counter() < began + SECONDS:
        learn()
        steps += CHUNK
    print(json.dumps(steps / (time.perf_counter() - began)))


def measure(agent: str, env: str) -> float:
    """A contender's steps per second, by a fresh process."""
    words = [sys.executable, __file__, "--one", agent, env]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{agent} on {env}: {ran.stderr[-2000:]}")
    found = float(ran.stdout.splitlines()[-1])
    print(f"{env:16}{agent:20}{found:10,.0f} steps/s", flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Add turns to what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", nargs="+", choices=SCORES, default=list(SCORES), metavar="ENV_ID")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--train", nargs="+", type=int, metavar="SEED", help="and measure nothing")
    parser.add_argument("--out", type=Path, default=ROOT, metavar="DIR", help="the project's root")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        one(*options.one)
        return
    path = options.out / "benchmarks" / "results" / "pace.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if options.train:
        whole = RunTable(path.with_name("learning.csv"))
        train_missing(options.train, options.only, whole, path.with_name(STOPPED))
        return
    for env in options.only:
        for _ in range(options.turns):
            turn = {agent: measure(agent, env) for agent in AGENTS}
            paces = read(path)
            paces.setdefault(env, []).append(turn)
            path.write_text(json.dumps(paces, indent=1) + "\n")


if __name__ == "__main__":
    main()
