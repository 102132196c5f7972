"""What trackers get, and what a training does where they fail."""

from __future__ import annotations

import json

import pytest

from trpo_fast import TRPO, cli
from trpo_fast.runs import tracking
from trpo_fast.runs.logger import read_progress
from trpo_fast.runs.tracking import FILE, TrackingError, require

TINY = {"num_envs": 2, "rollout_steps": 32, "hidden_sizes": (4,), "value_hidden_sizes": (4,)}


class Recorded:
    """Keeps what it is given."""

    made: list[Recorded] = []  # noqa: RUF012
    fails = False

    def __init__(self, directory, config):
        self.config, self.rows, self.closed = config, [], False
        Recorded.made.append(self)

    def write(self, step, numbers):
        if Recorded.fails:
            raise OSError("no network")
        self.rows.append((step, numbers))

    def close(self):
        self.closed = True


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setitem(tracking._TRACKERS, "wandb", Recorded)
    monkeypatch.setattr(tracking, "find_spec", lambda _: True)
    monkeypatch.setattr(Recorded, "made", [])
    return Recorded


def train(directory, steps=192, **options):
    with TRPO("CartPole-v1", seed=0, run_dir=directory, track="wandb", **TINY, **options) as agent:
        agent.learn(steps, progress_bar=False)


def test_a_tracker_gets_the_rows_of_the_log(recorded, tmp_path):
    train(tmp_path / "r")
    (found,) = recorded.made
    rows = read_progress(tmp_path / "r" / "progress.csv")
    assert [step for step, _ in found.rows] == [64, 128, 192]
    for (_, numbers), row in zip(found.rows, rows, strict=True):
        assert numbers["train/kl_divergence_loss"] == pytest.approx(
            float(row["train/kl_divergence_loss"]), rel=1e-6
        )
    assert found.config["options"]["num_envs"] == 2
    assert found.closed


def test_one_that_fails_is_switched_off_and_the_training_goes_on(recorded, monkeypatch, tmp_path):
    monkeypatch.setattr(recorded, "fails", True)
    with pytest.warns(UserWarning, match="wandb switched off: no network") as warned:
        train(tmp_path / "r")
    assert len(warned) == 1
    assert len(read_progress(tmp_path / "r" / "progress.csv")) == 3
    assert recorded.made[0].closed


def test_what_is_missing_is_said_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(tracking, "find_spec", lambda _: None)
    with pytest.raises(TrackingError, match=r"pip install .*\[track\]"):
        train(tmp_path / "r")
    assert not (tmp_path / "r").exists()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "CartPole-v1", "--track", "wandb"]) == 2
    assert not (tmp_path / "runs").exists()
    with pytest.raises(TrackingError, match="pip install mlflow"):
        require("mlflow", tmp_path)
    with pytest.raises(TrackingError, match="give run_dir="):
        train(None)


def test_wandb_offline_goes_on_in_the_same_run(monkeypatch, tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install '.[track]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for _ in range(2):
        sink = tracking.Wandb(tmp_path, {"options": {"max_kl": 0.01}})
        sink.write(64, {"rollout/ep_rew_mean": 1.0, "time/total_timesteps": 64.0})
        sink.close()
        name = json.loads((tmp_path / FILE).read_text())["wandb"]
        assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))) >= 1


def test_mlflow_keeps_figures_and_options(monkeypatch, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/store")
    mlflow.set_tracking_uri(f"file:{tmp_path}/store")
    for step in (64, 128):
        sink = tracking.Mlflow(tmp_path, {"options": {"max_kl": 0.01}})
        sink.write(step, {"rollout/ep_rew_mean": float(step), "train/odd": float("nan")})
        sink.close()
    name = json.loads((tmp_path / FILE).read_text())["mlflow"]
    client = mlflow.MlflowClient()
    history = client.get_metric_history(name, "rollout/ep_rew_mean")
    assert [(m.step, m.value) for m in history] == [(64, 64.0), (128, 128.0)]
    run = client.get_run(name)
    assert run.data.params == {"options.max_kl": "0.01"}
    assert run.info.status == "FINISHED"


def test_a_damaged_file_begins_a_new_record(tmp_path):
    for text in ("{", "[1]", '{"wandb": 3}'):
        (tmp_path / FILE).write_text(text)
        assert tracking._known(tmp_path, "wandb") is None
