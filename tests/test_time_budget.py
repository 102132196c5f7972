"""The time budget: every second of an iteration is in exactly one phase."""

from __future__ import annotations

import time

import pytest
from training_process import rows_of, train

from trpo_fast.time_budget import COLUMNS, OTHER, PHASES, Clock, TimeBudget, budget_table


def test_phases_add_up_and_begin_anew():
    budget = TimeBudget()
    with budget.phase("env"):
        time.sleep(0.01)
    budget.add("env", 1.0)
    taken = budget.take()
    assert 1.01 <= taken["env"] < 2
    assert sum(taken.values()) == taken["env"]
    assert not any(budget.take().values())


def test_a_phase_that_raises_is_counted():
    budget = TimeBudget()

    def failing():
        with budget.phase("gae"):
            time.sleep(0.01)
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert budget.seconds["gae"] >= 0.01


def test_other_is_what_no_phase_claims():
    clock = Clock(time_before=100.0, steps_before=50)
    time.sleep(0.02)
    clock.budget.add("critic", 0.005)
    row = clock.figures(250)
    assert row["time/critic"] == 0.005
    assert row["time/other"] >= 0.015
    assert row["time/time_elapsed"] >= 100.02
    assert 0 < row["time/fps"] <= 200 / 0.02
    time.sleep(0.01)
    again = clock.figures(300)
    assert again["time/critic"] == 0
    assert clock.total["other"] == pytest.approx(row["time/other"] + again["time/other"])


def test_the_rows_of_a_run_hold_the_split_and_profile_prints_it(tmp_path, capsys):
    assert train(tmp_path, 640, "--profile") == 0
    rows = rows_of(tmp_path)
    assert len(rows) > 2
    elapsed = 0.0
    for row in rows:
        split = [float(row[column]) for column in COLUMNS]
        assert min(split) >= 0
        passed, elapsed = float(row["time/time_elapsed"]) - elapsed, float(row["time/time_elapsed"])
        assert sum(split) == pytest.approx(passed, rel=1e-3, abs=1e-3)
        assert float(row["time/env"]) > 0
        assert float(row["time/update"]) > 0
    printed = capsys.readouterr().out
    for name in (*PHASES, OTHER):
        assert f"\n  {name}" in printed


def test_the_table_gives_shares():
    text = budget_table({"env": 3.0, "other": 1.0})
    assert "75.0 %" in text
    assert "25.0 %" in text
    assert budget_table({"env": 0.0})
