"""A few whole updates of small policies on the device, for compute-sanitizer (``gpu.sh``)."""

from __future__ import annotations

import torch
from gymnasium import spaces

from trpo_fast import MlpPolicy, TRPOOptimizer

ACTIONS = (
    spaces.Box(-1.0, 1.0, (3,)),
    spaces.MultiDiscrete([3, 4]),
    spaces.MultiBinary(3),
)


def main() -> None:
    """One update a head, with few and with many rows."""
    torch.manual_seed(0)
    for action_space in ACTIONS:
        for rows, hidden in ((70, (7, 6)), (3000, (64, 64)), (33, (128,))):
            policy = MlpPolicy(spaces.Box(-1.0, 1.0, (5,)), action_space, hidden).cuda()
            obs = torch.randn(rows, 5, device="cuda")
            actions = policy(obs).sample()
            optimizer = TRPOOptimizer(policy, cg_iters=3, backend="cuda")
            optimizer.step(obs=obs, actions=actions, advantages=torch.randn_like(obs[:, 0]))
            torch.cuda.synchronize()
            assert optimizer.last_result is not None
            print(rows, hidden, optimizer.last_result.status.value)


if __name__ == "__main__":
    main()
