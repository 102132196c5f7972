"""The registration of docs/stable-baselines3.md, by rl-zoo3's own training script."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("rl_zoo3", reason="rl_zoo3's requirements conflict with constraints.txt")

PROGRAM = """
from rl_zoo3 import ALGOS
from rl_zoo3.train import train

from trpo_fast.sb3 import TRPO


class Seen(TRPO):
    def train(self):
        super().train()
        print("updated by", self._policy_optimizer.path, self.last_result.accepted)


ALGOS["trpo"] = Seen

if __name__ == "__main__":
    train()
"""
HYPERPARAMETERS = """
CartPole-v1:
  n_envs: 2
  n_timesteps: !!float 512
  policy: 'MlpPolicy'
  n_steps: 128
  n_critic_updates: 2
"""


@pytest.mark.slow
def test_its_training_script_takes_the_registered_class(run_python, tmp_path: Path) -> None:
    (tmp_path / "trpo.yml").write_text(HYPERPARAMETERS)
    arguments = "--algo trpo --env CartPole-v1 -n 512 --eval-freq -1 -conf trpo.yml --seed 1"
    result = run_python(f"import sys; sys.argv += {arguments.split()!r}\n{PROGRAM}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("updated by fused True") >= 2
    assert list(tmp_path.glob("logs/trpo/CartPole-v1_1/CartPole-v1.zip"))
