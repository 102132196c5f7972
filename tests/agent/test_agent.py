"""The agent as a library: learning, what it writes, callbacks, mistakes."""

from __future__ import annotations

import inspect
import json

import gymnasium
import pytest
import torch
from agent_cases import small, weights
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from toy_environments import TERMINATED, TRUNCATED, Masked, Scripted, Walk

from trpo_fast.agent.agent import TRPO
from trpo_fast.agent.config import Config, ConfigError, UnknownOptionError
from trpo_fast.base.errors import UnsupportedSpaceError
from trpo_fast.runs.checkpoint import load_checkpoint
from trpo_fast.runs.directory import RunDirectoryError
from trpo_fast.runs.logger import read_progress


def test_learn_adds_timesteps_in_whole_rollouts():
    with small() as agent:
        assert agent.learn(65, progress_bar=False) is agent
        assert agent.num_timesteps == 128
        agent.learn(64, progress_bar=False)
        assert agent.num_timesteps == 192
        assert agent.progress.num_updates == 3


def test_pitfall_21_timesteps_count_real_transitions_only():
    def vector(mode):
        script = ((3, TERMINATED), (2, TRUNCATED))
        return SyncVectorEnv([lambda: Scripted(script)] * 2, autoreset_mode=mode)

    with small(vector(AutoresetMode.NEXT_STEP), rollout_steps=14) as agent:
        agent.learn(1, progress_bar=False)
        # Of 14 rows an environment spends 3 + reset + 2 + reset + 3 + reset + 2 + reset.
        assert agent.num_timesteps == 2 * (3 + 2 + 3 + 2)
    with small(vector(AutoresetMode.SAME_STEP), rollout_steps=14) as agent:
        agent.learn(1, progress_bar=False)
        assert agent.num_timesteps == 28


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(int(torch.randint(1000, ())))
        with small(seed=seed) as agent:
            agent.learn(200, progress_bar=False)
            results.append(weights(agent))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_training_leaves_the_global_generators_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with small() as agent:
        agent.learn(100, progress_bar=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_run_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with small() as agent:
        agent.learn(100, progress_bar=False)
        agent.evaluate(2)
    assert not list(tmp_path.iterdir())


def test_a_run_directory_holds_what_the_contract_says(tmp_path):
    directory = tmp_path / "run"
    with small(run_dir=directory, save_every=1, eval_every=64, eval_episodes=2) as agent:
        agent.learn(320, progress_bar=False)
        rows = read_progress(directory / "progress.csv")
        assert [int(r["time/iterations"]) for r in rows] == [1, 2, 3, 4, 5]
        assert int(rows[-1]["time/total_timesteps"]) == 320
        assert all(r["eval/mean_reward"] for r in rows)
        assert all(r["train/status"] for r in rows)
        config = json.loads((directory / "config.json").read_text())
        assert Config.from_options(config["options"]) == agent.config
        assert len(list(directory.glob("events.out.tfevents.*"))) == 1
        assert (directory / "learning_curve.png").stat().st_size > 1000
        assert len(list((directory / "checkpoints").glob("step-*.safetensors"))) == 3
        best = load_checkpoint(directory / "checkpoints" / "best.safetensors")
        scores = [float(r["eval/mean_reward"]) for r in rows]
        assert best["progress"]["best_evaluation"] == pytest.approx(max(scores))
        # The same agent may go on there; another one may not.
        agent.learn(64, progress_bar=False)
        assert len(read_progress(directory / "progress.csv")) == 6
    with small(run_dir=directory) as other, pytest.raises(RunDirectoryError, match="--resume"):
        other.learn(64, progress_bar=False)


@pytest.mark.parametrize("place", ["info", "method", "observation"])
def test_masked_environments_train(place):
    with small(lambda: Masked(place), rollout_steps=10) as agent:
        agent.learn(40, progress_bar=False)
        assert agent.evaluate(3) == (5.0, 0.0)


def test_a_function_is_called_after_each_update_and_can_stop():
    seen = []

    def callback(local, global_):
        seen.append(local["self"].num_timesteps)
        return len(seen) < 2

    with small() as agent:
        agent.learn(640, callback, progress_bar=False)
    assert seen == [64, 128]


def test_an_object_is_driven_as_stable_baselines3_drives_it():
    calls = []

    class Recorder:
        def init_callback(self, model):
            calls.append(("init", model.num_timesteps))

        def on_training_start(self, local, global_):
            calls.append(("start", "self" in local))

        def on_step(self):
            calls.append("step")
            return True

        def on_training_end(self):
            calls.append("end")

    with small() as agent:
        agent.learn(128, Recorder(), progress_bar=False)
    assert calls == [("init", 0), ("start", True), "step", "step", "end"]


def test_what_is_no_callback_is_refused():
    with small() as agent, pytest.raises(TypeError, match="on_step"):
        agent.learn(64, callback=3, progress_bar=False)


def test_help_shows_every_option():
    names = list(inspect.signature(TRPO).parameters)
    assert names[:5] == ["env", "policy", "value_function", "run_dir", "process_group"]
    assert {"policy", *names[5:]} == set(Config().to_json())


def test_mistakes_are_told_in_words():
    with pytest.raises(UnknownOptionError, match="did you mean 'num_envs'"):
        small(num_env=3)
    with pytest.raises(ValueError, match="nosuch"):
        small(activation="nosuch")
    with pytest.raises(ValueError, match="squashed"):
        small(distribution="squashed")
    with pytest.raises(ValueError, match="CUDA"):
        small(device="cuda:99")
    with pytest.raises(ConfigError, match="backend='cuda' does not serve networks on 'cpu'"):
        small(backend="cuda")
    with pytest.raises(ValueError, match="Did you mean CartPole-v1"):
        small("CartPol-v1")

    class Odd(Scripted):
        observation_space = gymnasium.spaces.Text(5)

    with pytest.raises(UnsupportedSpaceError, match="Supported: Box"):
        small(Odd)


def test_a_seed_is_drawn_and_recorded_when_none_is_given():
    with small(seed=None) as one, small(seed=None, env_kwargs=None) as two:
        assert one.config.seed is not None
        assert one.seed != two.seed


def test_autodetected_number_of_environments():
    with small(Walk()) as agent:
        assert agent.config.num_envs == 1


@pytest.mark.parametrize("steps", [-5, 1.5, float("nan"), "many"])
def test_learn_refuses_what_is_no_number_of_steps(steps: object) -> None:
    agent = TRPO("CartPole-v1", seed=0, num_envs=1)
    with pytest.raises(ValueError, match="total_timesteps is a whole number"):
        agent.learn(steps)  # type: ignore[arg-type]
