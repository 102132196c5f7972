"""Agents in environments whose actions are nested: trained, saved, asked and evaluated."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_cases import small, weights
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, Normal
from toy_environments import Sorting

from trpo_fast import TRPO, JointDistribution, _native
from trpo_fast.agent.saved_spaces import space_from_json, space_to_json
from trpo_fast.base.errors import UnsupportedSpaceError


class Own(nn.Module):
    """A policy that knows no head and no way to the environment."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
        self.place, self.lit, self.bin = nn.Linear(8, 2), nn.Linear(8, 1), nn.Linear(8, 3)

    def forward(self, obs: Tensor) -> JointDistribution:
        h = self.trunk(obs)
        place = Independent(Normal(3 * self.place(h), 1.0), 1)
        lit = Independent(Bernoulli(logits=self.lit(h)), 1)
        return JointDistribution({"arm": (place, lit), "bin": Categorical(logits=self.bin(h))})


@pytest.mark.parametrize("vectorization", ["sync", "workers", "async"])
def test_every_vectorization_trains_to_the_same_bits(vectorization: str) -> None:
    with small(Sorting, vectorization=vectorization, num_workers=1) as agent:
        agent.learn(128, progress_bar=False)
        assert agent.optimizer.last_result.accepted
        found = weights(agent)
    with small(Sorting) as agent:
        agent.learn(128, progress_bar=False)
        assert torch.equal(weights(agent), found)


@pytest.mark.parametrize("distribution", ["gaussian", "squashed", "beta"])
def test_predictions_are_actions_of_the_space(distribution: str) -> None:
    env = Sorting()
    with small(Sorting, distribution=distribution) as agent:
        agent.learn(64, progress_bar=False)
        fused = "reference" if _native.core is None else "cpu"
        assert agent.optimizer.last_result.backend == fused
        shown, _ = env.reset(seed=0)
        for deterministic in (True, False):
            action, state = agent.predict(shown, deterministic=deterministic)
            assert state is None
            assert env.action_space.contains(action)
        many = {"place": np.zeros((4, 2), np.float32), "bin": np.array([1, 2, 3, 1])}
        actions, _ = agent.predict(many)
        assert actions["arm"][0].shape == (4, 2)
        assert actions["arm"][1].shape == (4, 1)
        assert actions["bin"].shape == (4,)
        assert set(actions["bin"]) <= {1, 2, 3}
        mean, _ = agent.evaluate(3, progress_bar=False)
        assert 0 <= mean <= 10


@pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")
def test_a_module_of_the_users_acts_through_its_joint_distribution() -> None:
    torch.manual_seed(0)
    with small(Sorting, policy=Own(), normalize_observations=False) as agent:
        agent.learn(128, progress_bar=False)
        assert agent.optimizer.last_result.accepted
        assert agent.env.action_space.contains(agent.predict(Sorting().reset(seed=0)[0])[0])


def test_a_vector_given_whole_takes_nested_actions() -> None:
    with small(SyncVectorEnv([Sorting] * 3)) as agent:
        agent.learn(96, progress_bar=False)
        assert agent.optimizer.last_result.accepted


def test_masks_of_parts_hold_in_training_prediction_and_evaluation() -> None:
    with small(lambda: Sorting(masked=True)) as agent:
        agent.learn(128, progress_bar=False)  # the environment asserts that none is forbidden
        agent.evaluate(3, progress_bar=False)
        shown = Sorting().reset(seed=0)[0]
        for only in range(3):
            mask = {"arm": None, "bin": np.arange(3) == only}
            action, _ = agent.predict(shown, action_masks=mask, deterministic=False)
            assert action["bin"] == only + 1
            flat, _ = agent.predict(shown, action_masks=np.arange(3) == only)
            assert flat["bin"] == only + 1
        with pytest.raises(ValueError, match=r"the action mask .*\['arm', 'bin'\]"):
            agent.predict(shown, action_masks={"bin": np.ones(3)})


class Told(gym.Env[Any, Any]):
    """Each part has one allowed choice, which differs by environment and step."""

    observation_space = spaces.Dict(
        {
            "step": spaces.Box(0, 100, (1,)),
            "action_mask": spaces.Tuple([spaces.MultiBinary(2), spaces.MultiBinary(2)]),
        }
    )
    action_space = spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)])

    def shown(self) -> dict[str, Any]:
        self.allowed = tuple(int(part) for part in self.np_random.integers(2, size=2))
        masks = tuple(np.arange(2, dtype=np.int8) == part for part in self.allowed)
        return {
            "step": np.array([self.steps], np.float32),
            "action_mask": tuple(mask.astype(np.int8) for mask in masks),
        }

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.shown(), {}

    def step(self, action: Any) -> Any:
        assert tuple(map(int, action)) == self.allowed
        self.steps += 1
        return self.shown(), 1.0, self.steps == 5, False, {}


@pytest.mark.parametrize(("vectorization", "count"), [("sync", 2), ("sync", 3), ("workers", 4)])
def test_nested_masks_in_observations_are_each_environments_own(
    vectorization: str, count: int
) -> None:
    with small(Told, vectorization=vectorization, num_envs=count, num_workers=1) as agent:
        agent.learn(64, progress_bar=False)  # the environment asserts that none is forbidden
        agent.evaluate(3, progress_bar=False)
        envs = [Told() for _ in range(2)]
        each = [env.reset(seed=seed)[0] for seed, env in enumerate(envs)]
        batch = {
            "step": np.stack([one["step"] for one in each]),
            "action_mask": tuple(np.stack([one["action_mask"][k] for one in each]) for k in (0, 1)),
        }
        wanted = [env.allowed for env in envs]
        found, _ = agent.predict(batch)
        assert list(zip(*found, strict=True)) == wanted
        plain = {"step": batch["step"]}
        found, _ = agent.predict(plain, action_masks=batch["action_mask"])
        assert list(zip(*found, strict=True)) == wanted
        with pytest.raises(ValueError, match="action_masks of 2 rows for 1 observations"):
            agent.predict({"step": batch["step"][:1]}, action_masks=batch["action_mask"])


def test_a_resumed_run_is_the_run_bit_for_bit(tmp_path: Any) -> None:
    with small(Sorting) as agent:
        agent.learn(96, progress_bar=False)
        path = agent.save(tmp_path / "half")
        agent.learn(128, progress_bar=False)
        whole = weights(agent)
    with TRPO.load(path, Sorting) as agent:
        agent.learn(128, progress_bar=False)
        assert torch.equal(weights(agent), whole)
    with TRPO.load(path, predict_only=True) as agent:
        assert Sorting.action_space.contains(agent.predict(Sorting().reset(seed=0)[0])[0])


def test_a_saved_space_keeps_the_order_of_its_parts() -> None:
    parts = [("z", spaces.Discrete(2)), ("a", spaces.Box(-1, 1, (2,)))]
    space = spaces.Dict(OrderedDict(parts))
    again = space_from_json(json.loads(json.dumps(space_to_json(space))))
    assert list(again.spaces) == ["z", "a"]


class Broken(Sorting):
    def step(self, action: Any) -> Any:
        raise RuntimeError("jammed")


def test_a_fault_shows_the_nested_action() -> None:
    with small(Broken) as agent, pytest.raises(RuntimeError, match=r"action \{'arm': \(\["):
        agent.learn(32, progress_bar=False)


@pytest.mark.parametrize(
    ("space", "options", "text"),
    [
        (spaces.Tuple([]), {}, "has no parts"),
        (spaces.Dict(a=spaces.Tuple([])), {}, r"action\['a'\] .*has no parts"),
        (
            spaces.Dict(a=spaces.Tuple([spaces.Discrete(2), spaces.Text(3)])),
            {},
            r"action\['a'\]\[1\]",
        ),
        (spaces.Tuple([spaces.Box(-3, 3, (2,), np.int32)]), {}, r"action\[0\]: .*Box of int32"),
        (spaces.Dict(a=spaces.Box(-1, 1, (0,))), {}, r"action\['a'\].* nothing to choose"),
        (
            spaces.Dict(a=spaces.Box(-1, np.inf, (2,))),
            {"distribution": "beta"},
            r"'beta' needs finite bounds, action\['a'\]",
        ),
        (
            spaces.Tuple([spaces.Box(-1, 1, ()), spaces.Box(-np.inf, np.inf, ())]),
            {"distribution": "squashed"},
            r"'squashed' needs finite bounds, action\[1\]",
        ),
        (spaces.Tuple([spaces.Discrete(2)]), {"distribution": "beta"}, "needs a Box"),
    ],
)
def test_parts_that_cannot_be_served_are_named_by_path(
    space: spaces.Space[Any], options: dict[str, Any], text: str
) -> None:
    class Odd(Sorting):
        action_space = space

    with pytest.raises(ValueError, match=text) as caught:
        small(Odd, **options)
    assert "distribution" in options or isinstance(caught.value, UnsupportedSpaceError)


class Anything(gym.Env[Any, Any]):
    """Parts of every odd kind; every action must be one of the space."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Tuple(
        [
            spaces.Box(-np.inf, 1, (), np.float64),
            spaces.Box(np.array([[0.1], [-np.inf]]), np.array([[0.7], [np.inf]]), dtype=np.float64),
            spaces.Discrete(1, start=-5),
            spaces.MultiDiscrete(np.array([[2, 3], [1, 4]]), start=np.array([[0, 1], [2, -3]])),
            spaces.MultiBinary([2, 2]),
            spaces.Dict(deep=spaces.Tuple([spaces.Box(0, 255, (1,), np.float16)])),
        ]
    )

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.time += 1
        return np.zeros(2, np.float32), float(action[0]), self.time > 5, False, {}


@pytest.mark.filterwarnings("ignore:the policy's first actions")
def test_odd_parts_get_what_their_space_says() -> None:
    with small(Anything, rollout_steps=16) as agent:
        agent.learn(64, progress_bar=False)
        action, _ = agent.predict(np.zeros(2, np.float32))
        assert Anything.action_space.contains(action)
