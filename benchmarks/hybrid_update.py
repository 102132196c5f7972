"""One fused update of a hybrid policy (Box of 4, Discrete of 5) beside a plain Gaussian's.

Both have the same network: nine outputs behind two hidden layers. In turns, in one process; the
share of the Gaussian's time is the median over the turns.

    python benchmarks/hybrid_update.py [--rows 2048] [--turns 60]
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter

import torch
from gymnasium import spaces

from trpo_fast import JointDistribution, MlpPolicy, TRPOOptimizer, _native

BOX = spaces.Box(-1.0, 1.0, (4,))
SPACES = {
    "Gaussian of 9": spaces.Box(-1.0, 1.0, (9,)),
    "Box 4 + Discrete 5": spaces.Tuple([BOX, spaces.Discrete(5)]),
}


class Contender:
    """A policy, its batch, and the start that each update is taken from."""

    def __init__(self, space: spaces.Space, rows: int, hidden: int) -> None:  # type: ignore[type-arg]
        torch.manual_seed(0)
        self.policy = MlpPolicy(spaces.Box(-1.0, 1.0, (17,)), space, (hidden, hidden))
        with torch.no_grad():
            self.policy.body[-1].weight.mul_(50)  # type: ignore[operator]
        obs = torch.randn(rows, 17)
        with torch.no_grad():
            distribution = self.policy(obs)
            actions = distribution.sample()
            if isinstance(distribution, JointDistribution):  # as a rollout keeps them
                actions = distribution.flatten(actions)
        self.batch = {"obs": obs, "actions": actions, "advantages": torch.randn(rows)}
        # Ten iterations and one candidate or two for both.
        self.optimizer = TRPOOptimizer(self.policy, preconditioner="none", cg_tol=0.0)
        self.start = [p.detach().clone() for p in self.policy.parameters()]

    def update(self) -> float:
        """Seconds of one update from the start."""
        with torch.no_grad():
            for parameter, start in zip(self.policy.parameters(), self.start, strict=True):
                parameter.copy_(start)
        begun = perf_counter()
        self.optimizer.step(**self.batch)
        taken = perf_counter() - begun
        result = self.optimizer.last_result
        assert result is not None
        assert result.accepted
        assert result.backend == "cpu"
        assert 0 < result.kl <= 0.01
        return taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    contenders = {name: Contender(s, options.rows, options.hidden) for name, s in SPACES.items()}
    for contender in contenders.values():
        contender.update()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.turns):
        for name, contender in contenders.items():
            times[name].append(contender.update())
    plain, hybrid = (times[name] for name in SPACES)
    isa = "" if _native.core is None else _native.core.isa()
    print(f"{options.rows} rows, hidden {options.hidden}, {options.threads} thread(s), {isa}")
    for name, taken in times.items():
        print(f"{name:20} {1e3 * median(taken):8.3f} ms")
    share = median(h / p for h, p in zip(hybrid, plain, strict=True))
    print(f"hybrid / Gaussian    {share:8.3f}")


if __name__ == "__main__":
    main()
