"""The time budget: every second of an iteration is in exactly one phase."""

from __future__ import annotations

import pytest
from training_process import rows_of, train

from trpo_fast.base import time_budget
from trpo_fast.base.time_budget import COLUMNS, OTHER, PHASES, Clock, TimeBudget, budget_table


class HandSetTime:
    """Stands in for the module: a clock that moves when it is told to. All its times are exact."""

    def __init__(self):
        self.now = 1024.0

    def perf_counter(self):
        return self.now

    def monotonic(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


@pytest.fixture
def time(monkeypatch):
    stand_in = HandSetTime()
    monkeypatch.setattr(time_budget, "time", stand_in)
    return stand_in


def test_phases_add_up_and_begin_anew(time):
    budget = TimeBudget()
    for _ in range(2):
        with budget.phase("env"):
            time.passes(0.25)
        time.passes(7)
    budget.add("env", 1.0)
    taken = budget.take()
    assert taken == dict.fromkeys(PHASES, 0.0) | {"env": 1.5}
    assert not any(budget.take().values())


def test_a_phase_that_raises_is_counted(time):
    budget = TimeBudget()

    def failing():
        with budget.phase("gae"):
            time.passes(0.25)
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert budget.seconds["gae"] == 0.25


def test_other_is_what_no_phase_claims(time):
    clock = Clock(time_before=100.0, steps_before=50)
    time.passes(2)
    clock.budget.add("critic", 0.5)
    row = clock.figures(250)
    assert row["time/critic"] == 0.5
    assert row["time/other"] == 1.5
    assert row["time/time_elapsed"] == 102
    assert row["time/fps"] == 100
    time.passes(0.5)
    again = clock.figures(300)
    assert again["time/critic"] == 0
    assert again["time/other"] == 0.5
    assert again["time/time_elapsed"] == 102.5
    assert again["time/fps"] == 100
    assert clock.total == dict.fromkeys(PHASES, 0.0) | {"critic": 0.5, "other": 2.0}


def test_the_rows_of_a_run_hold_the_split_and_profile_prints_it(tmp_path, capsys):
    assert train(tmp_path, 640, "--profile") == 0
    rows = rows_of(tmp_path)
    assert len(rows) > 2
    elapsed = 0.0
    for row in rows:
        split = [float(row[column]) for column in COLUMNS]
        assert min(split) >= 0
        passed, elapsed = float(row["time/time_elapsed"]) - elapsed, float(row["time/time_elapsed"])
        # Nine digits of each figure are written.
        assert sum(split) == pytest.approx(passed, rel=1e-6, abs=1e-7 * elapsed)
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
