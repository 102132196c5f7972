"""`trpo-fast train --config FILE`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trpo_fast import cli
from trpo_fast.agent.config import ConfigError
from trpo_fast.command.config_file import read
from trpo_fast.runs.logger import read_progress

TINY = """
num-envs = 2
rollout_steps = 32
hidden_sizes = [8]
value_hidden_sizes = [8]
critic_epochs = 1
total_steps = 64
"""


@pytest.fixture(autouse=True)
def in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def train(*arguments: str, env: str = "Pendulum-v1") -> int:
    return cli.main(["train", env, "--quiet", *arguments])


def options_of(run: str) -> dict:
    return json.loads(Path(run, "config.json").read_text())["options"]


def test_the_command_line_wins_over_the_file():
    Path("c.toml").write_text(f'{TINY}max_kl = 0.02\ngamma = 0.9\nrun_dir = "a"\nseed = 4\n')
    assert train("--config", "c.toml", "--max-kl", "0.03") == 0
    found = options_of("a")
    assert (found["max_kl"], found["gamma"], found["seed"]) == (0.03, 0.9, 4)
    assert len(read_progress(Path("a/progress.csv"))) == 1
    assert train("--config", "c.toml", "--run-dir", "b", "--total-steps", "128") == 0
    assert options_of("b")["max_kl"] == 0.02
    assert len(read_progress(Path("b/progress.csv"))) == 2


def test_a_run_is_trained_again_from_its_config_json():
    Path("c.toml").write_text(f"{TINY}env_kwargs = {{g = 5.0}}\n")
    assert train("--config", "c.toml", "--run-dir", "a", "--seed", "3") == 0
    again = ("--config", "a/config.json", "--total-steps", "64")
    assert train(*again, "--run-dir", "b") == 0
    assert options_of("b") == options_of("a")
    row = {k: v for k, v in read_progress(Path("a/progress.csv"))[0].items() if "time" not in k}
    assert row.items() <= read_progress(Path("b/progress.csv"))[0].items()
    # Seeds on the command line are in place of the one in the file, and the other way round.
    assert train(*again, "--run-dir", "many", "--seeds", "5,6") == 0
    assert options_of("many/seed-6")["seed"] == 6
    Path("seeds.json").write_text(json.dumps({**options_of("a"), "seeds": [7, 8]}))
    with pytest.raises(SystemExit):
        train("--config")
    assert train("--config", "seeds.json", "--total-steps", "64", "--seed", "9") == 0
    assert Path("runs/Pendulum-v1-s9-1").is_dir()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gae_lambda = 1", "c.toml: no option 'gae_lambda'; that is lam here"),
        ("max_kll = 1", "did you mean 'max_kl'"),
        ("lam = 7", "c.toml: lam must be a number >= 0 and <= 1, got 7"),
        ('max_kl = "0.1"', "max_kl must be a number > 0"),
        ("total_steps = 0", "c.toml: must be at least 1"),
        ("total_steps = [1]", "total_steps cannot be [1]"),
        ('seeds = "4-1"', "not 1 to 1000 seeds"),
        ("lam =", "c.toml is not TOML"),
        ("lam = 0.5\nlam = 0.6", "c.toml is not TOML"),
        pytest.param(f"lam = {'[' * 100_000}", "c.toml is not TOML", id="deep"),
    ],
)
def test_mistakes_in_a_file_are_named_and_nothing_begins(capsys, text, words):
    Path("c.toml").write_text(text)
    assert train("--config", "c.toml") == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not Path("runs").exists()


def test_what_cannot_be_read_is_named(capsys):
    assert train("--config", "none.toml") == 2
    assert "cannot read none.toml" in capsys.readouterr().err
    Path("c.json").write_text("[1]")
    with pytest.raises(ConfigError, match="no table of options, but a list"):
        read(Path("c.json"))
    for text in (b"\xff\xfe", 100_000 * b"["):
        Path("c.json").write_bytes(text)
        with pytest.raises(ConfigError, match="not JSON"):
            read(Path("c.json"))


def test_a_runs_file_is_no_reason_to_import_a_wrapper(capsys):
    name = "gymnasium.wrappers:TimeAwareObservation"
    Path("c.toml").write_text(f'{TINY}wrapper = "{name}"\n')  # which the user wrote
    assert train("--config", "c.toml", "--run-dir", "a", env="CartPole-v1") == 0
    assert options_of("a")["wrapper"] == name
    run = ("--config", "a/config.json", "--total-steps", "64")
    assert train(*run, env="CartPole-v1") == 2
    assert f"add --wrapper {name}" in capsys.readouterr().err
    Path("d.json").write_text(json.dumps({"wrapper": name, "env_kwargs": {}}))  # as tune writes
    assert train("--config", "d.json", env="CartPole-v1") == 2
    assert f"add --wrapper {name}" in capsys.readouterr().err
    assert train(*run, "--wrapper", name, env="CartPole-v1") == 0
    assert f"eval runs/CartPole-v1-s0-1 --episodes 20 --wrapper {name}" in capsys.readouterr().out
    assert cli.main(["eval", "a", "--episodes", "1"]) == 2
    assert "imports code" in capsys.readouterr().err
    assert cli.main(["eval", "a", "--episodes", "1", "--wrapper", name]) == 0
