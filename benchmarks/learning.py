"""Does it learn? One configuration on many environments, and two peers beside it.

    OMP_NUM_THREADS=1 python benchmarks/learning.py --seeds 0 1 2

trains what is missing in benchmarks/results/learning.csv and writes docs/learning-results.md and
the picture docs/assets/learning.png. ``--agents`` also names the peers, which are trained with
rl-zoo3's settings for each task (learning_peers.py); ``--only`` chooses environments, ``--draw``
trains none, ``--alternatives`` trains what was nearly the default, whose table is in
docs/choosing-defaults.md. One thread spares a busy machine; wall-clock times count within one run
on a quiet one.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import geometric_mean, mean, pstdev
from typing import Any

import numpy as np
import torch
from score_statistics import interquartile_mean, interval, profile
from seconds_to_score import Paces, pace
from seconds_to_score import read as read_paces
from seconds_to_score import section as seconds_to_score
from training_runs import AGENTS, EPISODES, OURS, Run, RunTable, put_between, train

from trpo_fast.runs.plotting import COLOURS, new_figure, save_figure

ROOT = Path(__file__).resolve().parent.parent
MILLION = 1_000_000


@dataclass(frozen=True)
class Task:
    """An environment, what to reach there, and what a random policy scores.

    `goal` is the better of every published TRPO and PPO row of several seeds (docs say whose), or
    what solves the task. `options` are no defaults, and then a row of their own says so.
    """

    env: str
    steps: int
    goal: float | None
    floor: float
    options: dict[str, Any] = field(default_factory=dict)
    distribution: str | None = "beta"  # of the default; None for an action without a Box

    @property
    def arm(self) -> str:
        """The name of our row."""
        return ", ".join([OURS, *(f"{name}={value}" for name, value in self.options.items())])


# What was nearly the default.
ALTERNATIVES: tuple[dict[str, Any], ...] = (
    {"distribution": "gaussian"},
    {"distribution": "gaussian", "relative_damping": True, "damping": 0.01},
    {"distribution": "gaussian", "lam": 0.9, "value_lam": 0.95},
    {"distribution": "beta"},
    {"relative_damping": True, "damping": 0.01},
    {"lam": 0.9, "value_lam": 0.95},
)
BEGIN, END = "<!-- alternatives: begin -->", "<!-- alternatives: end -->"
TASKS = (
    Task("HalfCheetah-v5", MILLION, 6300, -280),
    Task("Hopper-v5", MILLION, 3450, 18),
    Task("Walker2d-v5", MILLION, 4500, 2),
    Task("Ant-v5", MILLION, 4360, -60),
    Task("Humanoid-v5", MILLION, 2830, 120),
    Task("Swimmer-v5", MILLION, 359, 0),
    Task("Swimmer-v5", MILLION, 359, 0, {"gamma": 0.9999}),
    Task("Reacher-v5", MILLION, -4.1, -43),
    Task("Pusher-v5", MILLION, None, -150),
    Task("InvertedPendulum-v5", MILLION, 1000, 6, distribution="squashed"),
    Task("InvertedDoublePendulum-v5", MILLION, 9250, 55, distribution="squashed"),
    Task("CartPole-v1", 100_000, 500, 22, distribution=None),
    Task("Acrobot-v1", 200_000, -85, -500, distribution=None),
    Task("Pendulum-v1", 300_000, -165, -1200, distribution="squashed"),
    Task("MountainCarContinuous-v0", 300_000, 90, -33, distribution="squashed"),
    Task("LunarLander-v3", MILLION, 200, -180, distribution=None),
    Task("BipedalWalker-v3", MILLION, 200, -100),
)


def arms_of(task: Task) -> tuple[str, ...]:
    """Ours and, where ours has the defaults, the peers."""
    return (task.arm,) if task.options else (task.arm, *AGENTS[1:])


def run_once(task: Task, arm: str, seed: int) -> Run:
    if arm == task.arm:
        return train(task.env, task.steps, seed, arm, task.options)
    from learning_peers import train_peer

    return train_peer(arm, task.env, task.steps, seed)


def verdict(task: Task, runs: Sequence[Run]) -> str:
    """Whether the mean reaches the goal, or by how much not."""
    if task.goal is None:
        return ""
    short = task.goal - mean(run.score for run in runs)
    return "yes" if short <= 0 else f"no, {short:.3g} short"


def table(tasks: Sequence[Task], runs: RunTable) -> str:
    """A row for each environment and agent that has runs."""
    heads = ("environment", "steps", "agent", "seeds", "score of each", "mean", "IQM (95%)")
    lines = [
        f"| {' | '.join(heads)} | goal | reached |",
        "|---|---:|---|---:|---|---:|---:|---:|---|",
    ]
    for task in tasks:
        for arm in arms_of(task):
            found = runs.of(task.env, task.steps, arm)
            if not found:
                continue
            each = [run.score for run in found]
            middle = f"{interquartile_mean(each):.5g}"
            if len(each) > 2:
                low, high = interval([each])
                middle += f" ({low:.5g} to {high:.5g})"
            goal = "" if task.goal is None else f"{task.goal:g}"
            cells = (
                task.env,
                f"{task.steps:,}",
                arm,
                str(len(found)),
                scores(found),
                f"{mean(each):.5g} ± {pstdev(each):.3g}",
                middle,
                goal,
                verdict(task, found),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def changed(task: Task, options: dict[str, Any]) -> Task:
    """The task with an alternative's options; as it is where it has their distribution or none."""
    if "distribution" in options and task.distribution in (None, options["distribution"]):
        return task
    return replace(task, options=task.options | options)


def table_of_alternatives(tasks: Sequence[Task], runs: RunTable) -> str:
    """A row a task: scores, and of an alternative also its area's share of the defaults'.

    Areas are those of the seeds that both have, and count from a random policy's return on; the
    last row has the geometric mean of the shares that are above 0.
    """
    names = [", ".join(f"{k}={v}" for k, v in options.items()) for options in ALTERNATIVES]
    lines = [
        "| environment | steps | defaults | " + " | ".join(f"`{name}`" for name in names) + " |",
        "|---|---:|---|" + "---|" * len(names),
    ]
    shares: list[list[float]] = [[] for _ in ALTERNATIVES]

    def share_of(ours: Sequence[Run], found: Sequence[Run], task: Task) -> float | None:
        both = {run.seed for run in ours} & {run.seed for run in found}
        if not both:
            return None
        of_found, of_ours = (
            mean(run.area for run in runs if run.seed in both) - task.floor
            for runs in (found, ours)
        )
        return of_found / of_ours if of_ours > 0 else None

    for task in tasks:
        ours = runs.of(task.env, task.steps, task.arm)
        arms = [changed(task, options).arm for options in ALTERNATIVES]
        others = [runs.of(task.env, task.steps, arm) if arm != task.arm else [] for arm in arms]
        if not ours or not any(others):
            continue
        cells = [scores(ours)]
        for found, kept in zip(others, shares, strict=True):
            share = share_of(ours, found, task)
            kept += [share] if share is not None and share > 0 else []
            cells.append(scores(found) + ("" if share is None else f" ({share:.2f})"))
        name = ", ".join([task.env, *(f"{k}={v}" for k, v in task.options.items())])
        lines.append(f"| {name} | {task.steps:,} | {' | '.join(cells)} |")
    means = [f"({geometric_mean(kept):.2f} over {len(kept)})" if kept else "" for kept in shares]
    return "\n".join([*lines, f"| all | | | {' | '.join(means)} |"])


def scores(runs: Sequence[Run]) -> str:
    return ", ".join(f"{run.score:.5g}" for run in runs)


def missing(tasks: Sequence[Task], runs: RunTable) -> str:
    """A sentence that names the environments without a run of ours."""
    names = [t.env for t in tasks if not t.options and not runs.of(t.env, t.steps, t.arm)]
    return f"Not run so far with these defaults: {', '.join(names)}.\n\n" if names else ""


def spent(tasks: Sequence[Task], runs: RunTable) -> str:
    """What the updates of our runs used of the trust region."""
    lines = [
        "| environment | median of kl / max_kl | greatest | updates accepted |",
        "|---|---:|---:|---:|",
    ]
    for task in tasks:
        found = [] if task.options else runs.of(task.env, task.steps, task.arm)
        if found:
            share = np.median([run.share for run in found])
            greatest = max(run.greatest_share for run in found)
            accepted = mean(run.accepted for run in found)
            lines.append(f"| {task.env} | {share:.3f} | {greatest:.4f} | {accepted:.1%} |")
    return "\n".join(lines) + "\n"


def page(tasks: Sequence[Task], runs: RunTable, paces: Path) -> str:
    """The results as Markdown."""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"""# Learning results

Made by `OMP_NUM_THREADS=1 python benchmarks/learning.py` ({versions}, {platform.machine()}, CPU
only), every run as it came. `trpo_fast` is the agent with its defaults, the same for every
environment; a row that is not says so. The score of a run is the mean return of {EPISODES} episodes
after training, acting by the mode of the policy (a Beta by its mean); IQM is the interquartile
mean over seeds with a bootstrap interval (Agarwal et al. 2021), and ± the deviation over seeds.
Goals are the better of every published TRPO and PPO result of several seeds at a million steps, on
whatever version of the environment it was, or what solves the task.
[How the defaults were chosen](choosing-defaults.md).

![Learning curves](assets/learning.png)

{table(tasks, runs)}
{missing(tasks, runs)}Thin lines in the picture are seeds, thick ones their mean: the return of the
last 100 training episodes, in which actions are sampled; the score acts by the mode, so it is
usually higher. Seconds are steps over the steps of a second, which were measured apart (below).
{seconds_to_score(AGENTS, runs, paces)}
## What the updates spent

Of our runs above, with the defaults:

{spent(tasks, runs)}"""


def section_of_headline(path: Path) -> str:
    """What benchmarks/headline.py has put at the end of the page; "" without it."""
    text = path.read_text() if path.exists() else ""
    _, heading, rest = text.partition("## The headline commands")
    return f"\n{heading}{rest}" if heading else ""


def picture(tasks: Sequence[Task], runs: RunTable, paces: Paces, out: Path) -> None:
    """A panel an environment, a colour an agent; with peers also against time, and the profile."""
    shown = [t for t in tasks if not t.options and runs.of(t.env, t.steps, t.arm)]
    beside = [a for a in AGENTS if any(runs.of(t.env, t.steps, a) for t in shown)]
    compared = [t for t in shown if len(beside) > 1 and runs.of(t.env, t.steps, beside[1])]
    panels = [(t, False) for t in shown] + [(t, True) for t in compared]
    if not panels:
        return
    count = len(panels) + bool(compared)
    columns = min(count, 4)
    rows = -(-count // columns)
    figure, axes = new_figure(rows, columns, size=(3.1 * columns, 2.4 * rows))
    for axis in axes[count:]:
        axis.set_visible(False)
    for axis, (task, timed) in zip(axes, panels, strict=False):
        for colour, agent in zip(COLOURS, AGENTS, strict=False):
            # Trainings shared a machine: how fast each is was measured apart.
            speed = pace(paces.get(task.env, []), agent) if timed else 1.0
            if speed:
                curves(axis, runs.of(task.env, task.steps, agent), colour, agent, speed)
        if task.goal is not None:
            axis.axhline(task.goal, color="#555555", linewidth=1, linestyle="--")
        axis.set_title(task.env, fontsize=9)
        axis.set_xlabel("seconds" if timed else "steps", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0].legend(frameon=False, fontsize=7)
    if compared:
        axis = axes[len(panels)]
        at = np.linspace(0, 1.5, 151)
        for colour, agent in zip(COLOURS, AGENTS, strict=False):
            scores = [normalised(t, runs.of(t.env, t.steps, agent)) for t in compared]
            if all(scores):
                axis.plot(at, profile(scores, at), color=colour)
        axis.set_title("share of runs above", fontsize=9)
        axis.set_xlabel("score: random 0, goal 1", fontsize=8)
    save_figure(figure, out)


def normalised(task: Task, runs: Sequence[Run]) -> list[float]:
    """Scores with 0 for a random policy's and 1 for the goal."""
    goal = 0.0 if task.goal is None else task.goal
    return [(run.score - task.floor) / (goal - task.floor) for run in runs]


def curves(axis: Any, runs: Sequence[Run], colour: str, label: str, speed: float) -> None:
    """A thin line a seed and a thick one for their mean, over steps divided by ``speed``."""
    if not runs:
        return
    grid = np.linspace(0.02, 1, 80) * runs[0].steps
    lines = [np.interp(grid, *run.points()) for run in runs]
    for line in lines:
        axis.plot(grid / speed, line, color=colour, linewidth=0.6, alpha=0.5)
    axis.plot(grid / speed, np.mean(lines, 0), color=colour, linewidth=1.8, label=label)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing; then page and picture."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", nargs="+", metavar="ENV_ID", help="these environments alone")
    parser.add_argument("--agents", nargs="+", choices=AGENTS, default=[OURS], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="S", default=[0])
    parser.add_argument("--draw", action="store_true", help="page and picture of what is there")
    parser.add_argument("--alternatives", action="store_true", help="these, not the defaults")
    parser.add_argument("--out", type=Path, default=ROOT, metavar="DIR", help="the project's root")
    options = parser.parse_args(arguments)
    runs = RunTable(options.out / "benchmarks" / "results" / "learning.csv")
    wished: Sequence[Task] = TASKS
    if options.alternatives:
        pairs = [(t, changed(t, o)) for o in ALTERNATIVES for t in TASKS]
        wished = [other for task, other in pairs if other != task]
    if not options.draw:
        for seed in options.seeds:
            for task in wished:
                if options.only is not None and task.env not in options.only:
                    continue
                for arm in arms_of(task):
                    wanted = OURS if arm == task.arm else arm
                    key = (task.env, task.steps, seed, arm)
                    if wanted in options.agents and key not in runs:
                        runs.add(run_once(task, arm, seed))
    at = options.out / "docs" / "learning-results.md"
    at.parent.mkdir(parents=True, exist_ok=True)
    paces = runs.path.with_name("pace.json")
    at.write_text(page(TASKS, runs, paces) + section_of_headline(at))
    choice = at.with_name("choosing-defaults.md")
    if choice.exists():
        put_between((BEGIN, END), choice, table_of_alternatives(TASKS, runs))
    picture(TASKS, runs, read_paces(paces), options.out / "docs" / "assets" / "learning.png")


if __name__ == "__main__":
    main()
