"""The benchmarks of learning run, go on where they were, and write page, picture and numbers."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys

import gymnasium
import numpy as np
import pytest
from scripts import ROOT, script

from trpo_fast.agent.config import Config
from trpo_fast.agent.policies import box_distribution

TINY = 256


@pytest.fixture
def few_episodes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for module in ("training_runs", "learning_peers"):
        monkeypatch.setattr(f"{module}.EPISODES", 1)


@pytest.fixture
def learning(monkeypatch, few_episodes):
    return script("benchmarks/learning.py", monkeypatch)


@pytest.fixture
def statistics(monkeypatch):
    return script("benchmarks/score_statistics.py", monkeypatch)


def test_the_tasks_are_those_promised(learning):
    tasks = {t.env: (t.steps, t.goal) for t in learning.TASKS}
    assert tasks["CartPole-v1"] == (100_000, 500)
    assert tasks["Pendulum-v1"] == (300_000, -165)
    assert tasks["HalfCheetah-v5"] == (1_000_000, 6300)
    assert all(not t.options for t in learning.TASKS if t.arm == learning.OURS)


def test_runs_are_done_once_and_judged(learning, tmp_path, monkeypatch, capsys):
    easy = learning.Task("CartPole-v1", TINY, 1, 0)
    later = learning.Task("Later-v0", TINY, 1, 0)
    hard = learning.Task("CartPole-v1", TINY, 501, 0, {"gamma": 0.9})
    monkeypatch.setattr(learning, "TASKS", (easy, hard))
    learning.main(["--seeds", "0", "1", "--out", str(tmp_path)])
    first = capsys.readouterr().out
    assert first.count("CartPole-v1") == 4
    page = (tmp_path / "docs" / "learning-results.md").read_text()
    assert page.count("| CartPole-v1 | 256 |") == 2
    assert "| 1 | yes |" in page
    assert " short |" in page
    assert "trpo_fast, gamma=0.9" in page
    assert "so far" not in page
    runs = learning.RunTable(tmp_path / "benchmarks" / "results" / "learning.csv")
    assert "so far with these defaults: Later-v0." in learning.page(
        (easy, later), runs, tmp_path / "none"
    )
    numbers = tmp_path / "benchmarks" / "results" / "learning.csv"
    assert len(numbers.read_text().splitlines()) == 5
    assert (tmp_path / "docs" / "assets" / "learning.png").stat().st_size > 1000
    learning.main(["--seeds", "0", "1", "--out", str(tmp_path)])
    assert capsys.readouterr().out == ""
    assert (tmp_path / "docs" / "learning-results.md").read_text() == page


@pytest.mark.parametrize(
    ("distribution", "options", "arm"),
    [
        ("beta", {"distribution": "gaussian", "lam": 0.9}, ", distribution=gaussian, lam=0.9"),
        ("beta", {"distribution": "beta"}, ""),
        ("squashed", {"distribution": "beta"}, ", distribution=beta"),
        ("squashed", {"lam": 0.9}, ", lam=0.9"),
        (None, {"distribution": "gaussian", "lam": 0.9}, ""),
        (None, {"lam": 0.9}, ", lam=0.9"),
    ],
)
def test_an_alternative_is_none_where_a_task_has_its_distribution_or_cannot(
    learning, distribution, options, arm
):
    task = learning.Task("CartPole-v1", TINY, 1, 0, distribution=distribution)
    assert learning.changed(task, options).arm == learning.OURS + arm


def test_the_tasks_say_what_auto_is_there(learning):
    for task in learning.TASKS:
        if "box2d" in gymnasium.spec(task.env).entry_point:  # not among the tests' extras
            continue
        env = gymnasium.make(task.env)
        space = env.action_space
        env.close()
        box = isinstance(space, gymnasium.spaces.Box)
        assert task.distribution == (box_distribution(Config(), space) if box else None)


def test_alternatives_stand_beside_the_defaults(learning, tmp_path, monkeypatch, capsys):
    tasks = (
        learning.Task("CartPole-v1", TINY, 1, 10),
        learning.Task("CartPole-v1", TINY, 1, 10, {"gamma": 0.9}),
        learning.Task("Later-v0", TINY, 1, 0),
    )
    first, second = {"lam": 0.5}, {"damping": 0.5}
    monkeypatch.setattr(learning, "TASKS", tasks[:2])
    monkeypatch.setattr(learning, "ALTERNATIVES", (first, second))
    page = tmp_path / "docs" / "choosing-defaults.md"
    page.parent.mkdir()
    page.write_text(f"Before.\n{learning.BEGIN}\nold\n{learning.END}\nAfter.\n")
    learning.main(["--alternatives", "--out", str(tmp_path)])
    assert capsys.readouterr().out.count("CartPole-v1") == 4
    assert page.read_text().count("\n|") == 3  # nothing to stand beside
    runs = learning.RunTable(tmp_path / "benchmarks" / "results" / "learning.csv")
    arms = [run.arm for run in runs.runs]
    ours = learning.OURS
    assert arms == [
        f"{ours}, lam=0.5",
        f"{ours}, gamma=0.9, lam=0.5",
        f"{ours}, damping=0.5",
        f"{ours}, gamma=0.9, damping=0.5",
    ]
    table = learning.RunTable(tmp_path / "runs.csv")
    rest = 0.0, 0.96, 0.99, 1.0, "5:1.0"
    for seed, arm, score, area in (
        (0, "", 400.0, 110.0),
        (1, "", 500.0, 210.0),
        (0, ", lam=0.5", 450.0, 310.0),
        (0, ", damping=0.5", 9.0, 0.0),
        (0, ", gamma=0.9", 30.0, 20.0),
        (0, ", gamma=0.9, lam=0.5", 20.0, 15.0),
        (7, ", gamma=0.9, damping=0.5", 25.0, 15.0),  # no seed that the defaults have
    ):
        run = learning.Run("CartPole-v1", TINY, seed, f"{ours}{arm}", score, 1.0, area, *rest)
        table.add(run)
    text = learning.table_of_alternatives(tasks, table).splitlines()
    assert text[0] == "| environment | steps | defaults | `lam=0.5` | `damping=0.5` |"
    assert text[2] == "| CartPole-v1 | 256 | 400, 500 | 450 (3.00) | 9 (-0.10) |"
    assert text[3] == "| CartPole-v1, gamma=0.9 | 256 | 30 | 20 (0.50) | 25 |"
    assert text[4] == "| all | | | (1.22 over 2) |  |"
    assert len(text) == 5


def test_policies_of_every_kind_are_trained_once(tmp_path, monkeypatch, capsys, few_episodes):
    policies = script("benchmarks/policies_learning.py", monkeypatch)
    assert {t.page for t in policies.TASKS} == {"images-and-memory", "hybrid-actions"}
    memory, plain, *_, sorting = policies.TASKS
    assert memory.options == {"policy": "recurrent"}
    assert plain.arm == policies.DEFAULTS
    changes = ({"steps": TINY}, {"steps": TINY, "options": {"rollout_steps": 64}})
    short = [dataclasses.replace(plain, **change) for change in changes]
    short.append(dataclasses.replace(sorting, steps=TINY, options={"rollout_steps": 64}))
    monkeypatch.setattr(policies, "TASKS", tuple(short))
    (tmp_path / "docs").mkdir()
    for name in ("images-and-memory", "hybrid-actions"):
        marks = f"{policies.BEGIN.format(name)}\nold\n{policies.END}"
        (tmp_path / "docs" / f"{name}.md").write_text(f"Before.\n{marks}\nAfter.\n")
    arguments = ["--seeds", "0", "--out", str(tmp_path)]
    policies.main([*arguments, "--only", "CartPole"])
    policies.main(arguments)
    assert capsys.readouterr().out.count("seed") == 3
    page = (tmp_path / "docs" / "images-and-memory.md").read_text()
    assert page.startswith("Before.\n")
    assert page.endswith("\nAfter.\n")
    assert "old" not in page
    assert page.count("| CartPole-v1 without velocities | ") == 2
    page = (tmp_path / "docs" / "hybrid-actions.md").read_text()
    assert "| Sorting | rollout_steps=64 | 256 |" in page
    policies.main(arguments)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_peers_stand_beside(learning, tmp_path, monkeypatch):
    task = learning.Task("CartPole-v1", TINY, 500, 22)
    monkeypatch.setattr(learning, "TASKS", (task,))
    learning.main(["--agents", *learning.AGENTS, "--out", str(tmp_path)])
    page = (tmp_path / "docs" / "learning-results.md").read_text()
    for agent in learning.AGENTS:
        assert f"| {agent} | 1 |" in page


def test_a_run_is_read_back_as_it_was_written(monkeypatch, tmp_path):
    table = script("benchmarks/training_runs.py", monkeypatch)
    run = table.Run("E-v1", 10, 3, "a, b", 1.5, 0.25, -2.0, 3.0, 0.96, 0.99, 1.0, "5:1.0 10:2.5")
    table.RunTable(tmp_path / "runs.csv").add(run)
    again = table.RunTable(tmp_path / "runs.csv")
    assert again.runs == [run]
    assert run.key in again
    assert ("E-v1", 10, 4, "a, b") not in again
    steps, returns = again.runs[0].points()
    assert steps.tolist() == [5.0, 10.0]
    assert returns.tolist() == [1.0, 2.5]


def test_seconds_to_a_score(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    seconds = script("benchmarks/seconds_to_score.py", monkeypatch)
    rest = 0.0, 0.0, 0.0, 1.0, 0.9, 0.9, 1.0
    curves = {
        "ours": ("10:0.0 20:1500.0 30:2500.0", "10:2100.0", "10:0.0 20:100.0 40:2100.0"),
        "theirs": ("10:0.0 100:2200.0 200:1900.0", "10:1.0", "10:2.0"),
    }
    runs = seconds.RunTable(tmp_path / "learning.csv")
    for agent, of_seeds in curves.items():
        for seed, curve in enumerate(of_seeds):
            runs.add(seconds.Run("Hopper-v5", seconds.STEPS, seed, agent, *rest, curve))
    steps = [seconds.steps_to(2000, run) for run in runs.of("Hopper-v5", seconds.STEPS, "ours")]
    assert steps == [25.0, 10.0, 39.0]
    paces = tmp_path / "pace.json"
    assert seconds.section(["ours", "theirs"], runs, paces) == ""
    paces.write_text('{"Hopper-v5": [{"ours": 4, "theirs": 2}, {"ours": 5, "theirs": 1}]}')
    rows = seconds.section(["ours", "theirs"], runs, paces).splitlines()[-2:]
    assert rows[0] == "| Hopper-v5 | 2,000 | ours | 3 | 3 | 25 | 5 | 5 | 1 |"
    assert rows[1] == "| Hopper-v5 | 2,000 | theirs | 3 | 1 | - | 2 | - | - |"
    runs.add(seconds.Run("Hopper-v5", seconds.STEPS, 3, "theirs", *rest, "10:0.0 20:4000.0"))
    runs.add(seconds.Run("Hopper-v5", seconds.STEPS, 4, "theirs", *rest, "10:2000.0"))
    row = seconds.section(["ours", "theirs"], runs, paces).splitlines()[-1]
    steps = 10 + 90 * 2000 / 2200
    assert (
        row == f"| Hopper-v5 | 2,000 | theirs | 5 | 3 | {steps:.0f} | 2 | {steps / 2:.0f} | 9.18 |"
    )


def test_missing_peers_are_trained_to_the_highest_score_alone(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    seconds = script("benchmarks/seconds_to_score.py", monkeypatch)
    peers = script("benchmarks/learning_peers.py", monkeypatch)
    asked = []

    def train(agent, env, steps, seed, until):
        asked.append((agent, seed, until))
        rest = 0.0, 0.0, 0.0, 1.0, 0.9, 0.9, 1.0
        return seconds.Run(env, steps, seed, agent, *rest, f"10:0.0 {100 + seed}:{until}.0")

    monkeypatch.setattr(peers, "train_peer", train)
    monkeypatch.setitem(sys.modules, "learning_peers", peers)
    results = tmp_path / "benchmarks" / "results"
    whole = seconds.RunTable(results / "learning.csv")
    ours, trpo, ppo = seconds.AGENTS
    rest = 0.0, 0.0, 0.0, 1.0, 0.9, 0.9, 1.0
    for seed, agent in ((0, ours), (0, ppo), (2, ppo)):
        run = seconds.Run("HalfCheetah-v5", seconds.STEPS, seed, agent, *rest, "10:0.0 90:4000.0")
        whole.add(run)
    words = ["--only", "HalfCheetah-v5", "--train", "0", "1", "--out", str(tmp_path)]
    seconds.main(words)
    assert asked == [(trpo, 0, 4000), (trpo, 1, 4000), (ppo, 1, 4000)]
    seconds.main(words)  # nothing is missing
    assert len(asked) == 3
    paces = results / "pace.json"
    paces.write_text(json.dumps({"HalfCheetah-v5": [{ours: 10, trpo: 1, ppo: 1}]}))
    rows = seconds.section(seconds.AGENTS, whole, paces).splitlines()[-3:]
    assert rows[0] == "| HalfCheetah-v5 | 4,000 | trpo_fast | 1 | 1 | 90 | 10 | 9 | 1 |"
    assert rows[1] == f"| HalfCheetah-v5 | 4,000 | {trpo} | 2 | 2 | 100 | 1 | 100 | 11.2 |"
    # Whole runs count before those that were stopped: 90, 101 and 90 steps.
    assert rows[2] == f"| HalfCheetah-v5 | 4,000 | {ppo} | 3 | 3 | 90 | 1 | 90 | 10 |"


def test_a_peer_stops_at_a_score(monkeypatch):
    pytest.importorskip("sb3_contrib")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    peers = script("benchmarks/learning_peers.py", monkeypatch)
    monkeypatch.setitem(peers.TRPO_ZOO, "n_steps", 128)
    run = peers.train_peer("sb3-contrib TRPO", "CartPole-v1", 20_000, 0, until=20.0)
    steps, returns = run.points()
    assert returns[-1] >= 20 > returns[:-1].max(initial=0)
    assert steps[-1] < 10_000
    assert run.steps == 20_000


def test_paces_are_measured_in_turns(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    seconds = script("benchmarks/seconds_to_score.py", monkeypatch)
    monkeypatch.setattr(seconds, "measure", lambda agent, env: len(agent) * len(env))
    seconds.main(["--only", "Hopper-v5", "--turns", "2", "--out", str(tmp_path)])
    seconds.main(["--turns", "1", "--out", str(tmp_path)])
    found = seconds.read(tmp_path / "benchmarks" / "results" / "pace.json")
    assert {env: len(turns) for env, turns in found.items()} == {
        **dict.fromkeys(seconds.SCORES, 1),
        "Hopper-v5": 3,
    }
    assert found["Hopper-v5"][2] == {agent: len(agent) * 9 for agent in seconds.AGENTS}


def test_a_thinned_curve_keeps_its_end(monkeypatch):
    table = script("benchmarks/training_runs.py", monkeypatch)
    text = table.shown([(i, float(i)) for i in range(1, 1001)])
    points = text.split()
    assert points[-1] == "1000:1000.0"
    assert table.CURVE_POINTS <= len(points) <= table.CURVE_POINTS + 1


def test_the_interquartile_mean(statistics):
    assert statistics.interquartile_mean([7.0]) == 7.0
    assert statistics.interquartile_mean([1.0, 2.0, 3.0]) == 2.0
    assert statistics.interquartile_mean([1e9, 2.0, 3.0, -1e9]) == 2.5
    assert statistics.interquartile_mean(range(8)) == 3.5


def test_the_interval_covers_as_often_as_it_says(statistics, monkeypatch):
    """Of 80 draws of 12 normal scores, for two tasks with the same centre."""
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    rng, inside = np.random.default_rng(1), 0
    for _ in range(80):
        low, high = statistics.interval([rng.normal(5.0, 1.0, 12), rng.normal(5.0, 1.0, 12)])
        inside += low <= 5.0 <= high
    # A percentile bootstrap of a few runs covers somewhat less than it says.
    assert 0.85 <= inside / 80 <= 0.99


def test_tasks_are_resampled_apart(statistics):
    """Two tasks whose seeds agree: no resample can mix them, so nothing is uncertain."""
    assert statistics.interval([[0.0, 0.0], [1.0, 1.0]]) == (0.5, 0.5)


def test_the_profile_weighs_tasks_alike(statistics):
    found = statistics.profile([[0.0, 1.0], [1.0, 1.0, 1.0, 1.0]], [-1.0, 0.5, 2.0])
    assert found.tolist() == [1.0, 0.75, 0.0]


@pytest.mark.usefixtures("few_episodes")
def test_the_search_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    search = script("benchmarks/default_search.py", monkeypatch)
    page = tmp_path / "docs" / "choosing-defaults.md"
    page.parent.mkdir()
    page.write_text(f"Before.\n{search.BEGIN}\nold\n{search.END}\nAfter.\n")
    arguments = ["--seeds", "0", "--out", str(tmp_path), "--arms", *list(search.ARMS)[:2]]
    arguments += ["--only", "CartPole-v1", "--steps", str(TINY)]
    search.main(arguments)
    assert capsys.readouterr().out.count("seed 0") == 2
    text = page.read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("\nAfter.\n")
    assert "old" not in text
    assert text.count("\n| ") == 3
    search.main(arguments)
    assert capsys.readouterr().out == ""
    assert page.read_text() == text


def test_a_step_is_measured_on_rows_that_it_has_not_seen(tmp_path, monkeypatch, capsys):
    held_out = script("benchmarks/held_out.py", monkeypatch)
    monkeypatch.setattr(held_out, "CASES", (held_out.Case("CartPole-v1", TINY),))
    monkeypatch.setattr(held_out, "ROLLOUTS", 2)
    for name in ("choosing-defaults.md", "choosing-max-kl-and-damping.md"):
        page = tmp_path / "docs" / name
        page.parent.mkdir(exist_ok=True)
        page.write_text(f"Before.\n{held_out.BEGIN}\nold\n{held_out.END}\nAfter.\n")
    held_out.main(["--out", str(tmp_path)])
    capsys.readouterr()
    assert "| CartPole-v1, 64-64 |" in (tmp_path / "docs" / "choosing-defaults.md").read_text()
    solves = (tmp_path / "docs" / "choosing-max-kl-and-damping.md").read_text()
    assert solves.count("\n| ") == 1 + len(held_out.ABSOLUTE)
    with (tmp_path / "benchmarks" / "results" / "held_out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(held_out.DAMPINGS) + len(held_out.ABSOLUTE) * len(held_out.SOLVES)
    for row in rows:
        assert all(float(row[figure]) > 0 for figure in ("seen", "curvature", "diagonal"))
