"""What one update costs beside PPO's, on the same rows.

``OMP_NUM_THREADS=N python benchmarks/ppo_update.py [ENV]`` collects 8 x 1024 steps with
Stable-Baselines3's PPO, gives the same observations, actions, advantages and returns to everyone,
and times in turn, in one process: our policy update (with the optimizer's defaults) and critic fit
(10 epochs, minibatches of 128); Stable-Baselines3's PPO for one epoch, for its defaults and for the
zoo's settings; a PPO as CleanRL writes it. Everybody's networks are 2x64. Of every contender the
best of the turns counts, the median stands beside it.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from peer_ppo import PlainPPO, sb3_ppo

from trpo_fast import MlpPolicy, TRPOOptimizer, ValueFunction
from trpo_fast._native import core
from trpo_fast.agent.critic import Critic

ENVS, STEPS = 8, 1024
OURS, ONE_EPOCH = "policy update, trpo_fast", "one epoch, SB3 PPO (minibatches of 64)"


def rows_of(model: Any) -> Any:
    """A rollout as Stable-Baselines3 collects it: all its rows in one batch."""
    model.learn(0)  # what collecting needs is set up
    model.collect_rollouts(model.env, _nobody(model), model.rollout_buffer, n_rollout_steps=STEPS)
    return next(model.rollout_buffer.get())


def _nobody(model: Any) -> Any:
    from stable_baselines3.common.callbacks import CallbackList

    callback = CallbackList([])
    callback.init_callback(model)
    return callback


def ours(model: Any, rows: Any) -> dict[str, Callable[[], float]]:
    """Our policy update and our fit, on those rows."""
    generator = torch.Generator().manual_seed(0)
    policy = MlpPolicy(
        model.observation_space, model.action_space, log_std_init=0.0, generator=generator
    )
    critic = Critic(
        ValueFunction(model.observation_space, (64, 64), generator=generator),
        learning_rate=1e-3,
        epochs=10,
        batch_size=128,
    )
    optimizer = TRPOOptimizer(policy)
    rng = np.random.default_rng(0)
    observations, advantages, returns = (
        getattr(rows, name).float() for name in ("observations", "advantages", "returns")
    )
    start = torch.nn.utils.parameters_to_vector(policy.parameters()).detach().clone()

    def update() -> None:
        optimizer.step(obs=observations, actions=rows.actions, advantages=advantages)
        result = optimizer.last_result
        assert result is not None
        assert result.accepted, result

    def reset() -> None:
        torch.nn.utils.vector_to_parameters(start.clone(), policy.parameters())

    return {
        OURS: _timed(update, reset),
        "critic fit, trpo_fast": _timed(lambda: critic.fit(observations, returns, rng)),
    }


def _timed(
    call: Callable[[], object], before: Callable[[], object] | None = None
) -> Callable[[], float]:
    def measure() -> float:
        if before is not None:
            before()
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    return measure


def peers(env_id: str, model: Any, rows: Any) -> dict[str, Callable[[], float]]:
    """PPO's learning on those rows: the policy's and the values' together."""
    zoo = sb3_ppo(env_id, model.env, zoo=True, n_steps=STEPS)
    zoo.learn(0)
    zoo.rollout_buffer = model.rollout_buffer
    plain = PlainPPO(_Spaces(model), STEPS)
    batch = {
        "observations": rows.observations.float(),
        "actions": rows.actions,
        "log_probs": rows.old_log_prob,
        "values": rows.old_values,
        "advantages": rows.advantages,
        "returns": rows.returns,
    }

    def epochs(number: int) -> None:
        model.n_epochs = number
        model.train()

    return {
        ONE_EPOCH: _timed(partial(epochs, 1)),
        "whole update, SB3 PPO, defaults (10 epochs)": _timed(partial(epochs, 10)),
        f"whole update, SB3 PPO, zoo ({zoo.n_epochs} epochs)": _timed(zoo.train),
        "whole update, CleanRL-style PPO (10 epochs of 32)": _timed(partial(plain.train, batch)),
    }


class _Spaces:
    """As much of a vector of environments as networks are made from."""

    def __init__(self, model: Any) -> None:
        self.single_observation_space = model.observation_space
        self.single_action_space = model.action_space
        self.num_envs = ENVS

    def reset(self, seed: int) -> tuple[Any, dict[str, Any]]:
        del seed
        return np.zeros((ENVS, *self.single_observation_space.shape), np.float32), {}


def main() -> None:
    """Collect, measure in turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("env", nargs="?", default="HalfCheetah-v5")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    from stable_baselines3.common.env_util import make_vec_env

    vector = make_vec_env(options.env, ENVS, seed=0)
    model = sb3_ppo(options.env, vector, zoo=False, n_steps=STEPS)
    rows = rows_of(model)
    calls = {**ours(model, rows), **peers(options.env, model, rows)}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(options.turns + 1):
        for name, call in calls.items():
            taken = call()
            if turn:  # the first only warms up
                seconds[name].append(taken)
    base = min(seconds[OURS])
    assert core is not None
    threads = torch.get_num_threads()
    print(f"{options.env}, {ENVS} x {STEPS} rows, {threads} threads, {core.isa()}")
    print("| | best ms | median ms | times our policy update |\n|---|---:|---:|---:|")
    for name, found in seconds.items():
        best, middle = 1e3 * min(found), 1e3 * median(found)
        print(f"| {name} | {best:.1f} | {middle:.1f} | {min(found) / base:.1f} |")


if __name__ == "__main__":
    main()
