"""The command line: what it prints, writes and returns, and how it takes mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE

from trpo_fast import cli
from trpo_fast.agent.config import OPTIONS, Config
from trpo_fast.base.install import install_line
from trpo_fast.command import options as options_module
from trpo_fast.command import train as train_module
from trpo_fast.command.options import agent_options, parse
from trpo_fast.runs.checkpoint import load_checkpoint
from trpo_fast.runs.logger import read_progress

TINY = [
    *("--num-envs", "2", "--rollout-steps", "32", "--hidden-sizes", "8", "--critic-epochs", "1"),
    *("--value-hidden-sizes", "8"),
]


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train(*arguments: str, env: str = "CartPole-v1") -> int:
    return cli.main(["train", env, *TINY, *arguments])


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    assert isinstance(stop.value.code, int)
    return stop.value.code


def checkpoints(directory: Path) -> list[str]:
    return sorted(p.name for p in (directory / "checkpoints").iterdir())


# train


def test_training_ends_by_naming_what_it_wrote(capsys):
    assert train("--total-steps", "320", "--seed", "5") == 0
    out = capsys.readouterr().out
    directory = Path("runs/CartPole-v1-s5-1")
    assert str(directory / "checkpoints" / "step-000000000320.safetensors") in out
    assert str(directory / "progress.csv") in out
    assert str(directory / "learning_curve.png") in out
    assert "320/320 steps" in out
    for name in ("progress.csv", "learning_curve.png", "config.json"):
        assert (directory / name).exists()


def test_default_directories_count_up():
    for _ in range(2):
        assert train("--total-steps", "64", "--quiet") == 0
    assert sorted(p.name for p in Path("runs").iterdir()) == [
        "CartPole-v1-s0-1",
        "CartPole-v1-s0-2",
    ]


def test_total_steps_are_absolute_and_resume_goes_on(capsys):
    assert train("--total-steps", "128", "--run-dir", "r") == 0
    assert train("--total-steps", "256", "--run-dir", "r", "--resume") == 0
    rows = read_progress(Path("r/progress.csv"))
    assert [int(r["time/total_timesteps"]) for r in rows] == [64, 128, 192, 256]
    capsys.readouterr()
    assert train("--total-steps", "256", "--run-dir", "r", "--resume") == 0
    assert "nothing to do" in capsys.readouterr().out


def test_resume_finds_the_last_default_directory():
    assert train("--total-steps", "64", "--seed", "3") == 0
    assert train("--total-steps", "64", "--seed", "3") == 0
    assert train("--total-steps", "128", "--seed", "3", "--resume") == 0
    assert len(read_progress(Path("runs/CartPole-v1-s3-1/progress.csv"))) == 1
    assert len(read_progress(Path("runs/CartPole-v1-s3-2/progress.csv"))) == 2


def test_a_used_directory_is_refused_with_the_way_out(capsys):
    assert train("--total-steps", "64", "--run-dir", "r") == 0
    before = Path("r/progress.csv").read_bytes()
    assert train("--total-steps", "64", "--run-dir", "r") == 2
    error = capsys.readouterr().err
    assert "--resume" in error
    assert "--run-dir" in error
    assert Path("r/progress.csv").read_bytes() == before


def test_resume_without_a_checkpoint_starts_afresh():
    assert train("--total-steps", "64", "--run-dir", "new", "--resume") == 0
    assert train("--total-steps", "128", "--run-dir", "r") == 0
    for file in Path("r/checkpoints").iterdir():
        file.unlink()
    assert train("--total-steps", "64", "--run-dir", "r", "--resume") == 0
    rows = read_progress(Path("r/progress.csv"))
    assert [int(r["time/total_timesteps"]) for r in rows] == [64]


def test_resume_refuses_to_change_what_the_run_was_built_with(capsys):
    assert train("--total-steps", "64", "--run-dir", "r") == 0
    again = ("--total-steps", "128", "--run-dir", "r", "--resume")
    assert train(*again, "--seed", "9", "--hidden-sizes", "9") == 2
    error = capsys.readouterr().err
    assert "seed: 0 -> 9" in error
    assert "hidden_sizes: (8,) -> (9,)" in error
    assert train(*again, env="Acrobot-v1") == 2
    error = capsys.readouterr().err
    assert "environment: the checkpoint has CartPole-v1, here it is Acrobot-v1" in error
    assert "Traceback" not in error
    assert train(*again, "--max-kl", "0.02") == 0
    assert "max_kl: 0.01 -> 0.02" in capsys.readouterr().out


def test_evaluations_keep_the_best_checkpoint(capsys):
    arguments = ("--eval-every", "64", "--eval-episodes", "2", "--total-steps", "192")
    assert train(*arguments, "--run-dir", "r") == 0
    assert "best.safetensors" in capsys.readouterr().out
    rows = read_progress(Path("r/progress.csv"))
    scores = [float(r["eval/mean_reward"]) for r in rows]
    best = load_checkpoint(Path("r/checkpoints/best.safetensors"))
    assert best["progress"]["num_updates"] == 1 + scores.index(max(scores))


def test_rolling_checkpoints_follow_save_every():
    arguments = ("--save-every", "2", "--keep-checkpoints", "2", "--total-steps", "448")
    assert train(*arguments, "--run-dir", "r", "--quiet") == 0
    assert checkpoints(Path("r")) == [
        "step-000000000384.safetensors",
        "step-000000000448.safetensors",
    ]


def test_every_option_of_the_agent_is_an_option_of_train(capsys):
    values = {"bool": [], "num_envs": ["3"], "env_kwargs": ["a=1", "b=x", "c=[1, 2]"]}
    samples = {
        "max_kl": ["0.5"],
        "hidden_sizes": ["3", "4"],
        "eval_every": ["1e4"],
        "seed": ["7"],
        "constraint": ["penalty"],
        **values,
    }
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    # Without blanks: where lines are broken depends on the terminal's width.
    text = "".join(capsys.readouterr().out.split())
    for name, option in OPTIONS.items():
        flag = f"--{name.replace('_', '-')}"
        assert flag in text
        assert "".join(option.text.split())[:30] in text
        if name in samples:
            given = parse(cli.build_parser(), ["train", "X-v0", flag, *samples[name]])
            assert set(agent_options(given)) == {name}
            Config.from_options(agent_options(given))
    given = parse(cli.build_parser(), ["train", "X-v0", "--env-kwargs", "a=1", "b=x", "c=[1, 2]"])
    assert agent_options(given) == {"env_kwargs": {"a": 1, "b": "x", "c": [1, 2]}}
    given = parse(cli.build_parser(), ["train", "X-v0", "--no-normalize-observations"])
    assert agent_options(given) == {"normalize_observations": False}


@pytest.mark.parametrize(
    ("name", "number"), [("log_std_init", 0.5), ("value_lam", 0.5), ("seed", 7)]
)
def test_numbers_that_may_be_none_are_so_by_that_word(name, number):
    flag = f"--{name.replace('_', '-')}"
    for text, value in (("None", None), ("none", None), (str(number), number)):
        given = parse(cli.build_parser(), ["train", "X-v0", flag, text])
        assert agent_options(given) == {name: value}
        Config.from_options(agent_options(given))
    optional = {n for n, o in OPTIONS.items() if o.optional}
    assert optional == {"log_std_init", "value_lam", "seed"}


# mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["CartPol-v1"], "Did you mean CartPole-v1"),
        (["NoSuchEnvironmentAnywhere-v0"], "no environment"),
        (["nosuchmodule:Env-v0"], "nosuchmodule"),
        (["CartPole-v1", "--activation", "nosuch"], "nosuch"),
        (["CartPole-v1", "--distribution", "squashed"], "squashed"),
        (["CartPole-v1", "--max-kl", "-1"], "max_kl must be a number > 0"),
        (["CartPole-v1", "--value-lam", "2"], "must be a number >= 0 and <= 1, or None"),
        (["CartPole-v1", "--num-envs", "0"], "num_envs must be a whole number >= 1"),
        (["CartPole-v1", "--env-kwargs", "nosuch=1"], "nosuch"),
        (["CartPole-v1", "--device", "nosuch"], "device"),
        (["CartPole-v1", "--device", "meta"], "device is"),
        (["CartPole-v1", "--run-dir", "/proc/nowhere/x"], "cannot write"),
    ],
)
def test_mistakes_get_one_line_and_exit_2(capsys, arguments, words):
    assert cli.main(["train", "--total-steps", "10", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "CartPole-v1", "--max-kll", "1"], "did you mean '--max-kl'"),
        (["train", "CartPole-v1", "--constraint", "soft"], "invalid choice"),
        (["train", "CartPole-v1", "--total-steps", "many"], "not a whole number"),
        (["train", "CartPole-v1", "--total-steps", "0"], "at least 1"),
        (["train", "CartPole-v1", "--log-std-init", "Non"], "'Non' is not a number or None"),
        (["train", "CartPole-v1", "--lam", "None"], "'None' is not a number"),
        (["train", "CartPole-v1", "--seed", "Non"], "'Non' is not a whole number or None"),
        (["train", "CartPole-v1", "--env-kwargs", "x"], "KEY=VALUE"),
        (["train"], "ENV_ID"),
        (["trian"], "invalid choice"),
        ([], "COMMAND"),
    ],
)
def test_wrong_usage_is_exit_2(capsys, arguments, words):
    assert exit_code(*arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "CartPole-v1", "--episodes", "3"], "--episodes 3; did you mean '--eval-ep"),
        (["train", "CartPole-v1", "--bogus"], "--bogus\n"),
        (["eval", "r", "--max-kll", "3"], "--max-kll 3\n"),
        (["eval", "r", "--episode", "3"], "--episode 3; did you mean '--episodes'"),
        (["plot", "r", "--out", "x.png", "--jsn"], "--jsn\n"),
        (["doctor", "--jsn"], "--jsn; did you mean '--json'?"),
    ],
)
def test_only_options_of_the_command_are_offered(capsys, arguments, words):
    assert exit_code(*arguments) == 2
    error = capsys.readouterr().err
    assert f"usage: trpo-fast {arguments[0]}" in error
    assert f"unrecognized arguments: {words}" in error


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch):
    def broken(*_, **__):
        raise ValueError("a bug")

    monkeypatch.setattr(train_module, "TRPO", broken)
    with pytest.raises(ValueError, match="a bug"):
        train()


# eval, plot, doctor


def test_eval_plays_the_newest_the_best_or_a_named_checkpoint(capsys):
    assert train("--total-steps", "128", "--run-dir", "r", "--eval-every", "64") == 0
    capsys.readouterr()
    assert cli.main(["eval", "r", "--episodes", "2"]) == 0
    first = capsys.readouterr().out
    assert "step-000000000128" in first
    assert "over 2 episodes" in first
    assert cli.main(["eval", "r", "--episodes", "2"]) == 0
    assert capsys.readouterr().out == first
    assert cli.main(["eval", "r", "--best"]) == 0
    assert "best.safetensors" in capsys.readouterr().out
    assert cli.main(["eval", "r/checkpoints/best.safetensors", "--seed", "3"]) == 0


def test_eval_of_nothing_is_exit_2(capsys):
    Path("empty").mkdir()
    for arguments in (["eval", "nosuch"], ["eval", "empty"], ["eval", "empty", "--best"]):
        assert cli.main(arguments) == 2
        assert "checkpoint" in capsys.readouterr().err
    Path("bad.safetensors").write_bytes(b"nothing")
    assert cli.main(["eval", "bad.safetensors"]) == 2


def test_eval_records_videos_or_names_the_extra(capsys):
    assert train("--total-steps", "64", "--run-dir", "r") == 0
    code = cli.main(["eval", "r", "--episodes", "1", "--video", "videos"])
    try:
        import moviepy  # noqa: F401
        import pygame  # noqa: F401
    except ImportError:
        assert code == 2
        assert install_line("video") in capsys.readouterr().err
    else:
        assert code == 0
        assert list(Path("videos").glob("*.mp4"))


def test_plot_draws_one_run_or_several(capsys):
    for name in "ab":
        assert train("--total-steps", "256", "--run-dir", name) == 0
    capsys.readouterr()
    assert cli.main(["plot", "a", "b", "--out", "pictures/both.png"]) == 0
    assert Path("pictures/both.png").stat().st_size > 1000
    assert "pictures/both.png" in capsys.readouterr().out
    assert cli.main(["plot", "nosuch", "--out", "x.png"]) == 2


def test_a_damaged_progress_file_is_named_by_plot_and_resume(capsys):
    assert train("--total-steps", "128", "--run-dir", "r") == 0
    file = Path("r/progress.csv")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + b"\xff" + b"".join(lines[1:]))
    config = Path("r/config.json").read_bytes()
    for arguments in (
        ["plot", "r", "--out", "x.png"],
        ["train", "CartPole-v1", "--total-steps", "192", "--run-dir", "r", "--resume"],
    ):
        capsys.readouterr()
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert "r/progress.csv is damaged in line 2" in error
        assert "Traceback" not in error
    assert Path("r/config.json").read_bytes() == config
    file.unlink()
    file.mkdir()
    assert cli.main(["plot", "r", "--out", "x.png"]) == 2
    assert "cannot read r/progress.csv" in capsys.readouterr().err


def test_doctor_speaks_text_and_json(capsys):
    assert cli.main(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["packages"]["torch"]


# output that nobody reads


def program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "trpo_fast", *arguments]


def test_a_closed_pipe_does_not_stop_a_training():
    command = program("train", "CartPole-v1", *TINY, "--total-steps", "640", "--run-dir", "r")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=PATIENCE
    )
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 0
    assert len(read_progress(Path("r/progress.csv"))) == 10


def test_a_narrow_locale_and_no_color_are_survived():
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "NO_COLOR": "1"}
    environment["PYTHONIOENCODING"] = "ascii"
    command = program("train", "CartPole-v1", *TINY, "--total-steps", "64", "--run-dir", "läuft")
    done = subprocess.run(
        command, env=environment, capture_output=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert b"progress.csv" in done.stdout
    assert b"\x1b" not in done.stdout


@pytest.mark.parametrize("command", ["train", "eval"])
def test_an_instruction_set_that_is_none_is_a_mistake(command):
    done = subprocess.run(
        program(command, "CartPole-v1"),
        env=os.environ | {"TRPO_FAST_ISA": "vax"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert 'TRPO_FAST_ISA is "vax"' in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("runs").exists()


@pytest.mark.reliability("module_beside_the_user")
@pytest.mark.parametrize("program", ["trpo-fast", "-m"])
def test_a_module_in_the_working_directory_is_found(program: str, tmp_path: Path) -> None:
    (tmp_path / "mymodule.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control.cartpole import CartPoleEnv\n"
        "gymnasium.register('Mine-v0', entry_point=CartPoleEnv, max_episode_steps=20)\n"
    )
    start = "import sys; from trpo_fast.cli import main; sys.exit(main())"
    # A console script's path begins with its own directory, not with the user's.
    command = ["-m", "trpo_fast"] if program == "-m" else ["-P", "-c", start]
    steps = ["--total-steps", "16", "--rollout-steps", "8", "--num-envs", "2", "--run-dir", "r"]
    env = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    for arguments in (
        ["train", "mymodule:Mine-v0", *steps],
        ["eval", "r", "--episodes", "1", "--env", "mymodule:Mine-v0"],
    ):
        done = subprocess.run(
            [sys.executable, *command, *arguments],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_a_missing_native_module_is_said_at_the_start(monkeypatch, capsys):
    monkeypatch.setattr(options_module._native, "core", None)
    monkeypatch.setattr(options_module._native, "load_error", "it was not built. Run make build.")
    options_module.check_native_code()
    error = capsys.readouterr().err
    assert error == (
        "warning: pure-torch code is used, which is slower: it was not built. Run make build.\n"
    )
