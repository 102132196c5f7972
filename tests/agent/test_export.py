"""An exported policy gives the actions of `predict`, without this package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.distributions import Normal

from trpo_fast import TRPO
from trpo_fast.base.errors import MissingExtraError
from trpo_fast.base.spaces import leaves
from trpo_fast.environments.observation_check import pick

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")

NESTED = spaces.Dict(
    {
        "far": spaces.Box(1e6, 1e6 + 1, (2, 2), np.float64),
        "grip": spaces.Tuple((spaces.Discrete(3, start=5), spaces.MultiDiscrete([2, 4]))),
        "lamps": spaces.MultiBinary(3),
        "picture": spaces.Box(0, 255, (2, 3), np.uint8),
    }
)
PLAIN = spaces.Box(-1.0, 1.0, (3,))


class Seen(gym.Env[Any, Any]):
    """Observations are drawn from the space; every action is taken."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return self.observation_space.sample(), 1.0, False, False, {}


class Own(nn.Module):
    """A policy of a user's: no `to_env`, a distribution of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)

    def forward(self, obs: torch.Tensor) -> Any:
        return torch.distributions.Independent(Normal(3 * self.body(obs), 1.0), 1)


def trained(observation_space: Any, action_space: Any, **options: Any) -> TRPO:
    agent = TRPO(
        lambda: Seen(observation_space, action_space),
        num_envs=2,
        rollout_steps=32,
        hidden_sizes=(8,),
        seed=3,
        **options,
    )
    agent.learn(128, progress_bar=False)
    agent.close()
    return agent


def asked(agent: TRPO, count: int = 5) -> tuple[list[np.ndarray], Any]:
    """Some observations by their parts, and the actions that the agent takes on them."""
    space = agent.observation_space
    drawn = [space.sample() for _ in range(count)]
    parts = [np.stack([np.asarray(pick(o, keys)) for o in drawn]) for keys, _ in leaves(space)]
    return parts, np.stack([agent.predict(o)[0] for o in drawn])


def equal(given: np.ndarray, wanted: np.ndarray) -> None:
    assert given.dtype == wanted.dtype
    assert given.shape == wanted.shape
    np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-5)


CASES = {
    "gaussian": (PLAIN, spaces.Box(-0.1, 0.1, (2,)), {}),
    "squashed": (PLAIN, spaces.Box(-3.0, 5.0, (2, 2)), {"distribution": "squashed"}),
    "float64 actions": (PLAIN, spaces.Box(-0.1, 0.1, (2,), np.float64), {}),
    "beta": (PLAIN, spaces.Box(-3.0, 5.0, (2,)), {"distribution": "beta"}),
    "discrete": (spaces.Discrete(4), spaces.Discrete(3, start=-1), {}),
    "unnormalised": (PLAIN, spaces.MultiBinary(3), {"normalize_observations": False}),
    "nested": (NESTED, spaces.MultiDiscrete([3, 2]), {}),
    "a user's": (PLAIN, spaces.Box(-1.0, 1.0, (2,)), {"policy": Own()}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_program_of_torch_acts_as_the_agent(case: str, tmp_path: Path) -> None:
    agent = trained(*CASES[case][:2], **CASES[case][2])
    path = agent.export(tmp_path / "policy.pt2")
    module = torch.export.load(path).module()
    for count in (1, 5):
        parts, wanted = asked(agent, count)
        equal(module(*map(torch.from_numpy, parts)).numpy(), wanted)


@pytest.mark.parametrize("case", ["gaussian", "nested"])
def test_onnx_acts_as_the_agent(case: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install '.[test]'")
    agent = trained(*CASES[case][:2], **CASES[case][2])
    session = runtime.InferenceSession(agent.export(tmp_path / "policy.onnx"))
    names = [given.name for given in session.get_inputs()]
    assert (
        names
        == {
            "gaussian": ["observation"],
            "nested": [
                *("observation.far", "observation.grip.0", "observation.grip.1"),
                *("observation.lamps", "observation.picture"),
            ],
        }[case]
    )
    for count in (1, 5):
        parts, wanted = asked(agent, count)
        (given,) = session.run(["action"], dict(zip(names, parts, strict=True)))
        equal(given, wanted)


ALONE = """
import sys, torch
module = torch.export.load(sys.argv[1]).module()
print(module(torch.zeros(4, 3)).shape)
assert not {"trpo_fast", "gymnasium"} & set(sys.modules)
"""


def test_the_file_needs_torch_alone(tmp_path: Path) -> None:
    agent = trained(PLAIN, spaces.Box(-1.0, 1.0, (2,)))
    path = agent.export(tmp_path / "policy.pt2")
    command = [sys.executable, "-c", ALONE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "torch.Size([4, 2])", done.stderr


def test_exporting_changes_nothing(tmp_path: Path) -> None:
    agent = trained(PLAIN, spaces.Box(-1.0, 1.0, (2,)))
    agent.policy.train()
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    agent.export(tmp_path / "policy.pt2")
    assert agent.policy.training
    assert all(torch.equal(before[k], v) for k, v in agent.policy.state_dict().items())


class ByValue(Own):
    def forward(self, obs: torch.Tensor) -> Any:
        return super().forward(obs if obs.sum() > 0 else -obs)


def test_what_cannot_be_exported_says_why_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = trained(PLAIN, spaces.Box(-1.0, 1.0, (2,)), policy=ByValue())
    with pytest.raises(ValueError, match=r"ByValue cannot be exported: .* depends on values"):
        agent.export(tmp_path / "policy.pt2")
    with pytest.raises(ValueError, match=r"MultiInputPolicy is shown .* nesting"):
        trained(NESTED, spaces.Discrete(2), policy="multi_input").export(tmp_path / "policy.pt2")
    with pytest.raises(ValueError, match=r"RecurrentPolicy remembers .* cannot be exported"):
        trained(PLAIN, spaces.Discrete(2), policy="recurrent").export(tmp_path / "policy.pt2")
    both = spaces.Tuple((spaces.Discrete(2), spaces.Box(-1.0, 1.0, (2,))))
    with pytest.raises(ValueError, match=r"actions of Tuple.* have parts"):
        trained(PLAIN, both).export(tmp_path / "policy.pt2")
    with pytest.raises(ValueError, match=r"policy.h5: a policy is exported to .pt2 or .onnx"):
        agent.export(tmp_path / "policy.h5")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[export\]"):
        agent.export(tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())
