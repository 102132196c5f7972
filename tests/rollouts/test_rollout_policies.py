"""What a policy is shown in a rollout, and what is kept of its answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from rollout_cases import Alternating, assert_same, collect, in_mode, philox, policy_for, walks
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from toy_environments import Masked, Scripted

from trpo_fast.environments.flattening import action_converter
from trpo_fast.environments.make import make_vector_env
from trpo_fast.networks.mlp import MlpPolicy
from trpo_fast.rollouts.collector import RolloutCollector
from trpo_fast.rollouts.normalization import ObservationNormalizer


def test_sampling_depends_on_the_given_generator_and_leaves_torchs_own_alone() -> None:
    torch.manual_seed(5)
    untouched = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = walks(), walks(), walks()
    policy = policy_for(first)
    rollouts = [
        collector.collect(policy, None, 6, philox(seed))
        for collector, seed in ((first, 1), (again, 1), (other, 2))
    ]
    assert torch.equal(torch.rand(3), untouched)
    assert_same(rollouts[0], rollouts[1])
    assert not torch.equal(rollouts[0].actions, rollouts[2].actions)


def test_rollouts_leave_no_seeds_for_devices_that_are_not_in_use() -> None:
    collector = walks()
    policy = policy_for(collector)
    waiting = len(torch.cuda._queued_calls)
    collector.collect(policy, None, 6, philox())
    assert len(torch.cuda._queued_calls) == waiting


def test_observations_are_stored_raw_and_the_policy_sees_them_normalised() -> None:
    seen: list[Tensor] = []

    class Watching(Alternating):
        def forward(self, obs: Tensor) -> Distribution:
            seen.append(obs.clone())
            return super().forward(obs)

    normalizer = ObservationNormalizer((3,))
    normalizer.observe(np.random.default_rng(0).normal(2, 3, (40, 3)))
    normalizer.commit()
    collector = in_mode(AutoresetMode.SAME_STEP)
    rollout = collector.collect(Watching(), normalizer, 5, philox())
    raw = rollout.observations
    assert torch.equal(raw, collect(in_mode(AutoresetMode.SAME_STEP), 5).observations)
    torch.testing.assert_close(torch.stack(seen), normalizer(raw), rtol=0, atol=0)
    assert normalizer.statistics.count == 40  # the agent decides when to observe


SPACES: dict[str, Any] = {
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "box, 2-D": spaces.Box(-1, 1, (2, 2), np.float32),
    "discrete": spaces.Discrete(3, start=4),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-binary": spaces.MultiBinary(3),
}


@pytest.mark.parametrize("name", SPACES)
def test_actions_are_stored_as_sampled_with_their_log_probabilities(name: str) -> None:
    given: list[Any] = []

    class Listening(Scripted):
        action_space = SPACES[name]

        def step(self, action: Any) -> Any:
            assert self.action_space.contains(action)
            given.append(np.array(action))
            return super().step(action)

    collector = RolloutCollector(make_vector_env(Listening, num_envs=2, seed=0))
    policy = policy_for(collector, **({"log_std_init": 1.0} if "box" in name else {}))
    rollout = collector.collect(policy, None, 20, philox())
    expected = policy(rollout.observations.flatten(0, 1).float())
    expected = expected.log_prob(rollout.actions.flatten(0, 1))
    torch.testing.assert_close(rollout.log_probs.flatten(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert not rollout.log_probs.requires_grad
    to_env = policy.to_env(rollout.actions.flatten(0, 1)).numpy()
    np.testing.assert_allclose(np.stack(given).reshape(to_env.shape), to_env)
    if "box" in name:
        assert (rollout.actions.abs() > 1).any()


UNITS = {
    "float32": spaces.Box(np.float32([-3, 0.1, -1, 0]), np.float32([5, 0.7, 1, np.inf])),
    "float64, 2-D": spaces.Box(-0.1, 0.3, (2, 2), np.float64),
    "float16": spaces.Box(-0.1, 0.3, (3,), np.float16),
    "0-d": spaces.Box(-0.1, 0.3, (), np.float32),
    "of the tanh": spaces.Box(-1, 1, (1,), np.float32),
}
BOUNDED = [name for name, space in UNITS.items() if space.is_bounded()]


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    ("name", "distribution"),
    [(name, "gaussian") for name in UNITS if name != "of the tanh"]
    + [(name, other) for name in BOUNDED for other in ("squashed", "beta")],
)
def test_actions_in_units_of_the_bounds_are_the_policys_own_to_the_bit(
    name: str, distribution: str, native: bool, double: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    class Listening(Scripted):
        action_space = UNITS[name]

        def step(self, action: Any) -> Any:
            assert self.action_space.contains(np.asarray(action))
            given.append(np.array(action))
            return super().step(action)

    if not native:
        monkeypatch.setattr("trpo_fast._native.core", None)
    collector = RolloutCollector(make_vector_env(Listening, num_envs=2, seed=0))
    log_std = -1.0 if distribution == "beta" else 0.0
    policy = policy_for(
        collector, scale_actions=True, distribution=distribution, log_std_init=log_std
    )
    policy = policy.double() if double else policy
    convert = action_converter(policy, UNITS[name])
    with monkeypatch.context() as patched:
        if native:  # a call of torch's for each step would take longer than all the rest
            patched.setattr(MlpPolicy, "to_env", None)
        rollout = collector.collect(policy, None, 20, philox())
    expected = convert(rollout.actions.flatten(0, 1))
    assert np.array_equal(np.stack(given), expected)
    low, high = UNITS[name].low, UNITS[name].high
    assert (expected == low).any() == (distribution == "gaussian")
    assert (np.ptp(expected, 0) > 0.5 * (high - low))[np.isfinite(high)].all()


@pytest.mark.parametrize("native", [True, False])
def test_a_to_env_of_the_users_own_is_called(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    class Listening(Scripted):
        action_space = UNITS["float32"]

        def step(self, action: Any) -> Any:
            given.append(np.array(action))
            return super().step(action)

    if not native:
        monkeypatch.setattr("trpo_fast._native.core", None)
    collector = RolloutCollector(make_vector_env(Listening, num_envs=2, seed=0))
    policy = policy_for(collector)
    monkeypatch.setattr(policy, "to_env", lambda actions: torch.full_like(actions, 0.25))
    collector.collect(policy, None, 5, philox())
    assert np.unique(given).tolist() == [0.25]


class Host(Tensor):
    """What has been brought from the policy's device."""


@pytest.mark.parametrize("recognised", [True, False])
@pytest.mark.parametrize("space", [*UNITS.values(), SPACES["discrete"]], ids=str)
def test_actions_are_converted_where_the_policy_is(
    space: Any, recognised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a device, from which `cpu` brings copies, and where bounds of the host are of no use.
    class Acting(Scripted):
        action_space = space

    def to_env(actions: Any) -> Any:
        given.append(actions)
        return own(actions)

    monkeypatch.setattr("trpo_fast._native.core", None)
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: tensor.clone().as_subclass(Host))
    collector = RolloutCollector(make_vector_env(Acting, num_envs=2, seed=0))
    policy = policy_for(collector)
    given, own = list[Tensor](), policy.to_env
    monkeypatch.setattr(policy, "to_env", to_env)
    if not recognised:
        monkeypatch.setattr("trpo_fast.rollouts.samplers.network_of", lambda _: "a reason")
    kept = collector.collect(policy, None, 5, philox()).actions.untyped_storage()
    place = range(kept.data_ptr(), kept.data_ptr() + kept.nbytes())
    assert len(given) == 5
    assert not any(isinstance(actions, Host) or actions.data_ptr() in place for actions in given)


def test_a_foreign_policy_is_sampled_in_eval_mode_and_put_back() -> None:
    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2))
            self.frozen = nn.Dropout(0.5).eval()

        def forward(self, obs: Tensor) -> Distribution:
            mean = self.frozen(self.body(obs))
            return Independent(Normal(mean, torch.ones_like(mean)), 1)

    torch.manual_seed(0)
    policy = Foreign().train()
    policy.frozen.eval()
    collector = walks()
    rollout = collector.collect(policy, None, 6, philox())
    modes = {n: m.training for n, m in policy.named_modules()}
    assert not modes.pop("frozen")
    assert all(modes.values())
    policy.eval()
    expected = policy(rollout.observations.flatten(0, 1).float())
    expected = expected.log_prob(rollout.actions.flatten(0, 1))
    torch.testing.assert_close(rollout.log_probs.flatten(), expected.detach(), rtol=1e-5, atol=1e-5)


def test_a_policy_whose_log_probabilities_are_not_joint_is_refused() -> None:
    class PerDimension(nn.Module):
        def forward(self, obs: Tensor) -> Distribution:
            return Normal(torch.zeros(len(obs), 2), torch.ones(2))

    with pytest.raises(ValueError, match=r"log_prob must have shape \[3\].*Independent"):
        walks().collect(PerDimension(), None, 2, philox())


def test_a_policy_with_nan_parameters_is_refused_before_it_acts() -> None:
    collector = walks()
    policy = policy_for(collector)
    with torch.no_grad():
        policy.body[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"parameter 'body\.0\.weight' .* NaN"):
        collector.collect(policy, None, 2, philox())


@pytest.mark.parametrize("place", ["observation", "info", "method"])
@pytest.mark.parametrize("nvec", [(4,), (3, 2)])
def test_masks_are_obeyed_and_recorded(place: str, nvec: tuple[int, ...]) -> None:
    """Masked raises when given an action that its mask forbids."""
    collector = RolloutCollector(make_vector_env(lambda: Masked(place, nvec), num_envs=3, seed=0))
    policy = policy_for(collector)
    rollout = collector.collect(policy, None, 12, philox())
    assert rollout.action_masks is not None
    assert rollout.action_masks.shape == (12, 3, sum(nvec))
    assert (rollout.action_masks.sum(dim=-1) == len(nvec)).all()
    # a single choice has probability 1
    torch.testing.assert_close(rollout.log_probs, torch.zeros(12, 3))
    resumed = RolloutCollector(make_vector_env(lambda: Masked(place, nvec), num_envs=3, seed=0))
    resumed.restore(collector.state())
    assert_same(
        resumed.collect(policy, None, 7, philox()), collector.collect(policy, None, 7, philox())
    )
