"""trpo_fast.rsl_rl.TRPO in rsl_rl's runner: configuration, logs, checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("rsl_rl", reason="rsl-rl-lib is not installed: pip install '.[test]'")
from rsl_rl_cases import (
    MARKS,
    PPO_ENTRIES,
    STEPS,
    argument_checks,  # noqa: F401 (a fixture)
    flat,
    runner,
)
from tensor_environments import TensorPendulum, VecEnv

from trpo_fast.rsl_rl import UNUSED

pytestmark = MARKS


def test_ppos_configuration_trains_with_one_line_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = runner(tmp_path)
    said = next(line for line in capsys.readouterr().out.splitlines() if "no use for" in line)
    assert all(name in said for name in UNUSED if name in PPO_ENTRIES)
    made.learn(2, init_at_random_ep_len=True)
    policy = made.alg.get_policy()
    torch.testing.assert_close(policy.output_std[0], policy.distribution.std_param.detach())
    assert made.alg.policy_optimizer.path == "fused"
    assert made.alg.last_result.accepted
    said = capsys.readouterr().out
    assert "kl" in said
    assert "Mean value loss" in said
    assert (tmp_path / "model_1.pt").is_file()


def test_a_checkpoint_continues_as_if_never_interrupted(tmp_path: Path) -> None:
    made, other = runner(tmp_path), runner()
    made.learn(2)
    path = str(tmp_path / "model_1.pt")
    other.load(path)
    assert other.current_learning_iteration == 1
    for alg in (made.alg, other.alg):
        torch.manual_seed(5)
        with torch.inference_mode():
            env = VecEnv(TensorPendulum(8, seed=4), privileged=True)
            obs = env.get_observations()
            for _ in range(STEPS):
                obs, *rest = env.step(alg.act(obs))
                alg.process_env_step(obs, *rest)
            alg.compute_returns(obs)
        alg.update()
    assert torch.equal(flat(made.alg.get_policy()), flat(other.alg.get_policy()))
    assert torch.equal(flat(made.alg.critic), flat(other.alg.critic))


def test_ppos_checkpoint_gives_its_networks_alone(tmp_path: Path) -> None:
    theirs, ours = runner(tmp_path, name="PPO"), runner()
    theirs.learn(1)
    before = flat(ours.alg.get_policy()).clone()
    path = str(tmp_path / "model_0.pt")
    with pytest.raises(ValueError, match=r"another algorithm .* load_cfg"):
        ours.load(path)
    assert torch.equal(flat(ours.alg.get_policy()), before)
    ours.load(path, load_cfg={"actor": True, "critic": True, "iteration": True})
    assert torch.equal(flat(ours.alg.get_policy()), flat(theirs.alg.get_policy()))
    ours.learn(1)
    assert ours.alg.last_result.accepted
