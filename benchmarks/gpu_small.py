"""A few whole updates of small policies on the device, for compute-sanitizer (``gpu.sh``).

    python benchmarks/gpu_small.py [SECONDS]     starts no case after so many seconds

A case that fails is reported and the next one begins; the exit status is their number.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from gymnasium import spaces

from trpo_fast import MlpPolicy, TRPOOptimizer

ACTIONS = (
    spaces.Box(-1.0, 1.0, (3,)),
    spaces.MultiDiscrete([3, 4]),
    spaces.MultiBinary(3),
)
PRECISIONS = ("tf32", "bf16", "bf16x3")
# Rows, hidden widths and options; "precision" is another one for each head.
CASES: tuple[tuple[int, tuple[int, ...], dict[str, Any]], ...] = (
    (70, (7, 6), {}),
    (150, (270,), {}),
    (600, (64, 33), {"precision": None}),
    (150, (140,), {"precision": None}),
    (70, (9, 130), {"preconditioner": "kfac"}),
    (3000, (64, 64), {}),
    (33, (128,), {}),
)


def update(
    rows: int, hidden: tuple[int, ...], space: spaces.Space[Any], options: dict[str, Any]
) -> str:
    """One update of a fresh policy; how it ended."""
    policy = MlpPolicy(spaces.Box(-1.0, 1.0, (5,)), space, hidden).cuda()
    obs = torch.randn(rows, 5, device="cuda")
    actions = policy(obs).sample()
    optimizer = TRPOOptimizer(policy, cg_iters=3, backend="cuda", **options)
    optimizer.step(obs=obs, actions=actions, advantages=torch.randn_like(obs[:, 0]))
    torch.cuda.synchronize()
    assert optimizer.last_result is not None
    return optimizer.last_result.status.value


def main() -> int:
    """One update of every case and head; how many failed."""
    torch.manual_seed(0)
    end = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else float("inf"))
    failed = 0
    for space, precision in zip(ACTIONS, PRECISIONS, strict=True):
        for rows, hidden, options in CASES:
            chosen = dict(options, precision=precision) if "precision" in options else options
            case = f"{rows} rows, {hidden}, {space}, {chosen}"
            if time.monotonic() > end:
                print(f"left out, no time left: {case}")
                continue
            try:
                print(f"{update(rows, hidden, space, chosen)}: {case}")
            except RuntimeError as error:
                failed += 1
                print(f"FAILED: {case}: {error}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
