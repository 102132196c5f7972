"""The learning benchmark runs, judges, and writes its page, picture and numbers."""

from __future__ import annotations

import json

import pytest
from scripts import script

TINY = ["--num-envs", "2", "--rollout-steps", "64", "--critic-epochs", "1"]


@pytest.fixture
def learning(monkeypatch):
    return script("benchmarks/learning.py", monkeypatch)


def test_the_tasks_are_those_promised(learning):
    tasks = {t.env: (t.steps, t.seeds, t.goal, t.wins) for t in learning.TASKS}
    assert tasks["CartPole-v1"] == (100_000, (0, 1, 2), 475, 3)
    assert tasks["Pendulum-v1"] == (300_000, (0, 1, 2), -250, 2)
    assert tasks["HalfCheetah-v5"] == (300_000, (0,), 1000, 1)


@pytest.mark.parametrize(("goal", "code"), [(1, 0), (501, 1)])
def test_a_missed_goal_is_told_by_the_exit_code(
    learning, tmp_path, monkeypatch, capsys, goal, code
):
    task = learning.Task("CartPole-v1", 256, (0, 1), goal, 2)
    monkeypatch.setattr(learning, "TASKS", (task,))
    assert learning.main([*TINY, "--out", str(tmp_path)]) == code
    page = (tmp_path / "docs" / "learning-results.md").read_text()
    assert page.count("| CartPole-v1 | 256 |") == 2
    assert ("| no |" in page) == bool(code)
    assert "python benchmarks/learning.py --num-envs 2" in page
    numbers = json.loads((tmp_path / "benchmarks" / "results" / "learning.json").read_text())
    assert [r["seed"] for r in numbers["results"]] == [0, 1]
    assert (tmp_path / "docs" / "assets" / "learning.png").stat().st_size > 1000
    assert "seed 1" in capsys.readouterr().out
