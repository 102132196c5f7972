"""The learning curve is a picture of what progress.csv holds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from trpo_fast.runs import plotting
from trpo_fast.runs.logger import ITERATION, TIMESTEPS, RunLogger, read_progress
from trpo_fast.runs.plotting import PlotError, column, plot_runs, save_figure

PNG = b"\x89PNG\r\n\x1a\n"


def make_run(path, rows=20, offset=0.0):
    path.mkdir()
    logger = RunLogger(path, ["train/kl"])
    for i in range(1, rows + 1):
        logger.write(
            {
                ITERATION: i,
                TIMESTEPS: 1000 * i,
                "rollout/ep_rew_mean": None if i < 3 else offset + i,
                "eval/mean_reward": float(i) if i % 5 == 0 else None,
                "train/kl": 0.01,
            }
        )
    logger.close()
    return path


def test_a_column_leaves_out_empty_cells(tmp_path):
    rows = read_progress(make_run(tmp_path / "a") / "progress.csv")
    steps, values = column(rows, "rollout/ep_rew_mean")
    np.testing.assert_array_equal(steps, 1000 * np.arange(3, 21))
    np.testing.assert_array_equal(values, np.arange(3, 21))
    assert column(rows, "no/such")[0].size == 0


def test_one_run_and_several_runs_become_pictures(tmp_path):
    from matplotlib.image import imread

    runs = [make_run(tmp_path / name, offset=i) for i, name in enumerate("abc")]
    for chosen in (runs[:1], runs):
        out = plot_runs(chosen, tmp_path / "new" / f"{len(chosen)}.png")
        assert out.read_bytes().startswith(PNG)
        assert imread(out).std() > 0.01


@pytest.mark.reliability("one_point")
@pytest.mark.parametrize("gap", [False, True])
def test_a_point_without_neighbours_is_a_dot(tmp_path, gap):
    """A run of one row, or a row between two whose return is no number."""
    path = tmp_path / "run"
    path.mkdir()
    logger = RunLogger(path, ["train/kl"])
    returns = [1.0, float("nan"), 2.0, float("nan"), 3.0, 4.0] if gap else [1.0]
    for i, value in enumerate(returns, 1):
        row = {"rollout/ep_rew_mean": value, "train/kl": value / 100}
        logger.write({ITERATION: i, TIMESTEPS: 1000 * i, **row})
    logger.close()
    figures = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plotting, "save_figure", lambda figure, out: figures.append(figure) or out)
        plot_runs([path], tmp_path / "x.png")
    for axis in figures[0].axes:
        (line,) = axis.lines
        assert line.get_marker() == "o"
        assert line.get_markevery() == ([0, 2] if gap else [0])
    plot_runs([make_run(tmp_path / "whole")], tmp_path / "y.png")


def test_nothing_to_plot_is_said_in_words(tmp_path):
    with pytest.raises(PlotError, match="nothing to plot"):
        plot_runs([tmp_path], tmp_path / "x.png")
    damaged = make_run(tmp_path / "damaged")
    file = damaged / "progress.csv"
    file.write_text(file.read_text().replace("0.01", "oops"))
    with pytest.raises(PlotError, match="damaged"):
        plot_runs([damaged], tmp_path / "x.png")
    short = make_run(tmp_path / "short", rows=2)
    with pytest.raises(PlotError, match="finished episode"):
        plot_runs([short], tmp_path / "x.png")


def test_a_suffix_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    with pytest.raises(PlotError, match=r"p\.xyz.*\.png"):
        save_figure(Figure(), tmp_path / "p.xyz")


def test_a_full_disk_leaves_the_old_picture_whole(tmp_path: Path, monkeypatch) -> None:
    run, out = make_run(tmp_path / "a"), tmp_path / "x.png"
    before = plot_runs([run], out).read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        plot_runs([run], out, title="another")
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "x.png"]
