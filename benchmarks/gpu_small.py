"""A few whole updates of small policies on the device, for compute-sanitizer (``gpu.sh``)."""

from __future__ import annotations

from typing import Any

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
    for action_space, precision in zip(ACTIONS, ("tf32", "bf16", "bf16x3"), strict=True):
        cases: tuple[tuple[int, tuple[int, ...], dict[str, Any]], ...] = (
            (70, (7, 6), {}),
            (3000, (64, 64), {}),
            (33, (128,), {}),
            (150, (270,), {}),
            (150, (140,), {"precision": precision}),
            (600, (64, 33), {"precision": precision}),
            (70, (9, 130), {"preconditioner": "kfac"}),
        )
        for rows, hidden, options in cases:
            policy = MlpPolicy(spaces.Box(-1.0, 1.0, (5,)), action_space, hidden).cuda()
            obs = torch.randn(rows, 5, device="cuda")
            actions = policy(obs).sample()
            optimizer = TRPOOptimizer(policy, cg_iters=3, backend="cuda", **options)
            optimizer.step(obs=obs, actions=actions, advantages=torch.randn_like(obs[:, 0]))
            torch.cuda.synchronize()
            assert optimizer.last_result is not None
            print(rows, hidden, options, optimizer.last_result.status.value)


if __name__ == "__main__":
    main()
