"""The agent on every kind of space, and with networks of the user's own."""

from __future__ import annotations

import json
import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from agent_cases import small, weights
from torch import nn
from torch.distributions import Independent, Normal
from toy_environments import Walk

from trpo_fast.agent.agent import TRPO
from trpo_fast.agent.config import Config
from trpo_fast.agent.policies import box_distribution, first_log_std
from trpo_fast.runs.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Dict(
            {"a": gymnasium.spaces.Box(-1, 1, (2,)), "b": gymnasium.spaces.Discrete(3)}
        ),
        gymnasium.spaces.MultiDiscrete([2, 3]),
        gymnasium.spaces.Tuple((gymnasium.spaces.MultiBinary(3), gymnasium.spaces.Discrete(2))),
    ],
)
@pytest.mark.parametrize(
    "actions",
    [
        gymnasium.spaces.MultiDiscrete([3, 2]),
        gymnasium.spaces.MultiBinary(2),
        gymnasium.spaces.Box(-1, 1, (2, 2)),
    ],
)
def test_every_supported_space_trains_predicts_and_evaluates(space, actions):
    class Anything(gymnasium.Env):
        observation_space, action_space = space, actions

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.observation_space.seed(seed)
            self.time = 0
            return self.observation_space.sample(), {}

        def step(self, action):
            assert self.action_space.contains(action)
            self.time += 1
            return self.observation_space.sample(), 1.0, False, self.time >= 4, {}

    with small(Anything, rollout_steps=9) as agent:
        agent.learn(18, progress_bar=False)
        assert agent.evaluate(2) == (4.0, 0.0)
        action, _ = agent.predict(space.sample())
        assert actions.contains(action)


@pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")
@pytest.mark.parametrize(
    "option",
    [{"distribution": "squashed"}, {"distribution": "beta"}, {"state_dependent_std": True}],
    ids=str,
)
def test_other_distributions_of_a_box_train(option):
    with small("Pendulum-v1", **option) as agent:
        agent.learn(128, progress_bar=False)
        assert torch.isfinite(weights(agent)).all()


class Mixture(nn.Module):
    """A policy the package has never seen."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(4, 6, batch_first=True)
        self.out = nn.Linear(6, 2)

    def forward(self, obs):
        hidden, _ = self.gru(obs[:, None, :])
        return torch.distributions.Categorical(logits=self.out(hidden[:, 0]))


@pytest.mark.filterwarnings("ignore:TRPOOptimizer takes the generic path")
def test_any_module_serves_as_a_policy(tmp_path):
    torch.manual_seed(0)
    with small(policy=Mixture()) as agent:
        before = weights(agent)
        agent.learn(64, progress_bar=False)
        assert agent.optimizer.path == "generic"
        assert not torch.equal(weights(agent), before)
        path = agent.save(tmp_path / "custom")
    with pytest.raises(CheckpointError, match="pass policy="):
        TRPO.load(path)
    with TRPO.load(path, policy=Mixture()) as loaded:
        assert torch.equal(weights(loaded), weights(agent))


class OneHot(Mixture):
    def forward(self, obs):
        return torch.distributions.OneHotCategorical(logits=super().forward(obs).logits)


@pytest.mark.filterwarnings("ignore:TRPOOptimizer takes the generic path")
def test_actions_of_another_shape_than_the_spaces_are_named():
    message = r"actions have shape \((2|1), 2\); Discrete\(2\) takes \((2|1),\): its forward"
    with small(policy=OneHot()) as agent:
        with pytest.raises(ValueError, match=message):
            agent.learn(64, progress_bar=False)
        with pytest.raises(ValueError, match=message):
            agent.predict([0.0, 0.0, 0.0, 0.0])


@pytest.mark.filterwarnings("ignore:TRPOOptimizer takes the generic path")
@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("inside", ["making", "training", "loading"])
def test_inference_mode_around_one_call_changes_nothing(tmp_path, inside, custom):
    def trained(inside):
        def mode(name):
            return torch.inference_mode(mode=name == inside)

        torch.manual_seed(0)
        networks = {"policy": Mixture()} if custom else {}
        with mode("making"):
            agent = small(**networks)
        with mode("training"):
            agent.learn(64, progress_bar=False)
        agent.learn(64, progress_bar=False)
        path = agent.save(tmp_path / inside)
        agent.close()
        with mode("loading"):
            loaded = TRPO.load(path, **networks)
        with loaded:
            loaded.learn(64, progress_bar=False)
            return weights(loaded)

    assert torch.equal(trained(inside), trained("nothing"))


class Trunk(nn.Module):
    """Policy and value head on one trunk."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(4, 6)
        self.actor = nn.Linear(6, 2)
        self.value = nn.Linear(6, 1)

    def forward(self, obs):
        return torch.distributions.Categorical(logits=self.actor(torch.tanh(self.trunk(obs))))


class TrunkValue(nn.Module):
    def __init__(self, policy, with_head=True):
        super().__init__()
        self.policy = policy
        self.with_head = with_head

    def forward(self, obs):
        features = torch.tanh(self.policy.trunk(obs))
        return self.policy.value(features).squeeze(-1) if self.with_head else features.sum(-1)


@pytest.mark.filterwarnings("ignore:TRPOOptimizer takes the generic path")
def test_pitfall_12_the_critic_never_moves_a_shared_trunk():
    torch.manual_seed(0)
    policy = Trunk()
    with pytest.warns(
        UserWarning, match="4 parameter tensors of the value function belong to the policy"
    ) as caught:
        agent = TRPO(
            "CartPole-v1",
            num_envs=2,
            rollout_steps=16,
            policy=policy,
            value_function=TrunkValue(policy),
        )
    assert caught[0].filename == __file__
    step, after_step = agent.optimizer.step, []

    def spy(**keywords):
        result = step(**keywords)
        after_step.append([p.detach().clone() for p in policy.parameters()])
        return result

    agent.optimizer.step = spy
    head = policy.value.weight.detach().clone()
    trunk = policy.trunk.weight.detach().clone()
    agent.learn(64, progress_bar=False)
    assert not torch.equal(policy.trunk.weight, trunk)
    assert not torch.equal(policy.value.weight, head)
    names = [name for name, _ in policy.named_parameters()]
    for name, before, now in zip(names, after_step[-1], policy.parameters(), strict=True):
        assert torch.equal(before, now) != name.startswith("value."), name
    agent.close()


def test_a_value_function_without_a_parameter_of_its_own_is_refused():
    policy = Trunk()
    del policy.value
    told = pytest.warns(UserWarning, match="belong to the policy")
    with told, pytest.raises(ValueError, match="no parameter of its own"):
        small(policy=policy, value_function=TrunkValue(policy, with_head=False))


@pytest.mark.parametrize("name", ["policy", "value_function"])
def test_a_network_that_is_no_module_is_named(name):
    with pytest.raises(TypeError, match=rf"{name} is a list, expected an nn\.Module"):
        small(**{name: []})


def test_a_policy_that_gives_no_distribution_is_told_what_to_give():
    with (
        small(policy=nn.Linear(4, 2)) as agent,
        pytest.raises(TypeError, match=r"gives a Tensor, expected a torch\.distributions"),
    ):
        agent.learn(64, progress_bar=False)


PAIR = gymnasium.spaces.Box(-1, 1, (2,))
ONE = gymnasium.spaces.Box(-2, 2, (1,))


@pytest.mark.parametrize(
    ("space", "options", "expected"),
    [
        (PAIR, {}, "beta"),
        (gymnasium.spaces.Box(0, 9, (1, 2), np.float64), {"log_std_init": -2.0}, "beta"),
        (gymnasium.spaces.Tuple([ONE, gymnasium.spaces.Discrete(2), ONE]), {}, "beta"),
        (ONE, {}, "squashed"),
        (gymnasium.spaces.Box(-1, 1, ()), {}, "squashed"),
        (ONE, {"state_dependent_std": True, "log_std_init": -9.0}, "squashed"),
        (ONE, {"scale_actions": False}, "gaussian"),
        (gymnasium.spaces.Tuple([ONE, gymnasium.spaces.Discrete(2)]), {}, "squashed"),
        (gymnasium.spaces.Box(-1, np.inf, (1,)), {}, "gaussian"),
        (gymnasium.spaces.Discrete(3), {}, "gaussian"),
        (gymnasium.spaces.Box(np.float32([-1, -np.inf]), 1.0), {}, "gaussian"),
        (gymnasium.spaces.Box(-3e38, 3e38, (2,)), {}, "gaussian"),
        (gymnasium.spaces.Tuple([PAIR, gymnasium.spaces.Box(0, np.inf, (1,))]), {}, "gaussian"),
        (PAIR, {"state_dependent_std": True}, "gaussian"),
        (PAIR, {"scale_actions": False}, "gaussian"),
        (PAIR, {"log_std_init": 0.0}, "gaussian"),
        (PAIR, {"log_std_init": -6.0}, "gaussian"),
        (PAIR, {"distribution": "squashed"}, "squashed"),
        (ONE, {"distribution": "beta"}, "beta"),
    ],
)
def test_boxes_have_a_beta_where_it_can_be_and_one_number_a_squashed_gaussian(
    space: Any, options: dict[str, Any], expected: str
) -> None:
    assert box_distribution(Config(**options), space) == expected


@pytest.mark.parametrize(
    ("numbers", "distribution", "expected"),
    [(1, "gaussian", 1.0), (4, "gaussian", 0.5), (1, "squashed", math.e), (4, "squashed", 0.5)],
)
def test_one_squashed_number_begins_wide(numbers: int, distribution: str, expected: float) -> None:
    box = gymnasium.spaces.Box(-1, 1, (numbers,))
    for space in (box, gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(2), box])):
        assert math.exp(first_log_std(None, space, distribution)) == pytest.approx(expected)
        assert first_log_std(-0.5, space, distribution) == -0.5


@pytest.mark.parametrize(("box", "given"), [(PAIR, "beta"), (ONE, "squashed")])
def test_a_checkpoint_made_with_auto_is_of_an_agent_with_what_that_was(box, given, tmp_path):
    class Still(gymnasium.Env):
        observation_space, action_space = PAIR, box

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(2, np.float32), {}

        def step(self, action):
            return np.zeros(2, np.float32), 0.0, False, True, {}

    with small(Still) as agent:
        assert agent.policy.distribution == given
        path = agent.save(tmp_path / "agent")
    with TRPO.load(path, Still, distribution=given) as agent:
        assert agent.policy.distribution == given
    with pytest.raises(CheckpointError, match="distribution"):
        TRPO.load(path, Still, distribution="gaussian")


class Normals(nn.Module):
    """A policy of the user's, of two numbers."""

    def __init__(self):
        super().__init__()
        self.mean, self.log_std = nn.Linear(2, 2), nn.Parameter(torch.zeros(2))

    def forward(self, obs):
        mean = self.mean(obs)
        return Independent(Normal(mean, self.log_std.exp().expand_as(mean)), 1)


def test_what_is_said_of_boxes_is_not_of_a_module_of_the_users(tmp_path):
    with small(Walk, policy=Normals(), run_dir=tmp_path / "run") as agent:
        agent.learn(64, progress_bar=False)
        path = agent.save(tmp_path / "agent")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["distribution"] is None
    for options in ({"log_std_init": 0.0}, {"distribution": "squashed"}):  # of no effect
        TRPO.load(path, Walk, policy=Normals(), **options).close()
    state = load_checkpoint(path)
    earlier = {**state, "agent": {**state["agent"], "distribution": "gaussian"}}
    save_checkpoint(tmp_path / "earlier.safetensors", earlier)
    TRPO.load(tmp_path / "earlier.safetensors", Walk, policy=Normals()).close()
