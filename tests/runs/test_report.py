"""The report: seeds put together, environments apart, everything there is in one page."""

from __future__ import annotations

import json
import os
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trpo_fast.runs.plotting import PlotError
from trpo_fast.runs.report import write_picture, write_report
from trpo_fast.runs.report_data import (
    ReportError,
    grouped,
    interquartile_mean,
    read_runs,
    thinned,
)

COLUMNS = (
    *("time/iterations", "time/total_timesteps", "time/time_elapsed", "time/fps", "time/env"),
    *("time/update", "rollout/ep_rew_mean", "eval/mean_reward", "eval/std_reward", "train/kl"),
    *("train/region_used", "train/accepted", "train/status", "train/backtracks"),
    *("train/cg_iters", "train/cg_residual", "train/explained_variance", "train/entropy"),
)
MACHINE = {"processor": "a processor <of 1989>", "cores": 2}


def run(
    directory: Path, environment: str = "Walk-v0", seed: int = 0, rows: int = 20, **options: Any
) -> Path:
    """A run's directory; its return is seed + update, each fifth update is refused."""
    directory.mkdir(parents=True)
    bound = options.get("max_kl", 0.01) * (3 if "max_kl_per" in options else 1)
    lines = [",".join(COLUMNS)]
    for i in range(1, rows + 1):
        good = i % 5 > 0
        score = f"{seed + i + 0.5},1.5" if i % 10 == 0 else ","
        status = "accepted" if good else "line_search_failed"
        spent = f"{0.8 * bound * good:g},{0.8 * good:g},{int(good)},{status}"
        lines.append(
            f"{i},{i * 100},{i * 0.5},200,0.3,0.1,{seed + i},{score},{spent},2,7,0.25,0.5,1.2"
        )
    (directory / "progress.csv").write_text("\n".join(lines) + "\n")
    given = {"seed": seed, "max_kl": 0.01, "damping": 0.1, **options}
    document = {"environment": environment, "options": given, "machine": MACHINE}
    (directory / "config.json").write_text(json.dumps(document))
    return directory


class Page(HTMLParser):
    """Text, tags and addresses of a page whose elements are closed as they were opened."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.addresses += [
            value for name, value in attrs if name in ("href", "src", "xlink:href") and value
        ]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_one_page_holds_everything_and_fetches_nothing(tmp_path: Path) -> None:
    runs = [run(tmp_path / f"walk-{s}", seed=s) for s in range(3)]
    runs.append(run(tmp_path / "other", "Other-v1", max_kl=0.02, max_kl_per="dimension"))
    (runs[0] / "videos").mkdir()
    (runs[0] / "videos" / "episode.mp4").write_bytes(b"\0video")
    page = Page(write_report(runs, tmp_path / "out" / "report.html"))
    for words in (
        *("walk-0", "Walk-v0", "Other-v1", "Final return over seeds", "accepted", "CG iterations"),
        *("bound 0.01", "bound 0.06", "damping", "a processor <of 1989>", "Where the time went"),
        *("Walk-v0 (3 seeds)", "evaluation", "share of max_kl used"),
    ):
        assert any(words in text for text in page.texts), words
    assert page.tags.count("svg") == 4  # a return for each environment, health, time
    assert page.tags.count("video") == 1
    inside = ("#", "data:video/mp4;base64,")
    assert all(address.startswith(inside) for address in page.addresses)
    assert "script" not in page.tags
    assert "line_search_failed 4" in " ".join(page.texts)
    ids = re.findall(r'\bid="([^"]+)"', page.source)
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page.source))
    for name in {a or b for a, b in used}:
        assert ids.count(name) == 1, name
    for svg in re.findall(r"<svg.*?</svg>", page.source, re.DOTALL):
        ET.fromstring(svg)


def test_seeds_are_put_together_and_other_options_apart(tmp_path: Path) -> None:
    given = [run(tmp_path / f"a{s}", seed=s) for s in range(4)]
    given += [run(tmp_path / "b0", seed=0, damping=0.3), run(tmp_path / "c", "Other-v1")]
    groups = grouped(read_runs(given))
    assert [(group.name, len(group.runs)) for group in groups] == [
        ("damping=0.1", 4),
        ("damping=0.3", 1),
        ("c", 1),
    ]
    steps, middle, low, high = groups[0].band("rollout/ep_rew_mean")
    assert steps[0] == 100
    assert steps[-1] == 2000
    np.testing.assert_allclose(middle, steps / 100 + 1.5)
    np.testing.assert_allclose(low, steps / 100)
    np.testing.assert_allclose(high, steps / 100 + 3)


def test_a_seed_that_two_runs_have_counts_once(tmp_path: Path) -> None:
    runs = [run(tmp_path / str(number), seed=seed) for number, seed in enumerate((0, 1, 1))]
    texts = " ".join(Page(write_report(runs, tmp_path / "report.html")).texts)
    assert "(3 runs, 2 seeds)" in texts
    same = " ".join(Page(write_report(runs[1:], tmp_path / "same.html")).texts)
    assert "(2 runs, 1 seed)" in same


def test_a_band_ends_where_the_shortest_run_does(tmp_path: Path) -> None:
    runs = [run(tmp_path / str(s), seed=s, rows=rows) for s, rows in enumerate((20, 8))]
    (group,) = grouped(read_runs(runs))
    assert group.band("rollout/ep_rew_mean")[0][-1] == 800


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([3.0], 3.0),
        ([1.0, 2.0], 1.5),
        ([0.0, 1.0, 2.0, 100.0], 1.5),
        ([100.0, 0.0, 3.0, 1.0, 2.0], (0.75 * 1 + 2 + 0.75 * 3) / 2.5),
        (list(range(8)), 3.5),
    ],
)
def test_the_interquartile_mean(values: list[float], mean: float) -> None:
    assert interquartile_mean(values) == pytest.approx(mean)


def test_a_thinned_curve_keeps_its_means() -> None:
    steps = np.arange(10_001.0)
    x, y = thinned((steps, 3 * steps), 100)
    assert len(x) == 100
    np.testing.assert_allclose(y, 3 * x)
    assert thinned((steps, steps), 20_000)[0] is steps


def test_a_picture_of_several_environments(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a"), run(tmp_path / "b", "Other-v1")]
    out = write_picture(runs, tmp_path / "report.png")
    assert out.read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_reported_is_said(tmp_path: Path) -> None:
    good = run(tmp_path / "good")
    with pytest.raises(ReportError, match=r"nowhere has no progress\.csv with an update"):
        write_report([good, tmp_path / "nowhere"], tmp_path / "r.html")
    with pytest.raises(ReportError, match=r"ends in \.html"):
        write_report([good], tmp_path / "r.pdf")
    with pytest.raises(PlotError, match="ends in one of"):
        write_picture([good], tmp_path / "r.html")
    for text in ("{", 100_000 * "["):
        (good / "config.json").write_text(text)
        with pytest.raises(ReportError, match=r"config\.json is damaged"):
            write_report([good], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_runs_of_older_versions_and_of_one_update(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "progress.csv").write_text(
        "time/iterations,time/total_timesteps,rollout/ep_rew_mean,train/kl\n1,100,,nan\n"
    )
    page = Page(write_report([old], tmp_path / "r.html"))
    assert "an environment: 1 run" in page.texts


def test_names_are_text_and_never_markup_or_raw_bytes(tmp_path: Path) -> None:
    raw = os.fsdecode(b"run\xff<b>&\x07$\\x$")
    given = run(tmp_path / raw, environment="<script>alert(1)</script>", note="<i>")
    page = Page(write_report([given], tmp_path / "r.html"))
    assert "run?<b>&?$\\x$" in page.texts
    assert {"script", "b", "i"}.isdisjoint(page.tags)
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", page.source)
