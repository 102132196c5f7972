"""`trpo-fast report`, `train --seeds`, and what a run says at its end."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from training_process import TINY

from trpo_fast import cli
from trpo_fast.command.seeds import Score, seeds, summary


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("0-4", [0, 1, 2, 3, 4]), ("3,1", [3, 1]), ("0-2,7,1", [0, 1, 2, 7]), ("5", [5])],
)
def test_seeds_as_they_are_written(text: str, wanted: list[int]) -> None:
    assert seeds(text) == wanted


@pytest.mark.parametrize("text", ["", "a", "4-1", "1-", "-1", "0-99999999999", "1;2"])
def test_what_is_no_seeds_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="seeds"):
        seeds(text)


def test_a_summary_says_mean_and_interquartile_mean() -> None:
    finals = [0.0, 1.0, 2.0, 101.0]
    scores = [Score(Path(f"r{i}"), final, None) for i, final in enumerate(finals)]
    lines = summary(scores, range(4)).splitlines()
    assert lines[-2].split() == ["mean", "26.0", "-"]
    assert lines[-1].split() == ["IQM", "1.5", "-"]


def test_several_seeds_are_trained_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [*TINY, "--total-steps", "128", "--quiet", "--run-dir", str(tmp_path / "s")]
    train = ["train", "CartPole-v1", *common]
    assert cli.main([*train, "--seeds", "0-1"]) == 0
    said = capsys.readouterr().out
    places = [tmp_path / "s" / f"seed-{seed}" for seed in (0, 1)]
    for place in places:
        assert f"in {place}" in said
    assert "2 seeds" in said
    assert "IQM" in said
    assert f"next: trpo-fast report {places[0]} {places[1]} --out report.html" in said
    chosen = [json.loads((p / "config.json").read_text()) for p in places]
    assert [document["options"]["seed"] for document in chosen] == [0, 1]
    assert chosen[0]["machine"]["cores"] >= 1
    page, picture = tmp_path / "r.html", tmp_path / "r.png"
    runs = list(map(str, places))
    assert cli.main(["report", *runs, "--out", str(page), "--png", str(picture)]) == 0
    assert "Final return over seeds" in page.read_text()
    assert picture.exists()
    # Resumed: one goes on, nothing is trained twice.
    assert cli.main([*train, "--seeds", "0-1", "--resume"]) == 0
    assert capsys.readouterr().out.count("nothing to do") == 2


def test_the_end_of_a_run_says_its_score_and_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [*TINY, "--total-steps", "128", "--quiet", "--eval-every", "64", "--eval-episodes", "2"]
    assert cli.main(["train", "CartPole-v1", *given]) == 0
    said = capsys.readouterr().out
    assert "done: 128 steps in" in said
    assert "(mean of the last 100 episodes), best evaluation" in said
    assert "next: trpo-fast eval runs/CartPole-v1-s0-1 --episodes 20" in said
    assert "trpo-fast report runs/CartPole-v1-s0-1 --out report.html" in said


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "CartPole-v1", "--seeds", "0-1", "--seed", "3"]) == 2
    assert "--seed and --seeds" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert "nothing to report" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["report", str(tmp_path)])
    assert "--out FILE.html, --png FILE.png, or both" in capsys.readouterr().err
