"""Plain policy gradient with growing step sizes collapses; TRPO with growing regions does not.

    python examples/policy_collapse.py --out policy-collapse.png

CartPole, one loop, two updates of the policy: ``theta + lr g`` (what torch.optim.SGD does) and
``TRPOOptimizer``. Each is run with step sizes over two orders of magnitude. Too short a step learns
slowly by either. Too long a step of the gradient moves the policy so far that the next batch comes
from another policy altogether, from which it may not return: a step size is in parameters, and what
it does to the actions changes all the time. ``max_kl`` is in what the actions do.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import torch
from torch.distributions import kl_divergence

from trpo_fast import MlpPolicy, TRPOOptimizer, ValueFunction, compute_gae

ENV, ENVS, STEPS = "CartPole-v1", 8, 128
BEST = 500.0  # return of an episode that lasts to its end
RATES = (0.3, 3.0, 30.0)
REGIONS = (0.001, 0.01, 0.1)


@dataclass(frozen=True)
class Run:
    """One training, update by update: mean return of the last 20 episodes, and KL(old, new)."""

    returns: list[float]
    kls: list[float]


def train(method: str, size: float, updates: int, seed: int) -> Run:
    """Train with ``method`` "gradient" (``size`` is lr) or "trpo" (``size`` is max_kl)."""
    torch.manual_seed(seed)
    envs = gymnasium.make_vec(
        ENV,
        ENVS,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP},
    )
    spaces = envs.single_observation_space, envs.single_action_space
    policy, critic = MlpPolicy(*spaces), ValueFunction(spaces[0])
    fit = torch.optim.Adam(critic.parameters(), lr=2e-3, fused=True)
    if method == "trpo":
        optimizer: torch.optim.Optimizer = TRPOOptimizer(policy, max_kl=size)
    else:
        optimizer = torch.optim.SGD(policy.parameters(), lr=size, maximize=True)

    def value(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return critic(torch.as_tensor(rows, dtype=torch.float32)).numpy()

    shape = STEPS, ENVS
    rewards, finals = (np.zeros(shape, np.float32) for _ in range(2))
    terminated, truncated = (np.zeros(shape, bool) for _ in range(2))
    run, episodes, running = Run([], []), [0.0], np.zeros(ENVS)
    obs, _ = envs.reset(seed=seed)
    for _ in range(updates):
        seen, taken = [], []
        for t in range(STEPS):
            seen.append(torch.as_tensor(obs, dtype=torch.float32))
            with torch.no_grad():
                taken.append(policy(seen[-1]).sample())
            obs, rewards[t], terminated[t], truncated[t], info = envs.step(taken[-1].numpy())
            running += rewards[t]
            for i in np.flatnonzero(terminated[t] | truncated[t]):
                episodes.append(float(running[i]))
                running[i], finals[t, i] = 0.0, value(info["final_obs"][i][None])[0]
        batch, actions = torch.cat(seen), torch.cat(taken)
        values = value(batch.numpy()).reshape(shape)
        advantages, targets = compute_gae(
            rewards, values, terminated, truncated, value(obs), final_values=finals
        )
        advantage = torch.as_tensor(advantages).flatten()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        with torch.no_grad():
            old = policy(batch)
        if isinstance(optimizer, TRPOOptimizer):
            optimizer.step(obs=batch, actions=actions, advantages=advantage)
        else:
            optimizer.zero_grad()
            (policy(batch).log_prob(actions) * advantage).mean().backward()
            optimizer.step()
        with torch.no_grad():
            run.kls.append(float(kl_divergence(old, policy(batch)).mean()))
        run.returns.append(float(np.mean(episodes[-20:])))
        goal = torch.as_tensor(targets).flatten()
        for _ in range(5):
            for rows in torch.randperm(len(batch)).split(128):
                fit.zero_grad()
                (critic(batch[rows]) - goal[rows]).square().mean().backward()
                fit.step()
    envs.close()
    return run


def draw(runs: dict[str, dict[float, list[Run]]], out: Path) -> None:
    """Returns of every run, a colour a size; the KL of each update of the largest sizes."""
    from matplotlib.figure import Figure

    colours = ("#56B4E9", "#009E73", "#D55E00")  # Okabe & Ito 2008
    figure = Figure(figsize=(10.5, 3.1), layout="constrained")
    axes = figure.subplots(1, 3)
    titles = {"gradient": "policy gradient, lr =", "trpo": "TRPO, max_kl ="}
    for axis, (method, by_size) in zip(axes, runs.items(), strict=False):
        for colour, (size, found) in zip(colours, by_size.items(), strict=True):
            for index, run in enumerate(found):
                steps = STEPS * ENVS * np.arange(1, len(run.returns) + 1)
                label = f"{size:g}" if index == 0 else None
                axis.plot(steps, run.returns, color=colour, linewidth=1.2, label=label)
        axis.set(xlabel="environment steps", ylim=(0, 1.05 * BEST), title=titles[method])
        axis.legend(frameon=False, fontsize=8, loc="upper left")
    axes[0].set_ylabel("return, last 20 episodes")
    for colour, (method, by_size) in zip(("#D55E00", "#0072B2"), runs.items(), strict=True):
        size = max(by_size)
        for index, run in enumerate(by_size[size]):
            label = f"{titles[method]} {size:g}" if index == 0 else None
            axes[2].semilogy(np.maximum(run.kls, 1e-6), color=colour, linewidth=0.9, label=label)
    axes[2].set(xlabel="update", title="KL(old, new) of each update")
    axes[2].legend(frameon=False, fontsize=8)
    figure.savefig(out, dpi=110)


def main() -> None:
    """Train every arm, say how each ended, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=50, help="of the policy, in each run")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each step size")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE.png")
    options = parser.parse_args()
    runs: dict[str, dict[float, list[Run]]] = {}
    for method, sizes in (("gradient", RATES), ("trpo", REGIONS)):
        runs[method] = {}
        for size in sizes:
            found = [train(method, size, options.updates, seed) for seed in range(options.seeds)]
            runs[method][size] = found
            ends = ", ".join(f"{run.returns[-1]:.0f}" for run in found)
            worst = max(max(run.kls) for run in found)
            print(f"{method:<9}{size:>7g}  return at the end {ends}  greatest KL {worst:.3g}")
    if options.out is not None:
        draw(runs, options.out)


if __name__ == "__main__":
    main()
