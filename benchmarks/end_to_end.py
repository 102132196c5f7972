"""Whole training iterations beside sb3-contrib, PPO, and the environments alone.

``python benchmarks/end_to_end.py [ENV ...] --out benchmarks/results/end_to_end.json`` measures, and
adds its turns to those that the file holds; ``--page docs/end-to-end.md --figure FIGURE.png``
writes the results of --out into a page. Each contender runs in a process of its own, and turns are
interleaved (alone, trpo_fast, sb3-contrib, alone, ...). On a shared machine whatever disturbs only
slows down, two threads more than one: the speeds are each contender's best over the turns, with the
median in brackets; a ratio is that of the bests, with median and range of the single turns. "Core
ms" are the CPU milliseconds of an iteration over all threads of the contender's process, waiting
threads that spin included: over the number of cores, what a schedule without a gap would take.

The same iteration for both: B environments x T steps, a 2x64 tanh policy and value function, 10 CG
iterations, 10 critic epochs of minibatches of 128, without normalisation by either (sb3-contrib's
is a wrapper that costs it more). "trpo_fast, defaults" is trpo_fast with its own defaults:
observation and reward normalisation, and whatever else they hold; "trpo_fast, sync" stands beside
"trpo_fast" where that may step in other processes. The PPOs have the same networks
and rollouts, and epochs and minibatches of their own (peer_ppo.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
CASES = {  # environments, steps
    "auto": (8, 1024),
    "sync": (8, 1024),
    "workers": (8, 1024),
    "async": (8, 1024),
    "envpool": (64, 128),
}
ELSEWHERE = ("auto", "workers")  # which may step in other processes, without a pickle
EPOCHS, BATCH_ROWS = 10, 128
# Of each contender: at least so many, and as many as this time holds.
ITERATIONS, SECONDS = 3, 2.0
SPEED = "steps_per_second"
SYNC = "trpo_fast, sync"
Figures = dict[str, Any]


def alone(env_id: str, kind: str, envs: int, steps: int) -> Figures:
    """The environments by themselves, as their library steps them, actions drawn beforehand."""
    import gymnasium

    rng = np.random.default_rng(0)
    if kind != "envpool":
        # gymnasium has no workers: its own vector in one process is what they stand beside.
        own = "sync" if kind in ELSEWHERE else kind
        vector: Any = gymnasium.make_vec(env_id, envs, vectorization_mode=own)
        space = vector.single_action_space
    else:
        import envpool

        threads = len(os.sched_getaffinity(0))
        vector = envpool.make(
            env_id, env_type="gymnasium", num_envs=envs, seed=0, num_threads=threads
        )
        space = vector.action_space
    if isinstance(space, gymnasium.spaces.Box):
        drawn = rng.uniform(space.low, space.high, (steps, envs, *space.shape))
    else:
        drawn = rng.integers(0, space.n, (steps, envs)).astype(float)
    actions = drawn.astype(space.dtype)
    vector.reset()

    def iteration() -> None:
        for row in actions:
            vector.step(row)

    figures = timed(iteration)
    vector.close()
    return figures


def ours(env_id: str, kind: str, envs: int, steps: int, *, plain: bool) -> Figures:
    """trpo_fast's agent; `plain` without normalisation, as the peer."""
    from trpo_fast import TRPO

    same = {"normalize_observations": False, "normalize_rewards": False} if plain else {}
    agent = TRPO(
        env_id,
        num_envs=envs,
        rollout_steps=steps,
        vectorization=kind,
        critic_epochs=EPOCHS,
        critic_batch_size=BATCH_ROWS,
        seed=0,
        step_size="damped",  # the peers' rule, their region and their policy
        max_kl_per="action",
        distribution="gaussian",
        **same,  # type: ignore[arg-type]
    )
    budgets = []

    def iteration() -> None:
        agent.learn(1, progress_bar=False)
        budgets.append(dict(agent.time_budget))

    figures = {**timed(iteration), "vectorization": agent.vectorization}
    agent.close()
    best = min(budgets[1:], key=lambda budget: sum(budget.values()))
    return {**figures, "budget": best}


def peer(env_id: str, kind: str, envs: int, steps: int) -> Figures:
    """sb3-contrib with the vectorization its documentation names: DummyVecEnv or SubprocVecEnv."""
    from sb3_contrib import TRPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    vector = make_vec_env(
        env_id, envs, seed=0, vec_env_cls=SubprocVecEnv if kind == "subproc" else DummyVecEnv
    )
    model = TRPO(
        "MlpPolicy",
        vector,
        n_steps=steps,
        batch_size=BATCH_ROWS,
        n_critic_updates=EPOCHS,
        cg_max_steps=10,
        device="cpu",
        seed=0,
    )
    figures = timed(lambda: model.learn(envs * steps, reset_num_timesteps=False))
    vector.close()
    return figures


def ppo(env_id: str, _: str, envs: int, steps: int, *, zoo: bool) -> Figures:
    """Stable-Baselines3's PPO on as many steps, in DummyVecEnv; only its learning is the zoo's."""
    from peer_ppo import sb3_ppo
    from stable_baselines3.common.env_util import make_vec_env

    vector = make_vec_env(env_id, envs, seed=0)
    model = sb3_ppo(env_id, vector, zoo=zoo, n_steps=steps)
    figures = timed(lambda: model.learn(envs * steps, reset_num_timesteps=False))
    vector.close()
    return figures


def plain_ppo(env_id: str, _: str, envs: int, steps: int) -> Figures:
    """PPO as CleanRL writes it, in gymnasium's SyncVectorEnv."""
    import gymnasium
    from peer_ppo import PlainPPO

    vector = gymnasium.make_vec(env_id, envs, vectorization_mode="sync")
    model = PlainPPO(vector, steps)
    figures = timed(lambda: model.train(model.collect()))
    vector.close()
    return figures


def timed(iteration: Callable[[], object]) -> Figures:
    """The fastest of a few iterations after a first one that only warms up, and its CPU time."""
    iteration()
    found: list[tuple[float, float]] = []
    while len(found) < ITERATIONS or sum(seconds for seconds, _ in found) < SECONDS:
        began, used = time.perf_counter(), time.process_time()
        iteration()
        found.append((time.perf_counter() - began, time.process_time() - used))
    seconds, core_seconds = min(found)
    return {"seconds": seconds, "core_seconds": core_seconds}


CONTENDERS: dict[str, Callable[..., Figures]] = {
    "environments alone": alone,
    "trpo_fast": lambda *case: ours(*case, plain=True),
    "trpo_fast, defaults": lambda *case: ours(*case, plain=False),
    SYNC: lambda env_id, _, *size: ours(env_id, "sync", *size, plain=True),
    "sb3-contrib": peer,
    "sb3-contrib, subproc": lambda env_id, _, *size: peer(env_id, "subproc", *size),
    "SB3 PPO": lambda *case: ppo(*case, zoo=False),
    "SB3 PPO, zoo": lambda *case: ppo(*case, zoo=True),
    "plain PPO": plain_ppo,
}


def measure(env_id: str, kind: str, contender: str) -> Figures:
    """One contender's turn, in a fresh process."""
    words = [sys.executable, __file__, "--one", env_id, kind, contender]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{contender} on {env_id}: {ran.stderr[-2000:]}")
    figures: Figures = json.loads(ran.stdout.splitlines()[-1])
    print(f"{env_id:16} {kind:8} {contender:22} {figures[SPEED]:10.0f} steps/s")
    return figures


def one(env_id: str, kind: str, contender: str) -> None:
    warnings.simplefilter("ignore")
    envs, steps = CASES[kind]
    figures = CONTENDERS[contender](env_id, kind, envs, steps)
    figures[SPEED] = envs * steps / figures["seconds"]
    print(json.dumps(figures))


def run(options: argparse.Namespace) -> None:
    out = options.out
    document: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    wanted = [name for name in CONTENDERS if name not in options.skip]
    for env_id in options.envs:
        for kind in options.kinds:
            names = [name for name in wanted if name != SYNC or kind in ELSEWHERE]
            if options.replace:
                document.pop(f"{env_id} {kind}", None)
            # The peer has no EnvPool of its own: its best vectorization is measured beside it.
            for _ in range(options.turns):
                turn = {name: measure(env_id, kind, name) for name in names}
                document.setdefault(f"{env_id} {kind}", []).append(turn)
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(document, indent=1) + "\n")


def best(turns: list[dict[str, Figures]], name: str) -> float:
    """The most steps/s that a contender made in any turn; 0 where it was in none."""
    return max((float(turn[name][SPEED]) for turn in turns if name in turn), default=0.0)


def speed(turns: list[dict[str, Figures]], name: str) -> str:
    """A contender's best and, in brackets, its median."""
    found = [float(turn[name][SPEED]) for turn in turns if name in turn]
    return f"{max(found):,.0f} ({median(found):,.0f})" if found else "-"


def ratio(turns: list[dict[str, Figures]], name: str, other: str) -> str:
    """Best over best; the median and the range of the turns that hold both."""
    found = [turn[name][SPEED] / turn[other][SPEED] for turn in turns if {name, other} <= {*turn}]
    if not found:
        return "-"
    whole = best(turns, name) / best(turns, other)
    return f"{whole:.2f} ({median(found):.2f}, {min(found):.2f}-{max(found):.2f})"


def core_milliseconds(turns: list[dict[str, Figures]], name: str) -> str:
    """The least CPU time of an iteration; turns taken before it was noted have none."""
    found = [turn[name]["core_seconds"] for turn in turns if "core_seconds" in turn.get(name, {})]
    return f"{1e3 * min(found):.0f}" if found else "-"


def tables(document: dict[str, list[dict[str, Figures]]]) -> str:
    shares = ["trpo_fast / alone", "/ sb3-contrib's best", "/ SB3 PPO, zoo"]
    heads = ["environment", "B x T", "turns", *CONTENDERS, *shares]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for key, turns in document.items():
        envs, steps = CASES[key.split()[1]]
        speeds = {name: best(turns, name) for name in CONTENDERS}
        peer_name = max(("sb3-contrib", "sb3-contrib, subproc"), key=lambda name: speeds[name])
        cells = [key.replace(" ", ", "), f"{envs} x {steps}", str(len(turns))]
        cells += [speed(turns, name) for name in CONTENDERS]
        others = ("environments alone", peer_name, "SB3 PPO, zoo")
        cells += [ratio(turns, "trpo_fast", other) for other in others]
        lines.append("| " + " | ".join(cells) + " |")
    phases = list(next(iter(document.values()))[0]["trpo_fast"]["budget"])
    lines += ["", "Milliseconds of one iteration of trpo_fast:", ""]
    heads = ["environment", *phases, "core ms", "core ms, environments alone"]
    lines += ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for key, turns in document.items():
        budget = min((turn["trpo_fast"] for turn in turns), key=lambda t: t["seconds"])["budget"]
        cells = [f"{1e3 * budget[phase]:.1f}" for phase in phases]
        cells += [core_milliseconds(turns, name) for name in ("trpo_fast", "environments alone")]
        lines.append(f"| {key.replace(' ', ', ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(document: dict[str, list[dict[str, Figures]]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    colours = {
        "environments alone": "#bbbbbb",
        "trpo_fast": "#1f77b4",
        "sb3-contrib": "#ff7f0e",
        "sb3-contrib, subproc": "#ffbb78",
        "SB3 PPO, zoo": "#2ca02c",
        "plain PPO": "#98df8a",
    }
    fig, axes = plt.subplots(1, len(document), figsize=(1.8 * len(document), 3), squeeze=False)
    bars: Any = None
    for axis, (key, turns) in zip(axes[0], document.items(), strict=True):
        speeds = [best(turns, name) for name in colours]
        bars = axis.bar(range(len(colours)), speeds, color=list(colours.values()))
        axis.set_title(key.replace(" ", "\n"), fontsize=8)
        axis.set_xticks([])
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("steps per second", fontsize=8)
    fig.legend(bars, list(colours), loc="lower center", ncols=6, fontsize=6, frameon=False)
    fig.tight_layout(rect=(0, 0.08, 1, 1))
    fig.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("envs", nargs="*", metavar="ENV", help="gymnasium ids to measure")
    parser.add_argument("--kinds", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--skip", nargs="+", default=[], choices=CONTENDERS, help="not in further turns"
    )
    parser.add_argument(
        "--replace", action="store_true", help="forget the earlier turns of what is measured"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/end_to_end.json"))
    parser.add_argument("--page", type=Path, help="rewrite what stands between its markers")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--one", nargs=3, metavar="WORD", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(*options.one)
        return
    if options.envs:
        run(options)
    document = json.loads(options.out.read_text())
    if options.page:
        head, _, rest = options.page.read_text().partition(BEGIN)
        tail = rest.partition(END)[2]
        options.page.write_text(f"{head}{BEGIN}\n\n{tables(document)}\n\n{END}{tail}")
    if options.figure:
        figure(document, options.figure)


if __name__ == "__main__":
    main()
