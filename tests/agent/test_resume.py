"""A resumed run is the uninterrupted one, to the last bit."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from matplotlib.image import imread
from training_process import (
    Training,
    assert_identical,
    final_state,
    iterations,
    rows_of,
    train,
)

from trpo_fast import TRPO, cli
from trpo_fast.agent.state import state_of
from trpo_fast.base.time_budget import COLUMNS as TIME_COLUMNS
from trpo_fast.runs import recorder
from trpo_fast.runs.checkpoint import load_checkpoint
from trpo_fast.runs.directory import RunDirectory
from trpo_fast.runs.logger import ProgressFileError

STUCK = "slow_environment:Stuck-v0"
# What the wall clock decides.
TIMED = {"time/fps", "time/time_elapsed", *TIME_COLUMNS}


def stuck_at(step, marker):
    return ("--env-kwargs", f"marker={marker}", f"at={step}")


def untimed(directory):
    return [{k: v for k, v in row.items() if k not in TIMED} for row in rows_of(directory)]


def assert_same_run(one, other):
    assert_identical(final_state(one), final_state(other))
    assert untimed(one) == untimed(other)


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("CartPole-v1", ()),
        ("Pendulum-v1", ()),
        ("Pendulum-v1", ("--no-normalize-observations", "--no-normalize-rewards")),
        ("CartPole-v1", ("--constraint", "penalty", "--eval-every", "128", "--eval-episodes", "1")),
    ],
)
def test_stopping_and_resuming_changes_no_bit(tmp_path, env, options):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, 640, *options, env=env) == 0
    for steps in (64, 320, 384, 640):
        assert train(parts, steps, *options, env=env) == 0
    assert_same_run(whole, parts)
    assert iterations(parts) == list(range(1, 11))


def test_resuming_an_older_checkpoint_computes_the_lost_rows_again(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    saving = ("--save-every", "5", "--keep-checkpoints", "9")
    assert train(whole, 640, *saving) == 0
    assert train(parts, 512, *saving) == 0
    newest = max((parts / "checkpoints").iterdir())
    newest.unlink()
    assert iterations(parts) == list(range(1, 9))
    assert train(parts, 640) == 0  # with the saved options
    assert_same_run(whole, parts)


@pytest.mark.parametrize("trained", [0, 1])
def test_going_on_from_an_older_checkpoint_leaves_the_newer_ones_behind(tmp_path, trained):
    whole, run = tmp_path / "whole", tmp_path / "run"
    saving = ("--save-every", "1", "--keep-checkpoints", "3")
    assert train(whole, 640, *saving) == 0
    assert train(run, 512, *saving) == 0
    directory = RunDirectory(run)
    older, *newer = directory.rolling()
    with TRPO.load(older, run_dir=run) as agent:
        if trained:
            with pytest.warns(UserWarning, match=f"from step 384; .* as abandoned-{newer[0].name}"):
                agent.learn(64, progress_bar=False)
        else:
            with pytest.warns(UserWarning, match="from step 384"):
                # Killed in the first update.
                with agent.run.recording(agent.training, state_of(agent.training)):
                    pass
    found = directory.latest()
    assert found is not None
    assert found[1]["progress"]["num_updates"] == 6 + trained
    assert iterations(run) == list(range(1, 7 + trained))
    abandoned = [file.with_name(f"abandoned-{file.name}") for file in newer]
    assert [load_checkpoint(file)["progress"]["num_updates"] for file in abandoned] == [7, 8]
    assert train(run, 640) == 0
    assert_same_run(whole, run)


def test_a_damaged_log_is_refused_before_checkpoints_are_left_behind(tmp_path):
    assert train(tmp_path, 256, "--save-every", "1") == 0
    directory = RunDirectory(tmp_path)
    files = directory.rolling()
    rows = directory.progress_file.read_bytes()
    directory.progress_file.write_bytes(rows.replace(b"\n2,", b"\nx,"))
    with TRPO.load(files[0], run_dir=tmp_path) as agent:
        with pytest.raises(ProgressFileError):
            agent.learn(64, progress_bar=False)
    assert directory.rolling() == files


def test_a_run_may_go_on_with_another_vectorization_of_the_same_bits(tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(whole, 320, "--vectorization", "sync") == 0
    for steps, vectorization in ((64, "workers"), (128, "async"), (192, "auto"), (320, "workers")):
        assert train(parts, steps, "--vectorization", vectorization) == 0
    assert "changed on resume: vectorization: 'auto' -> 'workers'" in capsys.readouterr().out
    one, other = final_state(whole), final_state(parts)
    assert other["config"].pop("vectorization") == "workers"
    del one["config"]["vectorization"]
    assert_identical(one, other)
    assert train(parts, 384, "--vectorization", "envpool") == 2
    assert "cannot change what the run was built with" in capsys.readouterr().err


def saved_updates(directory):
    """The updates that the newest checkpoint holds; 0 before the first one."""
    found = RunDirectory(directory).latest()
    return found[1]["progress"]["num_updates"] if found else 0


@pytest.mark.parametrize("vectorization", ["auto", "workers"])
def test_sigkill_at_any_time_loses_at_most_one_save_interval(tmp_path, vectorization):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    steps, every = 6400, 7
    stepped = ("--vectorization", vectorization)
    assert train(whole, steps, "--save-every", str(every), *stepped) == 0
    generator = random.Random(time.time_ns())
    reached = []
    for target in (generator.randint(1, 30), generator.randint(40, 70)):
        training = Training(killed, steps, "--save-every", str(every), *stepped)
        training.wait_for_rows(target)
        time.sleep(generator.uniform(0, 0.02))
        training.send(signal.SIGKILL)
        training.finish()
        rows = iterations(killed)
        assert rows == list(range(1, len(rows) + 1))
        assert saved_updates(killed) >= len(rows) - every
        reached.append(len(rows))
    assert train(killed, steps, "--save-every", str(every)) == 0
    assert_same_run(whole, killed)
    assert iterations(killed) == list(range(1, 101)), reached


# One process after the other trains, and sends itself signals: one before each of its dealings with
# the disk from the n-th on.
KILLED_AT_EACH_WRITE = """
import itertools, os, pathlib, signal
from training_process import train

train(pathlib.Path(RUNS) / "0", 64, *OPTIONS)  # what is imported late is imported before the forks

def killed_at(owner, name):
    real = getattr(owner, name)
    def deadly(*arguments, **keywords):
        global moment
        moment -= 1
        if moment <= 0:
            os.kill(os.getpid(), signal.NUMBER)
        return real(*arguments, **keywords)
    setattr(owner, name, deadly)

for call in itertools.count(1):
    child = os.fork()
    if not child:
        moment = call
        for owner, name in ((os, "fsync"), (pathlib.Path, "replace"), (pathlib.Path, "unlink")):
            killed_at(owner, name)
        os._exit(train(pathlib.Path(RUNS) / str(call), 640, *OPTIONS))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != DEATH:
        break
print(call, code)
"""


@pytest.mark.parametrize(("number", "death"), [("SIGKILL", -9), ("SIGINT", 130)])
def test_a_death_at_each_write_loses_at_most_one_save_interval(tmp_path, run_python, number, death):
    """Killed, or interrupted twice: the second time in writing what the first one left to do."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # "auto" writes its choice when the times of steps have told, which is not always one moment.
    options = ("--save-every", "3", "--vectorization", "sync")
    assert train(whole, 640, *options) == 0
    code = KILLED_AT_EACH_WRITE.replace("RUNS", repr(str(killed))).replace("NUMBER", number)
    code = code.replace("OPTIONS", repr(options)).replace("DEATH", str(death))
    done = run_python(code, PYTHONPATH=str(Path(__file__).parents[1]), OMP_NUM_THREADS="1")
    calls, status = map(int, done.stdout.split()[-2:])
    assert status == 0, done.stderr
    # A row and its fsync for each of 10 updates, and three calls for each of 4 checkpoints.
    assert calls > 22
    reached = []
    for call in range(1, calls):
        run = killed / str(call)
        rows = iterations(run)
        assert rows == list(range(1, len(rows) + 1))
        assert saved_updates(run) >= len(rows) - 3
        reached.append((len(rows), saved_updates(run)))
        assert train(run, 640, *options) == 0
        assert_same_run(whole, run)
        assert iterations(run) == list(range(1, 11))
    # Between a row and its checkpoint as well, the first one included.
    assert {(3, 0), (6, 3), (9, 6), (3, 3)} <= set(reached)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_a_rollout_saves_exits_130_and_resumes(tmp_path, number):
    """At once: the environment would stay in its step for hours."""
    whole, cut, marker = tmp_path / "whole", tmp_path / "cut", tmp_path / "marker"
    marker.touch()
    assert train(whole, 256, *stuck_at(70, marker), env=STUCK) == 0
    marker.unlink()
    training = Training(cut, 256, *stuck_at(70, marker), env=STUCK)
    training.wait_for_file(marker)
    training.send(number)
    code, _, err = training.finish()
    assert code == 130, err
    assert "Traceback" not in err
    assert "interrupted" in err
    assert "--resume" in err
    # 70 steps are two whole rollouts of 32, and some.
    assert final_state(cut)["progress"]["num_updates"] == len(rows_of(cut)) == 2
    assert train(cut, 256, *stuck_at(70, marker), env=STUCK) == 0
    assert_same_run(whole, cut)


def test_two_interrupts_stop_at_once_and_leave_a_good_checkpoint(tmp_path):
    """The second one may come while the first one's checkpoint is written, or after that."""
    marker = tmp_path / "marker"
    training = Training(tmp_path, 256, *stuck_at(70, marker), "--save-every", "1", env=STUCK)
    training.wait_for_file(marker)
    training.send(signal.SIGINT)
    training.send(signal.SIGINT)
    code, _, err = training.finish()
    assert code == 130, err
    assert "Traceback" not in err
    assert iterations(tmp_path) == [1, 2]
    assert saved_updates(tmp_path) == 2


@pytest.mark.parametrize("phase", ["rollout", "solve", "critic", "evaluation", "save", "row"])
def test_an_interrupt_in_any_phase_leaves_a_whole_update(tmp_path, monkeypatch, phase):
    """The signal arrives deep inside each phase of the third update."""
    from trpo_fast.backends.cpu.value_fit import AdamFit

    options = {"num_envs": 2, "rollout_steps": 32, "hidden_sizes": (8,), "seed": 0}
    options |= {"eval_every": 64, "eval_episodes": 1, "save_every": 1}
    with TRPO("CartPole-v1", run_dir=tmp_path / "whole", **options) as whole:
        whole.learn(320, progress_bar=False)
    agent = TRPO("CartPole-v1", run_dir=tmp_path / "cut", **options)
    owner, name = {
        "rollout": (agent.env, "step"),
        "solve": (agent.optimizer, "step"),
        "critic": (AdamFit, "epoch"),
        "evaluation": (agent.actor, "act_each"),
        "save": (os, "replace"),
        "row": (os, "fsync"),
    }[phase]
    if phase == "save":
        owner, name = type(tmp_path), "replace"
    original = getattr(owner, name)
    armed = {"at": None}

    def interrupting(*arguments, **keywords):
        result = original(*arguments, **keywords)
        if agent.progress.num_updates == armed["at"]:
            armed["at"] = None
            os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(owner, name, interrupting)
    # Rollout, solve and critic come before the counter moves, the other phases after.
    armed["at"] = 2 if phase in ("rollout", "solve", "critic") else 3
    with pytest.raises(KeyboardInterrupt):
        agent.learn(320, progress_bar=False)
    monkeypatch.undo()
    done = agent.progress.num_updates
    assert done == (3 if phase in ("save", "row") else 2)
    assert iterations(tmp_path / "cut") == list(range(1, done + 1))
    newest = max((tmp_path / "cut" / "checkpoints").glob("step-*"))
    assert load_checkpoint(newest)["progress"]["num_updates"] == done
    # The agent itself is usable, and goes on as if nothing had been.
    agent.learn(320 - agent.num_timesteps, progress_bar=False)
    agent.close()
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.reliability("signal_at_the_picture")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_the_picture_is_drawn_leaves_all_written(
    tmp_path, monkeypatch, capsys, number
):
    draw = recorder.plot_runs

    def interrupted(*arguments):
        os.kill(os.getpid(), number)
        return draw(*arguments)

    monkeypatch.setattr(recorder, "plot_runs", interrupted)
    assert train(tmp_path, 128) == 130
    assert "interrupted" in capsys.readouterr().err
    assert imread(RunDirectory(tmp_path).picture_file).size
    assert saved_updates(tmp_path) == len(rows_of(tmp_path)) == 2
    assert not list(tmp_path.rglob(".*.tmp"))
    monkeypatch.undo()
    assert train(tmp_path, 128) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_two_trainings_in_one_directory_are_refused_and_plotting_is_not(tmp_path, capsys):
    first = Training(tmp_path, 10_000_000)
    try:
        first.wait_for_rows(2)
        assert train(tmp_path, 640) == 2
        error = capsys.readouterr().err
        assert f"{tmp_path} is in use by another training (process {first.process.pid} on" in error
        assert cli.main(["plot", str(tmp_path), "--out", str(tmp_path / "x.png")]) == 0
        first.send(signal.SIGKILL)
        first.finish()
        done = len(rows_of(tmp_path))
        assert train(tmp_path, 64 * (done + 2)) == 0
        assert iterations(tmp_path) == list(range(1, done + 3))
    finally:
        first.kill()
        first.finish()
