"""What is a step worth, by the critic and the lambda that its advantages are from?

    OMP_NUM_THREADS=1 python benchmarks/advantage_noise.py

trains an agent for a while and freezes it, collects rollouts of its policy and steps from each of
some, with the agent's options but for the lambda of its advantages; with its own critic, with
others that were fitted to the same rollouts all along, and with one that was fitted to twenty more
of this very policy. The surrogate's improvement is
measured on the step's own rows, and on rollouts that neither step nor critic has seen, by
advantages of their own: of lambda 0.97 by critics that were fitted to the half of them that is not
judged. Keeps the figures in benchmarks/results/advantage_noise.csv and writes the table of
docs/choosing-defaults.md. It takes some minutes; nothing trains for long.
"""

from __future__ import annotations

import argparse
import copy
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from learning import ROOT
from torch import Tensor, nn

from trpo_fast import TRPO, TRPOOptimizer
from trpo_fast.agent.critic import Critic, state_values
from trpo_fast.networks.mlp import ValueFunction
from trpo_fast.rollouts.gae import compute_gae
from trpo_fast.rollouts.rollout import Rollout, bootstrap_values

CASES = {
    "HalfCheetah-v5": 200_000,
    "Hopper-v5": 200_000,
    "Walker2d-v5": 300_000,
    "Ant-v5": 300_000,
}
# Rollouts to step from, to fit the other critic to, and to judge by.
STEPS, FITTED, JUDGES = 24, 20, 40
LAMBDAS = (0.9, 0.95, 1.0)
# Critics that learn beside the agent's own, which has the first one's options.
OPTIONS: dict[str, Any] = {"learning_rate": 1e-3, "epochs": 10, "batch_size": 128}
CRITICS = {
    "minibatches of 128": OPTIONS,
    "minibatches of 512": OPTIONS | {"batch_size": 512},
    "rate 3e-4": OPTIONS | {"learning_rate": 3e-4},
    "3 passes": OPTIONS | {"epochs": 3},
}
JUDGED = 0.97  # lambda
WIDTH, PASSES, BATCH = 128, 10, 256  # of fitted critics
BEGIN, END = "<!-- advantages: begin -->", "<!-- advantages: end -->"
Values = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Sample:
    """A rollout as the networks see it, with the rewards that the critic is fitted to."""

    rollout: Rollout
    rewards: Tensor

    def estimate(self, values: Values, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
        """Advantages and returns [N]."""
        known, last, final = bootstrap_values(self.rollout, values)
        found = compute_gae(
            self.rewards,
            known,
            self.rollout.terminated,
            self.rollout.truncated,
            last,
            final_values=final,
            gamma=gamma,
            lam=lam,
        )
        advantages, returns = (torch.as_tensor(each) for each in found)
        return self.rollout.select(advantages).clone(), self.rollout.select(returns).clone()

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Observations [N, O] and actions [N, A]."""
        return self.rollout.select(self.rollout.observations), self.rollout.select(
            self.rollout.actions
        )


@dataclass(frozen=True)
class Figures:
    """Means over the steps of one policy."""

    env: str
    critic: str
    lam: float
    seen: float  # improvement on the step's own rows, by its own advantages
    judged: float  # on the judges' rows, by theirs
    error: float  # standard error of `judged` over the steps


def collected(env: str, steps: int, count: int) -> tuple[TRPO, list[Critic], list[Sample]]:
    """A trained agent, the critics that learnt beside it, and rollouts of it as it is then."""
    agent, found = TRPO(env, seed=0), list[Sample]()
    learner, rows = agent.learner, dict[str, Any]()
    update, config = learner.update, agent.config
    critics = [Critic(copy.deepcopy(agent.value_function), **each) for each in CRITICS.values()]
    orders = [np.random.default_rng(0) for _ in critics]
    size = config.num_envs * config.rollout_steps
    learnt = -(-steps // size)

    def keep(rollout: Rollout, *rest: Any) -> dict[str, Any]:
        rewards = rollout.rewards
        if learner.return_scaler is not None:
            rewards = learner.return_scaler(rewards)
        sample = Sample(learner.as_shown(rollout), torch.as_tensor(rewards).clone())
        if agent.progress.num_updates >= learnt:
            found.append(sample)
            return rows
        for critic, order in zip(critics, orders, strict=True):
            values = _values(critic.value_function)
            returns = sample.estimate(values, config.gamma, config.lam)[1]
            critic.fit(sample.rows[0], returns, order)
        rows.update(update(rollout, *rest))
        return rows

    replaced: Any = learner
    replaced.update = keep
    agent.learn(size * (learnt + count), progress_bar=False)
    agent.close()
    return agent, critics, found


def fitted(samples: Sequence[Sample], values: Values, gamma: float) -> Values:
    """A critic of these rollouts: twice anew to the returns, the first time by ``values``."""
    observations = torch.cat([sample.rows[0] for sample in samples])
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        returns = torch.cat([sample.estimate(values, gamma, JUDGED)[1] for sample in samples])
        torch.manual_seed(0)
        network = ValueFunction(Box(-1, 1, observations.shape[1:]), (WIDTH, WIDTH))
        adam = torch.optim.Adam(network.parameters())
        decay = torch.optim.lr_scheduler.LinearLR(adam, 1, 0.01, PASSES)
        for _ in range(PASSES):
            for rows in torch.randperm(len(returns), generator=generator).split(BATCH):
                adam.zero_grad()
                (network(observations[rows]) - returns[rows]).square().mean().backward()
                adam.step()
            decay.step()
        values = _values(network)
    return values


def _values(network: nn.Module) -> Values:
    return lambda observations: state_values(network, observations)


def normalised(advantages: Tensor) -> Tensor:
    return (advantages - advantages.mean()) / advantages.std()


def measured(env: str, steps: int) -> Iterator[Figures]:
    """A case's figures."""
    agent, critics, samples = collected(env, steps, STEPS + FITTED + JUDGES)
    gamma, policy = agent.config.gamma, copy.deepcopy(agent.policy)
    group = agent.optimizer.param_groups[0]
    options = {name: value for name, value in group.items() if not name.startswith("param")}
    own = _values(agent.value_function)
    stepped, others, judges = (
        samples[:STEPS],
        samples[STEPS : STEPS + FITTED],
        samples[STEPS + FITTED :],
    )
    halves = judges[: JUDGES // 2], judges[JUDGES // 2 :]
    advantages = list[Tensor]()
    for half, unseen in (halves, halves[::-1]):
        critic = fitted(unseen, own, gamma)
        advantages += [sample.estimate(critic, gamma, JUDGED)[0] for sample in half]
    true = normalised(torch.cat(advantages))
    obs, actions = (torch.cat(parts) for parts in zip(*(s.rows for s in judges), strict=True))
    with torch.no_grad():
        before = policy(obs).log_prob(actions)
    judged_critics = {
        "its own": own,
        **{n: _values(c.value_function) for n, c in zip(CRITICS, critics, strict=True)},
        "of this policy": fitted(others, own, gamma),
    }
    for name, values in judged_critics.items():
        for lam in LAMBDAS:
            seen, judged = [], []
            for sample in stepped:
                new = copy.deepcopy(policy)
                optimizer = TRPOOptimizer(new, **options)
                estimate = normalised(sample.estimate(values, gamma, lam)[0])
                rows, taken = sample.rows
                optimizer.step(obs=rows, actions=taken, advantages=estimate)
                result = optimizer.last_result
                assert result is not None
                seen.append(result.loss_before - result.loss_after)
                with torch.no_grad():
                    ratio = (new(obs).log_prob(actions) - before).exp()
                judged.append(float(((ratio - 1) * true).mean()))
            error = stdev(judged) / len(judged) ** 0.5
            yield Figures(env, name, lam, mean(seen), mean(judged), error)


def table(found: Sequence[Figures]) -> str:
    """A row a policy and lambda, a column a critic: judged improvement, and seen in brackets."""
    critics = list(dict.fromkeys(f.critic for f in found))
    lines = [f"| policy | lambda | {' | '.join(critics)} |", "|---|---:|" + "---|" * len(critics)]
    for env, lam in dict.fromkeys((f.env, f.lam) for f in found):
        cells = " | ".join(
            f"{f.judged:.4f} ± {f.error:.4f} ({f.seen:.2f})"
            for f in found
            if (f.env, f.lam) == (env, lam)
        )
        lines.append(f"| {env}, {CASES[env]:,} steps | {lam:g} | {cells} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=ROOT, metavar="DIR", help="the project's root")
    options = parser.parse_args(arguments)
    found = []
    for env, steps in CASES.items():
        for figures in measured(env, steps):
            found.append(figures)
            print(figures, flush=True)
    numbers = options.out / "benchmarks" / "results" / "advantage_noise.csv"
    numbers.parent.mkdir(parents=True, exist_ok=True)
    with numbers.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Figures.__dataclass_fields__)
        for f in found:
            writer.writerow(
                [f.env, f.critic, f.lam, *(f"{v:.5g}" for v in (f.seen, f.judged, f.error))]
            )
    page = options.out / "docs" / "choosing-defaults.md"
    before, rest = page.read_text().split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
