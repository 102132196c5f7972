"""Faults while training, and what each gets: an error in words, a checkpoint, a counter."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from faulty_environments import Faulty
from memory import held
from patience import wait_until
from training_process import (
    Training,
    assert_identical,
    final_state,
    iterations,
    limit_file_size,
    rows_of,
    train,
)

from trpo_fast.agent.agent import TRPO
from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.runs.checkpoint import load_checkpoint

OPTIONS = {"num_envs": 2, "rollout_steps": 16, "hidden_sizes": (8,), "seed": 3, "save_every": 1000}
ENV = "faulty_environments:Faulty-v0"


@pytest.mark.parametrize("fault", ["observation", "reward", "raise"])
def test_a_fault_names_environment_step_and_action_and_saves_the_last_update(tmp_path, fault):
    agent = TRPO(Faulty, run_dir=tmp_path, env_kwargs={"fault": fault}, **OPTIONS)
    with pytest.raises(EnvironmentFault) as caught:
        agent.learn(1000, progress_bar=False)
    error = caught.value
    assert error.env_index == 0
    assert error.step is not None
    assert error.action is not None
    assert "environment 0" in str(error)
    assert "step" in str(error)
    assert "action" in str(error)
    # 50 steps are 3 whole rollouts of 16.
    assert agent.progress.num_updates == 3
    assert iterations(tmp_path) == [1, 2, 3]
    assert "step-000000000096" in error.__notes__[0]
    assert final_state(tmp_path)["progress"]["num_updates"] == 3
    for parameter in [*agent.policy.parameters(), *agent.value_function.parameters()]:
        assert torch.isfinite(parameter).all()
    agent.close()


@pytest.mark.parametrize("fault", ["observation", "reward"])
def test_pitfall_23_dropping_the_episode_warns_once_counts_and_goes_on(tmp_path, fault):
    options = OPTIONS | {"on_fault": "drop"}
    with TRPO(Faulty, run_dir=tmp_path, env_kwargs={"fault": fault}, **options) as agent:
        with pytest.warns(RuntimeWarning, match="dropped") as caught:
            agent.learn(320, progress_bar=False)
        assert len([w for w in caught if "dropped" in str(w.message)]) == 1
        assert agent.progress.dropped_episodes == 2
        assert int(rows_of(tmp_path)[-1]["rollout/dropped_episodes"]) == 2
        assert agent.num_timesteps < 11 * 32
        for parameter in [*agent.policy.parameters(), *agent.value_function.parameters()]:
            assert torch.isfinite(parameter).all()


def test_a_policy_that_is_no_longer_finite_is_named_as_the_cause():
    with TRPO(Faulty, **OPTIONS) as agent:
        with torch.no_grad():
            next(agent.policy.parameters()).fill_(float("nan"))
        with pytest.raises((EnvironmentFault, ValueError)) as caught:
            agent.learn(32, progress_bar=False)
        assert "policy" in str(caught.value) or "parameter" in str(caught.value)


@pytest.mark.parametrize("vectorization", ["sync", "workers", "async"])
def test_on_the_command_line_a_fault_is_exit_1_with_the_environments_own_traceback(
    tmp_path, vectorization
):
    arguments = ("--env-kwargs", "fault=raise", "at=100", "--vectorization", vectorization)
    training = Training(tmp_path, 1000, *arguments, env=ENV)
    code, _, err = training.finish()
    assert code == 1, err
    assert "ZeroDivisionError: broken on purpose" in err
    assert "faulty_environments.py" in err
    assert "environment 0" in err
    assert "The last whole update is saved in" in err
    assert "trpo_fast/agent/" not in err
    assert final_state(tmp_path)["progress"]["num_updates"] == 3
    assert training.group_is_gone()


@pytest.mark.parametrize("vectorization", ["workers", "async"])
def test_interrupting_worker_processes_leaves_no_orphans(tmp_path, vectorization):
    marker = tmp_path / "marker"
    training = Training(
        tmp_path / "run",
        10_000_000,
        *("--vectorization", vectorization, "--env-kwargs", f"marker={marker}", "at=70"),
        env="slow_environment:Stuck-v0",
    )
    training.wait_for_file(marker)
    assert not training.group_is_gone()
    os.killpg(training.process.pid, signal.SIGINT)  # as a terminal does
    code, _, err = training.finish()
    assert code == 130, err
    assert "Traceback" not in err
    assert training.group_is_gone()
    assert final_state(tmp_path / "run")["progress"]["num_updates"] == 2


@pytest.mark.parametrize("vectorization", ["workers", "async"])
def test_killing_the_trainer_leaves_no_orphans(tmp_path, vectorization):
    training = Training(tmp_path, 10_000_000, "--vectorization", vectorization)
    training.wait_for_rows(1)
    training.send(signal.SIGKILL)
    training.process.wait()
    wait_until(training.group_is_gone, training.kill)
    training.finish()


# disks


def test_a_full_disk_does_not_end_the_training_and_the_exit_code_tells(tmp_path):
    assert train(tmp_path, 64) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "checkpoints").iterdir()}
    training = Training(tmp_path, 320, "--save-every", "1", preexec_fn=limit_file_size)
    code, out, err = training.finish()
    assert code == 1, err
    assert "done: 320 steps" in out
    assert "warning: cannot write the checkpoint" in err
    assert "error: could not write" in err
    assert "Traceback" not in err
    assert {p: p.read_bytes() for p in (tmp_path / "checkpoints").iterdir()} == before
    # With room again the run goes on from the old file.
    assert train(tmp_path, 320) == 0
    assert iterations(tmp_path) == [1, 2, 3, 4, 5]


@pytest.mark.filterwarnings("ignore:cannot write")
def test_a_disk_that_recovers_gets_everything(tmp_path, monkeypatch):
    assert train(tmp_path / "whole", 384, "--save-every", "2") == 0
    original, calls = os.fsync, []

    def failing(handle):
        calls.append(1)
        if 6 < len(calls) <= 12:
            raise OSError(28, "No space left on device")
        original(handle)

    monkeypatch.setattr(os, "fsync", failing)
    assert train(tmp_path / "cut", 384, "--save-every", "2") == 0
    assert len(calls) > 12
    assert_identical(final_state(tmp_path / "whole"), final_state(tmp_path / "cut"))
    assert iterations(tmp_path / "cut") == [1, 2, 3, 4, 5, 6]


def test_a_directory_that_cannot_be_made_is_a_mistake_before_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train(tmp_path / "file" / "run", 64) == 2
    assert "cannot write" in capsys.readouterr().err


# long runs


def test_memory_and_file_handles_stay_flat_over_many_updates(tmp_path):
    options = OPTIONS | {"rollout_steps": 4, "save_every": 5, "critic_epochs": 1}
    with TRPO("CartPole-v1", run_dir=tmp_path, **options) as agent:
        seen = []

        def note(local, _):
            if agent.progress.num_updates in (50, 250):
                seen.append(held())

        agent.learn(8 * 250, note, progress_bar=False)
    (handles, allocated, blocks), (handles_after, allocated_after, blocks_after) = seen
    assert handles_after <= handles
    # Measured: 200,000 and 1,500, in 200 updates.
    assert allocated_after - allocated < 1_000_000
    assert blocks_after - blocks < 10_000


def test_checkpoints_of_a_faulty_run_hold_no_nan(tmp_path):
    with TRPO(Faulty, run_dir=tmp_path, env_kwargs={"fault": "reward"}, **OPTIONS) as agent:
        with pytest.raises(EnvironmentFault):
            agent.learn(1000, progress_bar=False)
    newest = max((tmp_path / "checkpoints").iterdir())
    learner = load_checkpoint(newest)["learner"]
    for part in ("policy", "value_function"):
        assert all(torch.isfinite(tensor).all() for tensor in learner[part].values())
