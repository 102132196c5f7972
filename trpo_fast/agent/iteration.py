"""One iteration of a training: a rollout, an update, now and then an evaluation, and their row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from trpo_fast.agent.evaluation import Evaluation
from trpo_fast.agent.shared_training import Counted
from trpo_fast.agent.state import Training
from trpo_fast.base.errors import EnvironmentSetupError
from trpo_fast.base.time_budget import Clock
from trpo_fast.rollouts.rollout import Rollout
from trpo_fast.runs.checkpoint import CheckpointError
from trpo_fast.runs.logger import ITERATION, TIMESTEPS

Row = dict[str, Any]


class Iteration(NamedTuple):
    """What one iteration gave."""

    rollout: Rollout
    row: Row  # for the log
    is_best: bool  # whether its evaluation is the best so far


def enter_environments(training: Training) -> None:
    """Take the environments to where the training's state has them, if they are elsewhere.

    Raises CheckpointError where they cannot get there.
    """
    if training.pending_collector is None:
        return
    try:
        training.collector.restore(training.pending_collector)
    except EnvironmentSetupError:
        raise  # in words, and of no saved episode
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"the saved episodes cannot be replayed: {error}") from error
    training.pending_collector = None


def iterate(training: Training, clock: Clock, evaluate: Callable[[], Evaluation]) -> Iteration:
    """Collect a rollout, learn from it, count, and evaluate where it is time to."""
    learner, config, done = training.learner, training.config, training.progress
    shared = training.shared

    def collect() -> Rollout:
        return training.collector.collect(
            learner.policy,
            learner.normalizer,
            config.rollout_steps,
            training.rng,
            budget=clock.budget,
        )

    counted: Rollout | Counted
    if shared is None:
        rollout = counted = collect()
    else:
        rollout, counted = shared.collect(collect)
    row = learner.update(rollout, training.rng, clock.budget)
    before = done.num_timesteps
    done.num_updates += 1
    done.num_timesteps += counted.num_valid
    row = {**row, **_episode_figures(training, counted)}
    is_best = False
    every = config.eval_every
    here = shared is None or shared.writes  # the others wait for rank 0's evaluation
    if every and here and done.num_timesteps // every > before // every:
        result = evaluate()
        # Not `result.mean > best`: a NaN from an older checkpoint would stay the best.
        is_best = done.best_evaluation is None or not done.best_evaluation >= result.mean
        done.best_evaluation = result.mean if is_best else done.best_evaluation
        row["eval/mean_reward"], row["eval/std_reward"] = result.mean, result.std
        row["eval/mean_ep_length"] = result.mean_length
    row |= {ITERATION: done.num_updates, TIMESTEPS: done.num_timesteps}
    if shared is not None:
        row |= shared.figures()
        done.ranks = shared.ranks.count
    row |= clock.figures(done.num_timesteps)
    done.time_elapsed = row["time/time_elapsed"]
    return Iteration(rollout, row, is_best)


def _episode_figures(training: Training, rollout: Rollout | Counted) -> Row:
    returns, lengths, done = training.recent_returns, training.recent_lengths, training.progress
    returns.extend(rollout.episode_returns)
    lengths.extend(rollout.episode_lengths)
    done.num_episodes += len(rollout.episode_returns)
    done.dropped_episodes += rollout.dropped_episodes
    return {
        "rollout/ep_rew_mean": float(np.mean(returns)) if returns else None,
        "rollout/ep_len_mean": float(np.mean(lengths)) if lengths else None,
        "rollout/episodes": done.num_episodes,
        "rollout/dropped_episodes": done.dropped_episodes,
    }
