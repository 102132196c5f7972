"""Samples to a score in rsl_rl's own runner: trpo_fast.rsl_rl.TRPO beside rsl_rl's PPO.

``python benchmarks/rsl_rl_learning.py [--seeds N] [--ours NAME=VALUE ...] [--out FILE.json]``
trains both on the torch Pendulum and on CartPole with a continuous action
(``tests/tensor_environments.py``): 512 environments, 24 steps a rollout, two hidden layers of 64
with ELU, normalised observations, and the configuration that rsl_rl's users write, in which one
line differs. Scores are mean returns of the last 100 episodes that ended, looked at after each
rollout; a run ends with the one that reaches it. Rewards are a tenth of the environment's.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from collections import deque
from importlib import import_module
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from large_batches import OURS, THEIRS, configuration, entries_of

ENVS, STEPS, SCALE = 512, 24, 0.1
SCORES = {"Pendulum": -200.0, "CartPole": 475.0}
ITERATIONS = {"Pendulum": 120, "CartPole": 60}
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


class _ReachedError(Exception):
    """The score is reached: the way out of the runner's loop."""


def counted(name: str, envs: int, seed: int) -> Any:
    """The environment as rsl_rl takes it; ``scores`` has the score after each rollout."""
    found: Any = import_module("tensor_environments")

    class Counted(found.VecEnv):  # type: ignore[misc]
        def __init__(self, env: Any) -> None:
            super().__init__(env)
            # The runner begins amid episodes: the first of each environment do not count.
            self.running = torch.full((env.num_envs,), float("nan"))
            self.scores: list[float] = []
            self.steps = 0
            self.ended: deque[float] = deque(maxlen=100)

        def step(self, actions: torch.Tensor) -> Any:
            obs, reward, dones, extras = super().step(actions)
            self.running = self.running + reward
            ended = self.running[dones]
            self.ended.extend(ended[ended.isfinite()].tolist())
            self.running = torch.where(dones, 0.0, self.running)
            self.steps += 1
            if self.steps % STEPS == 0:
                self.scores.append(fmean(self.ended) if self.ended else float("nan"))
                if self.scores[-1] >= SCORES[name]:
                    raise _ReachedError
            return obs, SCALE * reward, dones, extras

    return Counted(getattr(found, f"Tensor{name}")(envs, seed=seed))


def trained(
    algorithm: str, name: str, seed: int, iterations: int, envs: int, **entries: Any
) -> dict[str, Any]:
    """One run: the score after each rollout, and the seconds of the whole."""
    from rsl_rl.runners import OnPolicyRunner

    torch.manual_seed(seed)
    env = counted(name, envs, seed)
    cfg = configuration(algorithm, STEPS, [64, 64], **entries)
    for network in ("actor", "critic"):
        cfg[network]["obs_normalization"] = True
    with contextlib.redirect_stdout(io.StringIO()):
        runner = OnPolicyRunner(env, cfg, None, "cpu")
        start, reached = time.perf_counter(), False
        try:
            # Otherwise all the episodes of Pendulum end at once.
            runner.learn(iterations, init_at_random_ep_len=True)
        except _ReachedError:
            reached = True
    seconds = time.perf_counter() - start
    return {
        "algorithm": algorithm,
        "environment": name,
        "seed": seed,
        "samples_to_score": envs * STEPS * len(env.scores) if reached else None,
        "seconds": seconds,
        "scores": [round(score, 2) for score in env.scores],
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Medians over the seeds; a run that never reaches the score counts as the longest."""
    lines = ["| environment, score | algorithm | samples to it | each seed |"]
    lines.append("|---|---|---:|---:|")
    for name, score in SCORES.items():
        for algorithm in (THEIRS, OURS):
            own = [r for r in runs if (r["environment"], r["algorithm"]) == (name, algorithm)]
            if not own:
                continue
            reached = [r["samples_to_score"] for r in own]
            middle = median(float("inf") if x is None else x for x in reached)
            each = ", ".join("-" if x is None else f"{x:,}" for x in reached)
            lines.append(f"| {name}, {score:.0f} | {algorithm} | {middle:,.0f} | {each} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Train, print the table, write the runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--envs", type=int, default=ENVS)
    parser.add_argument("--iterations", type=int, help="default: 120 for Pendulum, 60 for CartPole")
    parser.add_argument("--environments", nargs="+", default=list(SCORES), choices=list(SCORES))
    parser.add_argument("--ours", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    runs: list[dict[str, Any]] = []
    for name in args.environments:
        for seed in range(args.seeds):
            for algorithm in (THEIRS, OURS):
                length = args.iterations or ITERATIONS[name]
                own = entries_of(args.ours) if algorithm == OURS else {}
                runs.append(trained(algorithm, name, seed, length, args.envs, **own))
                last = {key: value for key, value in runs[-1].items() if key != "scores"}
                print(json.dumps(last), flush=True)
                if args.out is not None:
                    args.out.write_text(json.dumps(runs))
    print(table(runs))


if __name__ == "__main__":
    main()
