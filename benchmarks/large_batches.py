"""The update of locomotion tasks on tensor simulators: trpo_fast.rsl_rl beside rsl_rl's PPO.

``python benchmarks/large_batches.py [--observations 48] [--minibatches N] [--turns N]
[--ours NAME=VALUE ...]`` prints the table of docs/gpu-simulators.md: 4,096 environments of 24
steps, 12 actions, actor and critic with hidden layers of 512, 256 and 128 and ELU, the
configuration that rsl_rl's users write. The rollout, the networks' start and the configuration are
the same for both. PPO's update is 5 epochs of 4 minibatches, which are all alike: ``--minibatches``
measures so many of the 20 and takes the rest in proportion. ``--ours`` sets entries of our
configuration, ``fisher_fraction=0.25`` say. Within a turn each runs once after the other; a ratio
is the median over the turns.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from collections.abc import Iterator
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

ENVS, STEPS, ACTIONS, HIDDEN = 4096, 24, 12, [512, 256, 128]
EPOCHS, MINIBATCHES = 5, 4
OURS, THEIRS = "trpo_fast.rsl_rl:TRPO", "rsl_rl.algorithms:PPO"


def configuration(
    name: str, steps: int = STEPS, hidden: list[int] = HIDDEN, **entries: Any
) -> dict[str, Any]:
    """What a task's configuration says, with the one line that differs."""
    network = {"class_name": "rsl_rl.models:MLPModel", "hidden_dims": hidden, "activation": "elu"}
    head = {"class_name": "rsl_rl.modules.distribution:GaussianDistribution", "init_std": 1.0}
    return {
        "num_steps_per_env": steps,
        "multi_gpu": None,
        "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
        "algorithm": {
            "class_name": name,
            "num_learning_epochs": EPOCHS,
            "num_mini_batches": MINIBATCHES,
            "clip_param": 0.2,
            "gamma": 0.99,
            "lam": 0.95,
            "value_loss_coef": 1.0,
            "entropy_coef": 0.005,
            "learning_rate": 1e-3,
            "max_grad_norm": 1.0,
            "use_clipped_value_loss": True,
            "schedule": "adaptive",
            "desired_kl": 0.01,
            **entries,
        },
        "actor": {**network, "distribution_cfg": head},
        "critic": network,
    }


def algorithm(
    name: str, envs: int, steps: int, width: int, hidden: list[int], **entries: Any
) -> Any:
    """An algorithm with a full storage, the same for each name."""
    from rsl_rl.utils import resolve_callable
    from tensordict import TensorDict

    def observations() -> TensorDict:
        return TensorDict({"policy": torch.randn(envs, width)}, batch_size=[envs])

    torch.manual_seed(1)
    cfg = configuration(name, steps, hidden, **entries)
    env = SimpleNamespace(num_envs=envs, num_actions=ACTIONS)
    kind: Any = resolve_callable(name)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the networks
        made = kind.construct_algorithm(observations(), env, cfg, "cpu")
    made.train_mode()
    torch.manual_seed(2)
    obs = observations()
    with torch.inference_mode():
        for _ in range(steps):
            actions = made.act(obs)
            # Something to learn: random rewards would leave the critic nothing but their mean.
            rewards = -(actions[:, 0] - obs["policy"][:, 0]).square()
            obs = observations()
            made.process_env_step(obs, rewards, torch.rand(envs) < 0.02, {})
        made.compute_returns(obs)
    return made


def entries_of(words: list[str]) -> dict[str, Any]:
    """Entries of a configuration from ``NAME=VALUE``, values as JSON has them."""
    return {name: json.loads(value) for name, value in (word.split("=") for word in words)}


def refill(made: Any) -> None:
    """The storage counts as full again; what it holds is still there."""
    made.storage.step = made.storage.num_transitions_per_env


def ppo_seconds(made: Any, minibatches: int) -> float:
    """One update of PPO, from so many of its minibatches."""
    whole = made.storage.mini_batch_generator

    def some(*counts: int) -> Iterator[Any]:
        for number, batch in enumerate(whole(*counts)):
            if number == minibatches:
                return
            yield batch

    made.storage.mini_batch_generator = some
    start = time.perf_counter()
    made.update()
    seconds = time.perf_counter() - start
    made.storage.mini_batch_generator = whole
    refill(made)
    return seconds * EPOCHS * MINIBATCHES / minibatches


def trpo_seconds(made: Any) -> tuple[float, float]:
    """One whole update of ours, and the part of it that is the policy's step."""
    spent: list[float] = []
    step = made.policy_optimizer.step

    def timed(*given: Any, **batch: Any) -> Any:
        start = time.perf_counter()
        found = step(*given, **batch)
        spent.append(time.perf_counter() - start)
        return found

    made.policy_optimizer.step = timed
    start = time.perf_counter()
    made.update()
    seconds = time.perf_counter() - start
    made.policy_optimizer.step = step
    refill(made)
    if not made.last_result.accepted:
        raise RuntimeError(f"a step that is refused is none to time: {made.last_result.status}")
    return seconds, spent[0]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print one row of the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--observations", type=int, default=48)
    parser.add_argument("--envs", type=int, default=ENVS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN)
    parser.add_argument("--minibatches", type=int, default=4, choices=range(1, 21))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--ours", nargs="*", default=[], metavar="NAME=VALUE")
    args = parser.parse_args(arguments)
    entries = entries_of(args.ours)
    sizes = (args.envs, args.steps, args.observations, args.hidden)
    ours, theirs = algorithm(OURS, *sizes, **entries), algorithm(THEIRS, *sizes)
    trpo_seconds(ours)  # memory is touched, statistics of the preconditioner are made
    ppo_seconds(theirs, 1)
    turns = [
        (ppo_seconds(theirs, args.minibatches), *trpo_seconds(ours)) for _ in range(args.turns)
    ]
    ppo, whole, step = (median(column) for column in zip(*turns, strict=True))
    ratios = [median(p / found[i] for p, *found in turns) for i in (0, 1)]
    print("| observations | rsl_rl's PPO | ours, whole update | ratio | its policy step | ratio |")
    print("|---:|---:|---:|---:|---:|---:|")
    print(
        f"| {args.observations} | {ppo:.2f} s | {whole:.2f} s | {ratios[0]:.1f}x | {step:.2f} s "
        f"| {ratios[1]:.1f}x |"
    )
    result = ours.last_result
    print(
        f"threads {torch.get_num_threads()}, path {ours.policy_optimizer.path}, backend "
        f"{result.backend}, {result.cg_iters} CG iterations, KL {result.kl:.4f}"
    )


if __name__ == "__main__":
    main()
