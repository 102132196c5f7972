"""The agent on tensor environments: the same updates, going on after a stop, acting, evaluation."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from agent_cases import SMALL, small, weights
from tensor_cases import Counter, seeded
from tensor_environments import TensorCartPole, TensorPendulum
from torch import Tensor

from trpo_fast import TRPO
from trpo_fast.agent.config import ConfigError
from trpo_fast.base.errors import EnvironmentFault, EnvironmentSetupError
from trpo_fast.cli import main


def tensor_agent(env: Any = TensorCartPole, **options: Any) -> TRPO:
    return small(env, vectorization="tensor", **options)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_it_learns_the_same_bits_as_in_numpy(env: str) -> None:
    plain, ours = small(env), tensor_agent(seeded(env, 2, SMALL["seed"]))
    for agent in (plain, ours):
        agent.learn(4 * 64, progress_bar=False)
    assert torch.equal(weights(plain), weights(ours))
    assert plain.training.recent_returns == ours.training.recent_returns
    for one, other in zip(
        plain.learner.state_dict()["statistics"].values(),
        ours.learner.state_dict()["statistics"].values(),
        strict=True,
    ):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_resumed_run_goes_on_in_new_episodes_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent = tensor_agent(num_envs=5)
    agent.learn(2 * 160, progress_bar=False)
    path = agent.save(tmp_path / "agent")
    loaded = TRPO.load(path, TensorCartPole)
    assert torch.equal(weights(loaded), weights(agent))
    assert loaded.num_timesteps == agent.num_timesteps
    again = TRPO.load(path, TensorCartPole)
    for each in (loaded, again):
        each.learn(160)
    told = capsys.readouterr().out
    assert "new episodes were begun, since its own cannot be replayed" in told
    assert torch.equal(weights(loaded), weights(again))  # the same new episodes, the same noise
    state = loaded.learner.state_dict()["statistics"]["observations"]
    assert state["count"] == 3 * 160


def test_its_checkpoints_serve_without_its_environment(tmp_path: Path) -> None:
    agent = tensor_agent()
    agent.learn(64, progress_bar=False)
    path = agent.save(tmp_path / "agent")
    obs = TensorCartPole(7).reset()
    alone = TRPO.load(path, predict_only=True)
    assert torch.equal(alone.predict(obs)[0], agent.predict(obs)[0])
    again = TRPO.load(alone.save(tmp_path / "again"), TensorCartPole)
    kept, here = again.training.pending_collector or {}, agent.collector.state()
    assert kept.keys() == here.keys()
    assert all(np.array_equal(kept[name], here[name]) for name in kept)
    plain = TRPO.load(path, "CartPole-v1", vectorization="sync")
    plain.learn(64, progress_bar=False)
    assert plain.num_timesteps == 128
    back = TRPO.load(plain.save(tmp_path / "plain"), TensorCartPole, vectorization="tensor")
    back.learn(64, progress_bar=False)
    assert back.num_timesteps == 192


def test_a_closed_environment_is_told_and_the_agent_predicts_on() -> None:
    agent = tensor_agent()
    agent.learn(64, progress_bar=False)
    agent.close()
    assert len(agent.predict(TensorCartPole(7).reset())[0]) == 7
    with pytest.raises(EnvironmentSetupError, match="was closed, and one"):
        agent.learn(64, progress_bar=False)


class Failing(TensorCartPole):
    """Breaks at one step of its life."""

    def __init__(self, at: int, how: Any) -> None:
        super().__init__(3)
        self.left, self.how = at, how

    def step(self, actions: Tensor) -> Any:
        self.left -= 1
        found = super().step(actions)
        return self.how(found) if self.left == 0 else found


def interrupted(_: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (lambda found: (found[0] * torch.nan, *found[1:]), EnvironmentFault),
        (lambda found: found[:3], EnvironmentFault),
        (interrupted, KeyboardInterrupt),
    ],
)
def test_nothing_is_lost_by_a_fault(how: Any, error: Any, tmp_path: Path) -> None:
    agent = tensor_agent(Failing(100, how), run_dir=tmp_path / "run")  # in the fourth rollout
    with pytest.raises(error):
        agent.learn(6 * 96, progress_bar=False)
    assert (agent.num_timesteps, agent.progress.num_updates) == (288, 3)
    newest = max((tmp_path / "run/checkpoints").glob("*.safetensors"))
    kept = TRPO.load(newest, TensorCartPole(3))
    assert kept.num_timesteps == 288
    assert torch.equal(weights(kept), weights(agent))
    agent.learn(96, progress_bar=False)
    assert agent.num_timesteps == 384


def test_networks_go_where_the_environment_is() -> None:
    class Elsewhere(Counter):
        def shown(self) -> Tensor:
            return super().shown().to("meta")

    with pytest.raises(ConfigError, match=r"device='cpu', but the tensors of .* are on meta"):
        tensor_agent(Elsewhere, device="cpu")


def test_policies_that_flattened_rows_do_not_serve_are_refused() -> None:
    with pytest.raises(ConfigError, match="not served with a recurrent policy"):
        tensor_agent(policy="recurrent")
    with pytest.raises(ConfigError, match="shown to policies as flattened rows"):
        tensor_agent(policy="multi_input")


def test_an_evaluation_may_be_in_the_training_environments() -> None:
    agent = tensor_agent(Counter(3), eval_envs=0)
    agent.learn(96, progress_bar=False)
    mean, _ = agent.evaluate(3, progress_bar=False)
    assert mean == np.mean([6, 10, 15])
    resets = agent.env.env.resets
    agent.learn(96, progress_bar=False)
    assert agent.env.env.resets == resets + 1
    assert agent.num_timesteps == 192


@pytest.mark.parametrize("env", [TensorCartPole, TensorPendulum])
def test_it_acts_on_tensors_in_tensors_and_on_arrays_in_arrays(env: Any) -> None:
    agent = tensor_agent(env)
    agent.learn(64, progress_bar=False)
    obs = env(7).reset()
    actions, state = agent.predict(obs)
    assert state is None
    assert isinstance(actions, Tensor)
    assert actions.shape == (7, *agent.action_space.shape)
    assert np.array_equal(actions.numpy(), agent.predict(obs.numpy())[0])
    single, _ = agent.predict(obs[0])
    assert torch.allclose(single.double(), actions[0].double(), atol=1e-6)
    obs[3, 1] = torch.nan
    with pytest.raises(ValueError, match="environment 3 holds nan at index 1"):
        agent.predict(obs)


def test_evaluation_plays_each_episode_whole_in_environments_of_its_own() -> None:
    class Fixed(Counter):
        def __init__(self, num_envs: int = 3) -> None:
            super().__init__(num_envs)

    agent = tensor_agent(Fixed, num_envs=2)
    agent.learn(64, progress_bar=False)
    before = agent.collector.state()["returns"]
    mean, std = agent.evaluate(4, progress_bar=False)
    totals = [n * (n + 1) / 2 for n in (3, 4, 5, 6)]  # one episode an environment
    assert (mean, std) == (np.mean(totals), np.std(totals))
    assert np.array_equal(agent.collector.state()["returns"], before)
    # an object of three environments plays five episodes: two, two and one of theirs
    mean, _ = agent.evaluate(5, env=Counter(3), progress_bar=False)
    assert mean == np.mean([6, 6, 10, 10, 15])


def test_an_evaluation_makes_no_more_environments_than_it_may() -> None:
    counts = []

    class Counted(Counter):
        def __init__(self, num_envs: int = 3) -> None:
            counts.append(num_envs)
            super().__init__(num_envs)

    agent = tensor_agent(Counted, num_envs=2, eval_envs=3)
    agent.evaluate(7, progress_bar=False)
    assert counts == [2, 3]


def test_evaluations_guard_and_limit_episodes() -> None:
    agent = tensor_agent(Counter, num_envs=3, eval_max_steps=4)
    with pytest.warns(UserWarning, match="2 of 3 evaluation episodes were stopped after 4 steps"):
        mean, _ = agent.evaluate(3, env=Long, progress_bar=False)
    assert mean == np.mean([6, 10, 10])
    with pytest.raises(EnvironmentFault, match=r"evaluation: environment 1 .* infinite reward"):
        agent.evaluate(3, env=BadReward(), progress_bar=False)
    dropping = tensor_agent(Counter, num_envs=3, on_fault="drop")
    with pytest.warns(RuntimeWarning, match="The episode is left out"):
        mean, _ = dropping.evaluate(3, env=BadReward(), progress_bar=False)
    assert mean == np.mean([6, 15])
    given = tensor_agent(Counter(3))
    with pytest.raises(EnvironmentSetupError, match="this Counter is the training's: pass env="):
        given.evaluate(3)


class Long(Counter):
    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        self.lengths = torch.tensor([3, 5, 9])


class BadReward(Counter):
    def step(self, actions: Tensor) -> Any:
        obs, rewards, *rest = super().step(actions)
        rewards[1] = torch.nan
        return (obs, rewards, *rest)


def test_the_command_line_trains_resumes_and_evaluates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = ModuleType("some_simulator")
    module.cartpole = TensorCartPole  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_simulator", module)
    monkeypatch.chdir(tmp_path)
    name = "some_simulator:cartpole"
    train = ["train", name, "--vectorization", "tensor", "--num-envs", "8", "--hidden-sizes", "8"]
    train += ["--rollout-steps", "16", "--run-dir", "run", "--eval-every", "256"]
    assert main([*train, "--total-steps", "256"]) == 0
    assert main([*train, "--total-steps", "512", "--resume"]) == 0
    told = capsys.readouterr().out
    assert "8 in tensors on cpu" in told
    assert "new episodes were begun" in told
    assert main(["eval", "run", "--episodes", "5", "--env", name]) == 0
    assert "over 5 episodes" in capsys.readouterr().out
    assert main(["eval", "run", "--episodes", "5"]) == 2
    assert "if you trust it, pass" in capsys.readouterr().err
