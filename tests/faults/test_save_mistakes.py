"""A mistake in saving itself: one cause on the screen, and no training lost to it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from agent_cases import small
from clockwork import Bomb
from torch import nn
from training_process import TINY, final_state, iterations, rows_of

from trpo_fast import MlpPolicy, cli
from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.runs.checkpoint import load_checkpoint
from trpo_fast.runs.directory import RunDirectory
from trpo_fast.runs.logger import RunLogger
from trpo_fast.runs.recorder import RunRecorder
from trpo_fast.runs.tensorboard import EventFile

CAUSE = r"KeyError: 'made on purpose' \(test_save_mistakes.py, line \d+\)"
TRAINING = {"save_every": 1, "num_envs": 2, "rollout_steps": 16}
Failures = Callable[..., list[int]]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failures:
    """`failing(owner, when)`: writing checkpoints fails in its calls of these numbers, from 1 on.

    `owner` is the class whose module writes; the calls made are in the list that comes back.
    """

    def install(
        owner: type = RunDirectory,
        when: Callable[[int], bool] = lambda _: True,
        error: type[BaseException] = KeyError,
    ) -> list[int]:
        module = sys.modules[owner.__module__]
        real: Any = module.save_checkpoint  # type: ignore[attr-defined]
        calls: list[int] = []

        def save(path: Path, state: Any) -> Path:
            calls.append(len(calls) + 1)
            if when(calls[-1]):
                raise error("made on purpose")
            written: Path = real(path, state)
            return written

        monkeypatch.setattr(module, "save_checkpoint", save)
        return calls

    return install


def told(caught: Any) -> list[str]:
    return [str(warning.message) for warning in caught if "cannot write" in str(warning.message)]


def test_training_goes_on_and_says_once_what_is_missing(tmp_path, failing):
    calls = failing()
    with small(run_dir=tmp_path, **TRAINING) as agent:
        with pytest.warns(UserWarning, match=f"cannot write the checkpoint: {CAUSE}") as caught:
            agent.learn(96, progress_bar=False)
        assert agent.num_timesteps == 96
        assert agent.run.recorder.missing == ["the checkpoint"]
    assert len(told(caught)) == 1
    assert len(calls) > 3  # tried again with each update
    assert iterations(tmp_path) == [1, 2, 3]
    assert not RunDirectory(tmp_path).rolling()


def test_what_is_written_in_the_end_is_not_missing(tmp_path, failing):
    failing(when=lambda call: call in (2, 3))
    with small(run_dir=tmp_path, **TRAINING) as agent:
        with pytest.warns(UserWarning, match=CAUSE) as caught:
            agent.learn(160, progress_bar=False)
        assert agent.run.recorder.missing == []
    assert len(told(caught)) == 1
    assert final_state(tmp_path)["progress"]["num_updates"] == 5


def test_the_best_checkpoint_is_tried_again_too(tmp_path, failing):
    calls = failing(RunRecorder, when=lambda call: call == 1)
    options = {**TRAINING, "eval_every": 32, "eval_episodes": 1}
    with small(run_dir=tmp_path, **options) as agent:
        with pytest.warns(UserWarning, match=f"cannot write the best checkpoint: {CAUSE}"):
            agent.learn(64, progress_bar=False)
        assert agent.run.recorder.missing == []
    assert len(calls) > 1
    assert load_checkpoint(RunDirectory(tmp_path).best_file)["progress"]["num_updates"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_stopped_the_training_is_the_only_error(tmp_path, failing, error):
    failing()
    with small(run_dir=tmp_path, **TRAINING | {"save_every": 99, "vectorization": "sync"}) as agent:
        agent.env.vector.step = Bomb(agent.env.vector.step, 40, error)
        raised = error if error is KeyboardInterrupt else EnvironmentFault
        with pytest.raises(raised) as stopped, pytest.warns(UserWarning, match=CAUSE) as caught:
            agent.learn(96, progress_bar=False)
        assert agent.progress.num_updates == 2
    text = "".join(traceback.format_exception(stopped.value))
    assert "KeyError" not in text
    assert "is saved in" not in text
    assert len(told(caught)) == 1
    assert iterations(tmp_path) == [1, 2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_who_stops_a_save_is_obeyed(tmp_path, failing, error):
    failing(when=lambda call: call == 2, error=error)
    with small(run_dir=tmp_path, **TRAINING) as agent:
        with pytest.raises(error):
            agent.learn(320, progress_bar=False)
    assert iterations(tmp_path) == [1, 2]
    assert final_state(tmp_path)["progress"]["num_updates"] == 2


@pytest.mark.filterwarnings("default:cannot write")
def test_on_the_command_line_the_cause_is_told_once_and_the_exit_code_is_1(
    tmp_path, failing, capsys
):
    failing()
    arguments = ["--total-steps", "192", "--run-dir", str(tmp_path), "--save-every", "1"]
    assert cli.main(["train", "CartPole-v1", *TINY, *arguments, "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert "done: 192 steps" in out
    assert err.count("made on purpose") == 1
    assert "warning: cannot write the checkpoint: KeyError" in err
    assert f"error: could not write the checkpoint in {tmp_path}" in err
    assert "Traceback" not in err
    assert len(rows_of(tmp_path)) == 3


def test_a_row_that_a_mistake_kept_back_is_written_later(tmp_path, monkeypatch):
    append, calls = RunLogger._append, []

    def odd(self: RunLogger, data: bytes) -> None:
        calls.append(data)
        if len(calls) in (2, 3):
            raise KeyError("made on purpose")
        append(self, data)

    monkeypatch.setattr(RunLogger, "_append", odd)
    with small(run_dir=tmp_path, **TRAINING) as agent:
        with pytest.warns(UserWarning, match=f"progress.csv: {CAUSE}") as caught:
            agent.learn(160, progress_bar=False)
        assert agent.run.recorder.missing == []
    assert len(told(caught)) == 1
    assert iterations(tmp_path) == [1, 2, 3, 4, 5]


def test_a_mistake_in_writing_events_switches_them_off(tmp_path, monkeypatch):
    def odd(*_: Any) -> None:
        raise KeyError("made on purpose")

    monkeypatch.setattr(EventFile, "write", odd)
    with small(run_dir=tmp_path, **TRAINING) as agent:
        with pytest.warns(UserWarning, match=f"events switched off: {CAUSE}"):
            agent.learn(64, progress_bar=False)
        assert agent.run.recorder.missing == []
    assert iterations(tmp_path) == [1, 2]


class Odd(nn.Module):
    """A policy with something that no checkpoint holds."""

    def __init__(self, env: Any) -> None:
        super().__init__()
        self.inner = MlpPolicy(env.single_observation_space, env.single_action_space, (4,))
        self.register_buffer("phase", torch.zeros(2, dtype=torch.complex128))

    def forward(self, obs: torch.Tensor) -> Any:
        return self.inner(obs)


@pytest.mark.filterwarnings("ignore:.*generic")
def test_a_module_that_cannot_be_saved_is_named_and_trained(tmp_path):
    policy = Odd(gymnasium.make_vec("CartPole-v1", num_envs=1))
    where = "torch.complex128.*'/learner/policy/phase'"
    with small(policy=policy, run_dir=tmp_path / "run", **TRAINING) as agent:
        with pytest.warns(UserWarning, match=f"cannot write the checkpoint: TypeError.*{where}"):
            agent.learn(32, progress_bar=False)
        with pytest.raises(TypeError, match=where):
            agent.save(tmp_path / "agent")
    assert iterations(tmp_path / "run") == [1]
    assert not (tmp_path / "agent.safetensors").exists()
