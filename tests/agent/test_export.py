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
from trpo_fast.networks.distributions import MultiCategorical

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
SHOWN = spaces.Dict(
    {
        "far": spaces.Box(1e6, 1e6 + 1, (2, 2), np.float64),
        "grip": spaces.Tuple((spaces.Discrete(3, start=5), spaces.MultiDiscrete([2, 4]))),
        "lamps": spaces.MultiBinary(3),
        "near": PLAIN,
        "picture": spaces.Box(0, 255, (2, 9, 9), np.uint8),
    }
)
HYBRID = spaces.Dict(
    {
        "arm": spaces.Tuple((spaces.Box(-0.1, 3.0, (2,)), spaces.MultiBinary(2))),
        "tool": spaces.Discrete(3, start=1),
    }
)


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


class OwnChoices(nn.Module):
    """Likewise, of the choices of a MultiDiscrete space in a row."""

    def __init__(self, choices: list[int]) -> None:
        super().__init__()
        self.body, self.choices = nn.Linear(3, sum(choices)), choices

    def forward(self, obs: torch.Tensor) -> Any:
        return MultiCategorical(3 * self.body(obs), self.choices)


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


def stacked(space: Any, drawn: list[Any]) -> list[np.ndarray]:
    """Each part of a space as a batch of the values drawn."""
    return [np.stack([np.asarray(pick(o, keys)) for o in drawn]) for keys, _ in leaves(space)]


def asked(agent: TRPO, count: int = 5) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Some observations by their parts, and likewise the actions that the agent takes on them."""
    space = agent.observation_space
    drawn = [space.sample() for _ in range(count)]
    return stacked(space, drawn), stacked(agent.action_space, [agent.predict(o)[0] for o in drawn])


def equal(given: Any, wanted: list[np.ndarray]) -> None:
    for one, other in zip(given, wanted, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


CASES = {
    "gaussian": (PLAIN, spaces.Box(-0.1, 0.1, (2,)), {}),
    "squashed": (PLAIN, spaces.Box(-3.0, 5.0, (2, 2)), {"distribution": "squashed"}),
    "float64 actions": (PLAIN, spaces.Box(-0.1, 0.1, (2,), np.float64), {}),
    "beta": (PLAIN, spaces.Box(-3.0, 5.0, (2,)), {"distribution": "beta"}),
    "discrete": (spaces.Discrete(4), spaces.Discrete(3, start=-1), {}),
    "unnormalised": (PLAIN, spaces.MultiBinary(3), {"normalize_observations": False}),
    "nested": (NESTED, spaces.MultiDiscrete([3, 2]), {}),
    "a user's": (PLAIN, spaces.Box(-1.0, 1.0, (2,)), {"policy": Own()}),
    "a user's table of choices": (
        PLAIN,
        spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[0, 5], [-1, 2]]),
        {"policy": OwnChoices([2, 3, 4, 2])},
    ),
    "images": (spaces.Box(0, 255, (8, 8, 2), np.uint8), spaces.Discrete(3, start=-1), {}),
    "structured": (SHOWN, spaces.MultiDiscrete([3, 2]), {}),
    "unnormalised parts": (SHOWN, spaces.Discrete(2), {"normalize_observations": False}),
    "hybrid": (PLAIN, HYBRID, {"distribution": "beta"}),
    "structured and hybrid": (SHOWN, HYBRID, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_program_of_torch_acts_as_the_agent(case: str, tmp_path: Path) -> None:
    agent = trained(*CASES[case][:2], **CASES[case][2])
    path = agent.export(tmp_path / "policy.pt2")
    module = torch.export.load(path).module()
    for count in (1, 5):
        parts, wanted = asked(agent, count)
        found = module(*map(torch.from_numpy, parts))
        found = found if isinstance(found, tuple | list) else [found]
        equal([part.numpy() for part in found], wanted)


@pytest.mark.parametrize("case", ["gaussian", "nested", "structured and hybrid"])
def test_onnx_acts_as_the_agent(case: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install '.[test]'")
    agent = trained(*CASES[case][:2], **CASES[case][2])
    session = runtime.InferenceSession(agent.export(tmp_path / "policy.onnx"))
    names = [given.name for given in session.get_inputs()]
    parts_of_both = [
        *("observation.far", "observation.grip.0", "observation.grip.1"),
        *("observation.lamps", "observation.picture"),
    ]
    assert (
        names
        == {
            "gaussian": ["observation"],
            "nested": parts_of_both,
            "structured and hybrid": [*parts_of_both[:4], "observation.near", parts_of_both[4]],
        }[case]
    )
    hybrid = ["action.arm.0", "action.arm.1", "action.tool"]
    results = hybrid if case == "structured and hybrid" else ["action"]
    for count in (1, 5):
        parts, wanted = asked(agent, count)
        equal(session.run(results, dict(zip(names, parts, strict=True))), wanted)


def steps_of(agent: TRPO, count: int = 4) -> Any:
    """Observations [1, ...] by their parts, and the agent's actions with its memory carried on."""
    space, state = agent.observation_space, None
    for _ in range(count):
        observation = space.sample()
        action, state = agent.predict(observation, state)
        yield stacked(space, [observation]), stacked(agent.action_space, [action])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_memory_goes_in_and_out(cell: str, tmp_path: Path) -> None:
    agent = trained(SHOWN, HYBRID, policy="recurrent", cell=cell, cell_size=5)
    module = torch.export.load(agent.export(tmp_path / "policy.pt2")).module()
    memory = [torch.zeros(1, 5)] * (2 if cell == "lstm" else 1)
    for parts, wanted in steps_of(agent):
        (*found,) = module(*map(torch.from_numpy, parts), *memory)
        equal([part.numpy() for part in found[:3]], wanted)
        memory = found[3:]
    assert all(part.abs().min() > 0 for part in memory)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_memory_goes_in_and_out_of_onnx(cell: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install '.[test]'")
    agent = trained(PLAIN, spaces.Discrete(4), policy="recurrent", cell=cell, cell_size=5)
    session = runtime.InferenceSession(agent.export(tmp_path / "policy.onnx"))
    names = ["memory.0", "memory.1"] if cell == "lstm" else ["memory.0"]
    assert [given.name for given in session.get_inputs()] == ["observation", *names]
    memory = {name: np.zeros((1, 5), np.float32) for name in names}
    for (observation,), wanted in steps_of(agent):
        action, *after = session.run(
            ["action", *(f"next_{name}" for name in names)], {"observation": observation, **memory}
        )
        equal([action], wanted)
        memory = dict(zip(names, after, strict=True))


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
    with pytest.raises(ValueError, match=r"policy.h5: a policy is exported to .pt2 or .onnx"):
        agent.export(tmp_path / "policy.h5")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[export\]"):
        agent.export(tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())
