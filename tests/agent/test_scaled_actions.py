"""Actions in units of the bounds: the unit that an environment counts in changes nothing."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_cases import small, weights
from gymnasium import spaces

from trpo_fast import TRPO
from trpo_fast.runs.checkpoint import CheckpointError

UNIT = spaces.Box(-1, 1, (3,), np.float32)
# Powers of two and their sums, which rounding leaves alone.
OTHER = spaces.Box(np.float32([-4, -0.25, -1]), np.float32([4, 0.25, 1]))


class Reach(gym.Env[Any, Any]):
    """A point that is moved by the action, in units of the bounds, and is best at 0.3."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)

    def __init__(self, other: bool = False, nested: bool = False) -> None:
        self.box = box = OTHER if other else UNIT
        self.action_space = spaces.Tuple([box, spaces.Discrete(2)]) if nested else box

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.point, self.time = self.np_random.uniform(-1, 1, 3).astype(np.float32), 0
        return self.point, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        move = action[0] if isinstance(action, tuple) else action
        self.point = self.point + 0.1 * move / self.box.high
        self.time += 1
        reward = -float(np.square(self.point - 0.3).sum())
        return self.point, reward, False, self.time >= 20, {}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"distribution": "gaussian"},
        {"vectorization": "workers", "num_workers": 1},
        {"policy": "recurrent", "cell_size": 4},
        {"policy": "multi_input"},
        {"state_dependent_std": True},
        {"env_kwargs": {"nested": True}},
    ],
    ids=lambda options: "-".join(map(str, options.values())) or "plain",
)
def test_another_unit_gives_the_same_bits(options: dict[str, Any]) -> None:
    found = []
    for other, box in ((False, UNIT), (True, OTHER)):
        kwargs = {**options.get("env_kwargs", {}), "other": other}
        with small(Reach, **{**options, "env_kwargs": kwargs}, seed=2) as agent:
            agent.learn(256, progress_bar=False)
            mean, _ = agent.evaluate(3)
            action, _ = agent.predict(np.zeros(3, np.float32))
            move = action[0] if isinstance(action, tuple) else action
            found.append((weights(agent), mean, move / box.high))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert np.array_equal(found[0][2], found[1][2])


@pytest.mark.parametrize("distribution", ["gaussian", "beta"])
def test_the_first_actions_are_at_the_middle_of_the_bounds(distribution: str) -> None:
    box = spaces.Box(np.float32([300, 0]), np.float32([500, 1]))

    class Distant(Reach):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = box

        def step(self, action: Any) -> Any:
            assert box.contains(action)
            return self.point, 0.0, False, True, {}

    with small(Distant, distribution=distribution) as agent:
        first, _ = agent.predict(np.zeros(3, np.float32))
        np.testing.assert_allclose(first, [400, 0.5], rtol=0.01)


@pytest.mark.parametrize(
    ("space", "deviations"),
    [
        (spaces.Box(-1, 1, (6,)), 6 * [6**-0.5]),
        (spaces.Box(-0.4, 0.4, (17,)), 17 * [17**-0.5]),
        (spaces.Box(-np.inf, np.inf, (1,)), [1.0]),
        # Of all numbers of an action, in whatever part of it.
        (spaces.Tuple([spaces.Box(-1, 1, (2, 1)), spaces.Discrete(3), spaces.Box(0, 9, ())]), None),
    ],
)
def test_the_first_actions_are_as_long_whatever_their_numbers(
    space: Any, deviations: list[float] | None
) -> None:
    class Shaped(Reach):
        def __init__(self) -> None:
            self.action_space = space

    with small(Shaped, distribution="gaussian") as agent:
        found = agent.policy.log_std.detach().exp()
        assert float(found.square().sum()) == pytest.approx(1, rel=1e-6)
        if deviations is not None:
            assert found.tolist() == pytest.approx(deviations, rel=1e-6)
    with small(Shaped, distribution="gaussian", log_std_init=-0.5) as agent:
        assert agent.policy.log_std.tolist() == [-0.5] * len(found)


@pytest.mark.parametrize("scale_actions", [False, True])
def test_a_saved_agent_keeps_its_units(scale_actions: bool, tmp_path: Any) -> None:
    kwargs = {"env_kwargs": {"other": True}, "scale_actions": scale_actions}
    shown = np.ones(3, np.float32)
    with small(Reach, **kwargs, seed=1) as agent:
        agent.learn(128, progress_bar=False)
        path = agent.save(tmp_path / "agent")
        wanted, _ = agent.predict(shown)
    with TRPO.load(path, Reach) as agent:
        assert agent.config.scale_actions is scale_actions
        assert np.array_equal(agent.predict(shown)[0], wanted)
    with pytest.raises(CheckpointError, match="scale_actions"):
        TRPO.load(path, Reach, scale_actions=not scale_actions)
