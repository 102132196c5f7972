"""One run on Ray Train's workers: each is a rank, as torchrun's processes are.

    pip install '.[ray]'
    python examples/ray_train.py --workers 4 HalfCheetah-v5 --num-envs 32 --run-dir /shared/run

What follows --workers is what `trpo-fast train` takes. The run directory is rank 0's, on the node
where that worker runs: name one that all nodes share.
"""

from __future__ import annotations

import argparse
from typing import Any

from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from trpo_fast import cli


def worker(config: dict[str, Any]) -> None:
    """One rank: Ray has made the process group, which the command finds."""
    code = cli.main(["train", *config["arguments"]])
    if code:
        raise SystemExit(f"trpo-fast train ended with exit code {code}")


def main() -> None:
    """Start the workers and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__, usage="%(prog)s --workers K ENV_ID ...")
    parser.add_argument("--workers", type=int, default=2)
    options, arguments = parser.parse_known_args()
    TorchTrainer(
        worker,
        train_loop_config={"arguments": arguments},
        scaling_config=ScalingConfig(num_workers=options.workers),
        torch_config=TorchConfig(backend="gloo"),
    ).fit()


if __name__ == "__main__":
    main()
