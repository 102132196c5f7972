"""One whole update, policy and critic, of tianshou's and skrl's TRPO and of the adapters.

``python benchmarks/adapters.py [--turns N]`` prints the table of docs/adapters.md. The same weights
and the same 8192 rows of 17 observations and 6 actions for both, 2x64 tanh networks, every option
at its library's default but for tianshou's 20 critic steps (its MuJoCo example's). Within a turn
each runs once after the other; a ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

OBS, ACTIONS, STEPS, ENVS = 17, 6, 1024, 8
BOX, OBSERVATIONS = spaces.Box(-1.0, 1.0, (ACTIONS,)), spaces.Box(-np.inf, np.inf, (OBS,))
Update = tuple[Callable[[], object], nn.Module]  # the call, and the modules that it changes


def _distribution(parameters: tuple[Tensor, Tensor]) -> Distribution:
    return Independent(Normal(*parameters), 1)


def tianshou_updates() -> Iterator[Update]:
    """The update of tianshou's own, and that of the adapter."""
    import tianshou.algorithm
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Batch
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic

    import trpo_fast.tianshou

    def net() -> Any:
        return Net(state_shape=OBS, hidden_sizes=[64, 64], activation=nn.Tanh)

    torch.manual_seed(0)
    rows = STEPS * ENVS
    obs, advantages, returns = torch.randn(rows, OBS), torch.randn(rows), torch.randn(rows)
    for kind in (tianshou.algorithm.TRPO, trpo_fast.tianshou.TRPO):
        torch.manual_seed(1)
        actor = ContinuousActorProbabilistic(
            preprocess_net=net(), action_shape=ACTIONS, unbounded=True
        )
        policy = ProbabilisticActorPolicy(
            actor=actor, dist_fn=_distribution, action_space=BOX, action_bound_method="clip"
        )
        policy.is_within_training_step = True
        algorithm = kind(
            policy=policy, critic=ContinuousCritic(preprocess_net=net()),
            optim=AdamOptimizerFactory(lr=1e-3), optim_critic_iters=20,
        )  # fmt: skip
        found = policy(Batch(obs=obs, info=Batch()))
        batch = Batch(
            obs=obs, act=found.act.detach(), adv=advantages, returns=returns, info=Batch(),
            logp_old=found.dist.log_prob(found.act).detach(),
        )  # fmt: skip
        yield lambda a=algorithm, b=batch: a._update_with_batch(b, None, 1), algorithm  # type: ignore[misc]


def skrl_updates() -> Iterator[Update]:
    """The update of skrl's own, and that of the adapter."""
    from skrl.agents.torch.trpo import TRPO
    from skrl.memories.torch import RandomMemory
    from skrl.models.torch import DeterministicMixin, GaussianMixin, Model

    import trpo_fast.skrl

    def net(outputs: int) -> nn.Module:
        return nn.Sequential(
            *(nn.Linear(OBS, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))
        )

    class Policy(GaussianMixin, Model):  # type: ignore[misc]
        def __init__(self) -> None:
            Model.__init__(self, observation_space=OBSERVATIONS, action_space=BOX, device="cpu")
            GaussianMixin.__init__(self)
            self.net, self.log_std = net(ACTIONS), nn.Parameter(torch.zeros(ACTIONS))

        def compute(self, inputs: Any, role: str) -> Any:  # noqa: ARG002
            return self.net(inputs["observations"]), {"log_std": self.log_std}

    class Value(DeterministicMixin, Model):  # type: ignore[misc]
        def __init__(self) -> None:
            Model.__init__(self, observation_space=OBSERVATIONS, action_space=BOX, device="cpu")
            DeterministicMixin.__init__(self)
            self.net = net(1)

        def compute(self, inputs: Any, role: str) -> Any:  # noqa: ARG002
            return self.net(inputs["observations"]), {}

    for kind in (TRPO, trpo_fast.skrl.TRPO):
        torch.manual_seed(1)
        quiet = {"write_interval": 0, "checkpoint_interval": 0, "directory": tempfile.gettempdir()}
        models: Any = {"policy": Policy(), "value": Value()}
        agent = kind(
            models=models, memory=RandomMemory(memory_size=STEPS, num_envs=ENVS, device="cpu"),
            observation_space=OBSERVATIONS, action_space=BOX, device="cpu",
            cfg={"experiment": quiet},
        )  # fmt: skip
        agent.init()
        agent.training = True
        never = torch.zeros(ENVS, 1, dtype=torch.bool)
        for step in range(STEPS):
            obs, following = torch.randn(ENVS, OBS), torch.randn(ENVS, OBS)
            with torch.no_grad():
                actions, _ = agent.act(obs, None, timestep=step, timesteps=STEPS)
            agent.record_transition(
                observations=obs, states=None, actions=actions, rewards=torch.randn(ENVS, 1),
                next_observations=following, next_states=None, terminated=never,
                truncated=never, infos={}, timestep=step, timesteps=STEPS,
            )  # fmt: skip
        agent.enable_models_training_mode(True)
        yield lambda a=agent: a.update(timestep=0, timesteps=1), nn.ModuleDict(models)  # type: ignore[misc]


def compare(name: str, updates: Iterator[Update], turns: int) -> str:
    """A row of the table."""
    contenders = [(call, module, copy.deepcopy(module.state_dict())) for call, module in updates]
    times: list[list[float]] = [[], []]
    for turn in range(turns + 1):
        for found, (call, module, start_from) in zip(times, contenders, strict=True):
            module.load_state_dict(copy.copy(start_from))
            start = time.perf_counter()
            call()
            if turn:  # the first is a warm-up
                found.append(1e3 * (time.perf_counter() - start))
    theirs, ours = times
    ratio = median(a / b for a, b in zip(theirs, ours, strict=True))
    return f"| {name} | {median(theirs):.0f} ms | {median(ours):.0f} ms | {ratio:.2f}x |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| library | its own TRPO | the adapter | ratio |\n|---|---:|---:|---:|")
    for name, updates in (("tianshou", tianshou_updates()), ("skrl", skrl_updates())):
        print(compare(name, updates, options.turns), flush=True)


if __name__ == "__main__":
    main()
