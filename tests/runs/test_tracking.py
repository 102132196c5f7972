"""What trackers get, and what a training does where they fail."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from trpo_fast import TRPO, cli
from trpo_fast.runs import tracking
from trpo_fast.runs.logger import read_progress
from trpo_fast.runs.tracking import FILE, Outcome, TrackingError, require

TINY = {"num_envs": 2, "rollout_steps": 32, "hidden_sizes": (4,), "value_hidden_sizes": (4,)}


class Recorded:
    """Keeps what it is given."""

    made: list[Recorded] = []  # noqa: RUF012
    fails = False

    def __init__(self, directory, config):
        self.config, self.rows, self.ended = config, [], []
        Recorded.made.append(self)

    def write(self, step, numbers):
        if Recorded.fails:
            raise OSError("no network")
        self.rows.append((step, numbers))

    def close(self, outcome):
        self.ended.append(outcome)


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
    assert found.ended == [Outcome.FINISHED]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RuntimeError("no luck"), Outcome.FAILED),
        (KeyboardInterrupt(), Outcome.INTERRUPTED),
        (SystemExit(1), Outcome.INTERRUPTED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_run_that_did_not_finish_is_told_apart(recorded, tmp_path, error, outcome):
    def end(local, _):
        if local["self"].num_timesteps >= 128:
            raise error

    with TRPO("CartPole-v1", seed=0, run_dir=tmp_path / "r", track="wandb", **TINY) as agent:
        with pytest.raises(type(error)):
            agent.learn(192, callback=end, progress_bar=False)
        agent.learn(64, progress_bar=False)  # and goes on
    assert [found.ended for found in recorded.made] == [[outcome], [Outcome.FINISHED]]
    assert [len(found.rows) for found in recorded.made] == [2, 1]


def test_one_that_a_callback_stops_has_finished(recorded, tmp_path):
    with TRPO("CartPole-v1", seed=0, run_dir=tmp_path / "r", track="wandb", **TINY) as agent:
        agent.learn(192, callback=lambda *_: False, progress_bar=False)
    assert recorded.made[0].ended == [Outcome.FINISHED]


@pytest.mark.parametrize("outcome", Outcome)
def test_each_tracker_is_told_in_its_own_words(monkeypatch, tmp_path, outcome):
    """Stand-ins for the two packages, which need not be installed."""
    told = []
    run = SimpleNamespace(
        id="a",
        define_metric=lambda *_, **__: None,
        finish=lambda *, exit_code: told.append(exit_code),
    )
    wandb = SimpleNamespace(Settings=lambda **_: None, init=lambda **_: run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    (tmp_path / FILE).write_text('{"mlflow": "b"}')  # a record that is there
    client = SimpleNamespace(set_terminated=lambda name, status: told.append((name, status)))
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=lambda: client))
    tracking.Wandb(tmp_path, {}).close(outcome)
    tracking.Mlflow(tmp_path, {}).close(outcome)
    code, status = {
        Outcome.FINISHED: (0, "FINISHED"),
        Outcome.INTERRUPTED: (255, "KILLED"),
        Outcome.FAILED: (1, "FAILED"),
    }[outcome]
    assert told == [code, ("b", "RUNNING"), ("b", status)]


def test_one_that_fails_is_switched_off_and_the_training_goes_on(recorded, monkeypatch, tmp_path):
    monkeypatch.setattr(recorded, "fails", True)
    with pytest.warns(UserWarning, match="wandb switched off: no network") as warned:
        train(tmp_path / "r")
    assert len(warned) == 1
    assert len(read_progress(tmp_path / "r" / "progress.csv")) == 3
    assert recorded.made[0].ended == [Outcome.INTERRUPTED]


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
    for outcome in (Outcome.FAILED, Outcome.FINISHED):
        sink = tracking.Wandb(tmp_path, {"options": {"max_kl": 0.01}})
        sink.write(64, {"rollout/ep_rew_mean": 1.0, "time/total_timesteps": 64.0})
        sink.close(outcome)
        name = json.loads((tmp_path / FILE).read_text())["wandb"]
        assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))) >= 1


def test_mlflow_keeps_figures_and_options(monkeypatch, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/store")
    mlflow.set_tracking_uri(f"file:{tmp_path}/store")
    client = mlflow.MlflowClient()
    for step, outcome, status in (
        (64, Outcome.FAILED, "FAILED"),
        (128, Outcome.FINISHED, "FINISHED"),
    ):
        sink = tracking.Mlflow(tmp_path, {"options": {"max_kl": 0.01}})
        sink.write(step, {"rollout/ep_rew_mean": float(step), "train/odd": float("nan")})
        sink.close(outcome)
        name = json.loads((tmp_path / FILE).read_text())["mlflow"]
        assert client.get_run(name).info.status == status
    history = client.get_metric_history(name, "rollout/ep_rew_mean")
    assert [(m.step, m.value) for m in history] == [(64, 64.0), (128, 128.0)]
    assert client.get_run(name).data.params == {"options.max_kl": "0.01"}


def test_a_damaged_file_begins_a_new_record(tmp_path):
    for text in ("{", "[1]", '{"wandb": 3}', 100_000 * "["):
        (tmp_path / FILE).write_text(text)
        assert tracking._known(tmp_path, "wandb") is None
