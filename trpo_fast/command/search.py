"""A search for better options: trials of Optuna, each a short training or several.

Needs the extra `tune`. A study is kept in an SQLite file, which several processes may work on and
Optuna's own tools read.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trpo_fast.agent.agent import TRPO
from trpo_fast.agent.config import ConfigError
from trpo_fast.runs.lock import alone_in

if TYPE_CHECKING:
    import optuna

# Looks at a training, and the first at which a trial may be stopped.
LOOKS, WARM_UP = 10, 3
# Trials that finish before any is stopped.
UNPRUNED = 5


@dataclass(frozen=True)
class Range:
    """What is searched of an option: numbers between two, by their logarithm or not; or choices."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    def ask(self, trial: optuna.Trial, name: str) -> Any:
        """A value that the sampler draws."""
        if not self.choices:
            return trial.suggest_float(name, self.low, self.high, log=self.log)
        drawn = trial.suggest_categorical(name, [_kept(choice) for choice in self.choices])
        return self.read(drawn)

    def read(self, kept: Any) -> Any:
        """A value from what a study keeps of it."""
        return next((choice for choice in self.choices if _kept(choice) == kept), kept)

    def described(self) -> str:
        """As a study remembers it."""
        if self.choices:
            return " or ".join(str(_kept(choice)) for choice in self.choices)
        return f"{self.low:g} to {self.high:g}"

    def holds(self, value: Any) -> bool:
        """Whether a value can be drawn."""
        return value in self.choices if self.choices else self.low <= value <= self.high


def _kept(choice: Any) -> Any:
    """A choice as a study keeps it, which has no lists."""
    return " ".join(map(str, choice)) if isinstance(choice, tuple) else choice


# Around the defaults, which are in it: what docs/choosing-defaults.md has found to matter.
SPACE = {
    "max_kl": Range(0.002, 0.05, log=True),
    "damping": Range(0.01, 1.0, log=True),
    "gamma": Range(choices=(0.95, 0.98, 0.99, 0.995, 0.999)),
    "lam": Range(choices=(0.9, 0.95, 0.97, 0.99)),
    "rollout_steps": Range(choices=(64, 128, 256, 512, 1024)),
    "critic_epochs": Range(choices=(5, 10, 20)),
    "critic_lr": Range(3e-4, 3e-3, log=True),
    "log_std_init": Range(-3.0, 1.0),
    "hidden_sizes": Range(choices=((32, 32), (64, 64), (128, 128), (256, 256))),
}


@dataclass(frozen=True)
class Task:
    """What each trial does.

    Attributes:
        env_id: the environment.
        options: those of the agent that are not searched.
        searched: names of those that are, of ``SPACE``.
        steps: of each training.
        seeds: one training each; a trial's score is their mean.
    """

    env_id: str
    options: Mapping[str, Any]
    searched: tuple[str, ...]
    steps: int
    seeds: tuple[int, ...]

    def described(self) -> dict[str, Any]:
        """What must not change while a study goes on, as JSON has it."""
        return {
            "environment": self.env_id,
            "options": {name: repr(value) for name, value in sorted(self.options.items())},
            "searched": {name: SPACE[name].described() for name in sorted(self.searched)},
            "total steps": self.steps,
            "seeds": list(self.seeds),
        }

    def score(self, trial: optuna.Trial) -> float:
        """The mean return of the last 100 episodes of a trial's trainings.

        Raises optuna.TrialPruned where others did better so far, ConfigError where no episode
        ends.
        """
        drawn = {name: SPACE[name].ask(trial, name) for name in self.searched}
        scores = list[float]()
        for number, seed in enumerate(self.seeds):
            with TRPO(self.env_id, **{**self.options, **drawn, "seed": seed}) as agent:
                look = partial(_look, trial, self.steps, number * LOOKS, scores)
                agent.learn(self.steps, callback=look, progress_bar=False)
                returns = agent.training.recent_returns
                if not returns:
                    raise ConfigError(
                        f"no episode of {self.env_id} has ended within {self.steps} steps, so that "
                        "there is nothing to compare: raise --total-steps"
                    )
                scores.append(statistics.fmean(returns))
        return statistics.fmean(scores)


def _look(
    trial: optuna.Trial,
    steps: int,
    before: int,
    scores: list[float],
    local: Mapping[str, Any],
    _global: Mapping[str, Any],
) -> None:
    """Tell the study how a training does, at steps that all trials have in common."""
    import optuna

    agent = local["self"]
    step = before + min(agent.num_timesteps * LOOKS // steps, LOOKS)
    returns = agent.training.recent_returns
    if step > max(trial.user_attrs.get("looked", 0), before) and returns:
        trial.set_user_attr("looked", step)
        trial.report(statistics.fmean([*scores, statistics.fmean(returns)]), step)
        if step < before + LOOKS and trial.should_prune():
            raise optuna.TrialPruned


def open_study(file: Path, task: Task, defaults: Mapping[str, Any]) -> optuna.Study:
    """The study in an SQLite file, made where there is none; its first trial has the defaults.

    Several processes may begin on one file at once: one makes it, the others find it.

    Args:
        file: where it is kept.
        task: what each trial does.
        defaults: of the options that are searched.

    Raises ConfigError for one of another search, or a file that is no study.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with alone_in(file.parent):
            study = _made(file)
            known, wanted = study.user_attrs.get("task"), task.described()
            if known is None:
                first = {name: defaults[name] for name in task.searched}
                study.enqueue_trial({k: _kept(v) for k, v in first.items() if SPACE[k].holds(v)})
                study.set_user_attr("task", wanted)
    except Exception as error:
        why = str(error.__cause__ or error).partition("\n")[0]  # the rest is SQLAlchemy's own
        raise ConfigError(f"the study {file} cannot be used: {why}") from error
    if known not in (None, wanted):
        changed = [f"{k}: {known.get(k)} -> {v}" for k, v in wanted.items() if known.get(k) != v]
        raise ConfigError(
            f"the study {file} is of another search: name another --study, or go back to\n  "
            + "\n  ".join(changed)
        )
    return study


def _made(file: Path) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(
        storage=f"sqlite:///{file}",
        study_name="trpo-fast",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(UNPRUNED, WARM_UP),
    )


def search(
    study: optuna.Study,
    task: Task,
    trials: int,
    tell: Callable[[optuna.trial.FrozenTrial], None],
) -> None:
    """Make trials until the study has so many that ended.

    What a trial draws follows from the task's first seed, its number and the trials before it.

    Args:
        study: where they are kept.
        task: what each of them does.
        trials: how many, those that are there included.
        tell: called with each, once it has ended.

    Raises what ends a training, such as EnvironmentFault; that trial counts as failed, and the
    search goes on with another when it is begun again.
    """
    import optuna

    def score(trial: optuna.Trial) -> float:
        # Its number no other process on the study has, and none had before.
        sources = np.random.SeedSequence((task.seeds[0], trial.number)).generate_state(1)
        study.sampler = optuna.samplers.TPESampler(seed=int(sources[0]))
        return task.score(trial)

    while len(ended(study)) < trials:
        study.optimize(score, n_trials=1, callbacks=[lambda _, trial: tell(trial)])


def ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that have run to their end or were stopped by the others' scores."""
    return [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]


def best_options(study: optuna.Study, task: Task) -> dict[str, Any] | None:
    """The options of the best trial, with those that were not searched; None without one."""
    if not any(trial.state.name == "COMPLETE" for trial in study.trials):
        return None
    drawn = {name: SPACE[name].read(value) for name, value in study.best_params.items()}
    return {**task.options, **drawn}
