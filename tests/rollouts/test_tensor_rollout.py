"""Rollouts in tensors: the same bits as in NumPy, what is kept of episodes, and no waiting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from host_waits import HostWaits
from rollout_cases import FACTORIES, Alternating, assert_same, in_mode, philox
from tensor_cases import Counter, InTensors, LateCounter, collector, seeded
from torch import Tensor, nn
from toy_environments import Walk

from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.environments.make import make_vector_env
from trpo_fast.networks.mlp import MlpPolicy
from trpo_fast.rollouts.collector import RolloutCollector
from trpo_fast.rollouts.normalization import ObservationNormalizer
from trpo_fast.rollouts.rollout import Rollout


def policy_of(env: Any, **options: Any) -> MlpPolicy:
    generator = torch.Generator().manual_seed(0)
    return MlpPolicy(env.observation_space, env.action_space, generator=generator, **options)


class Opaque(nn.Module):
    """A policy that no network is recognised in: it draws for itself."""

    def __init__(self, inner: MlpPolicy) -> None:
        super().__init__()
        self.inner = inner
        self.to_env = inner.to_env

    def forward(self, obs: Tensor) -> Any:
        return self.inner(obs + torch.zeros((), dtype=obs.dtype).uniform_() * 0)


def normalizer_for(width: int) -> ObservationNormalizer:
    normalizer = ObservationNormalizer((width,))
    normalizer.observe(np.random.default_rng(0).normal(size=(64, width)))
    normalizer.commit()
    return normalizer


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("CartPole-v1", {}),
        ("Pendulum-v1", {}),
        ("Pendulum-v1", {"distribution": "squashed"}),
        ("Pendulum-v1", {"scale_actions": True}),
        (Walk, {}),
    ],
)
def test_the_bits_are_those_of_the_rollout_in_numpy(
    env: Any, options: dict[str, Any], opaque: bool, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr("trpo_fast._native.core", None)
    plain = RolloutCollector(make_vector_env(env, num_envs=3, seed=5))
    ours = collector(seeded(env, 3, 5))
    policy: nn.Module = policy_of(plain.env, **options)
    policy = Opaque(policy) if opaque else policy
    normalizer = normalizer_for(plain.env.observation_width)
    rngs = philox(1), philox(1)
    for _ in range(2):
        one = plain.collect(policy, normalizer, 40, rngs[0])
        other = ours.collect(policy, normalizer, 40, rngs[1])
        assert one.episode_lengths or env == "Pendulum-v1"
        assert_same(one, other)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_both_conventions_of_autoreset_are_read_as_in_numpy(mode: AutoresetMode) -> None:
    plain = in_mode(mode)
    vector = SyncVectorEnv(FACTORIES, autoreset_mode=mode)
    ours = collector(InTensors(vector))
    for _ in range(3):
        one = plain.collect(Alternating(), None, 7, philox())
        other = ours.collect(Alternating(), None, 7, philox())
        valid = one.valid
        for name in ("rewards", "terminated", "truncated", "valid", "last_observations"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert torch.equal(one.observations[valid], other.observations[valid])
        assert torch.equal(one.final_observations, other.final_observations)
        assert all(map(torch.equal, one.final_index, other.final_index))
        assert one.episode_returns == other.episode_returns
        assert one.episode_lengths == other.episode_lengths


def told(rollout: Rollout) -> list[tuple[float, int]]:
    return list(zip(rollout.episode_returns, rollout.episode_lengths, strict=True))


@pytest.mark.parametrize("kind", [Counter, LateCounter])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_episodes_are_told_whole_across_rollouts(kind: Any, steps: int) -> None:
    ours = collector(kind())
    episodes = [
        e
        for _ in range(42 // steps)
        for e in told(ours.collect(Alternating(), None, steps, philox()))
    ]
    late = kind is LateCounter
    lengths = [length for _, length in episodes]
    for length in (3, 4, 5):
        assert lengths.count(length) == pytest.approx(42 / (length + late), abs=1)
    assert all(total == length * (length + 1) / 2 for total, length in episodes)


class Afterthought(LateCounter):
    """Gives a reward in the steps that only reset."""

    def __init__(self, reward: float) -> None:
        super().__init__()
        self.reward = reward

    def step(self, actions: Tensor) -> tuple[Any, ...]:
        resetting = self.over
        shown, rewards, *rest = super().step(actions)
        return shown, torch.where(resetting, self.reward, rewards), *rest


@pytest.mark.parametrize("reward", [100.0, float("nan")])
def test_the_reward_of_a_row_that_only_resets_is_nobodys(reward: float) -> None:
    ours, plain = collector(Afterthought(reward)), collector(LateCounter())
    for _ in range(3):
        one, other = (each.collect(Alternating(), None, 7, philox()) for each in (ours, plain))
        assert told(one) == told(other)
        assert torch.equal(one.rewards, other.rewards)
        assert np.array_equal(ours.state()["returns"], plain.state()["returns"])


@pytest.mark.parametrize("key", ["final_obs", "final_observation", "terminal_observation"])
def test_final_observations_are_read_wherever_they_are_put(key: str) -> None:
    found = collector(Counter(finals=key)).collect(Alternating(), None, 5, philox())
    assert [each.tolist() for each in found.final_index] == [[3, 4], [1, 2]]
    assert found.final_observations.tolist() == [[1, 4, 0], [2, 5, 0]]


def test_without_final_observations_the_one_before_stands_in_and_one_warning_says_so() -> None:
    ours = collector(Counter(finals=None))
    with pytest.warns(RuntimeWarning, match="biases the advantages of its last steps"):
        found = ours.collect(Alternating(), None, 5, philox())
    ours.collect(Alternating(), None, 5, philox())  # where another warning would be an error
    assert found.final_observations.tolist() == [[1, 3, 0], [2, 4, 0]]


class Poisoned(Counter):
    """Gives one NaN at a step of environment 1."""

    def __init__(self, where: str, at: int, **options: Any) -> None:
        super().__init__(**options)
        self.where, self.when, self.taken = where, at, 0

    def step(self, actions: Tensor) -> tuple[Any, ...]:
        obs, rewards, terminated, truncated, info = super().step(actions)
        self.taken += 1
        if self.taken == self.when:
            {"obs": obs[:, 1], "reward": rewards, "final": info["final_obs"][:, 1]}[self.where][
                1
            ] = torch.nan
        return obs, rewards, terminated, truncated, info


@pytest.mark.parametrize(
    ("where", "at", "text", "step"),
    [
        ("obs", 2, "observation.* at step 2 of its episode, after action", 2),
        ("obs", 4, "observation.* at its reset", 0),
        ("obs", 8, "observation.* at its reset", 0),
        ("reward", 7, "reward at step 3 of its episode", 3),
        ("final", 4, "final observation at step 4 of its episode", 4),
    ],
)
def test_a_nan_is_named_and_the_next_rollout_begins_anew(
    where: str, at: int, text: str, step: int
) -> None:
    env = Poisoned(where, at)
    ours = collector(env)
    with pytest.raises(EnvironmentFault, match=f"environment 1 of Poisoned .*{text}") as caught:
        ours.collect(Alternating(), None, 8, philox())
    assert (caught.value.env_index, caught.value.step) == (1, step)
    assert (caught.value.action is None) == (step == 0)
    resets = env.resets
    found = ours.collect(Alternating(), None, 8, philox())
    assert env.resets == resets + 1
    assert found.observations[0, :, 1].tolist() == [0, 0, 0]


def test_a_final_observation_of_a_terminated_episode_may_be_anything() -> None:
    class Loose(Counter):
        def step(self, actions: Tensor) -> tuple[Any, ...]:
            obs, rewards, terminated, truncated, info = super().step(actions)
            info["final_obs"][~truncated] = torch.nan
            return obs, rewards, terminated, truncated, info

    found = collector(Loose()).collect(Alternating(), None, 8, philox())
    assert bool(torch.isfinite(found.final_observations).all())


@pytest.mark.parametrize(
    ("where", "at", "left_out", "anew"),
    [
        ("obs", 2, range(4), False),  # the first episode of environment 1, of 4 steps
        ("reward", 7, range(4, 8), False),
        ("obs", 10, range(8, 11), True),  # the third one, which is not over yet
        ("obs", 11, range(8, 11), True),
        ("final", 8, range(4, 8), False),
    ],
)
def test_a_dropped_episode_leaves_the_rollout_alone(
    where: str, at: int, left_out: range, anew: bool
) -> None:
    env = Poisoned(where, at)
    ours = collector(env, on_fault="drop")
    with pytest.warns(RuntimeWarning, match="environment 1 of Poisoned .* its episode is dropped"):
        found = ours.collect(Alternating(), None, 11, philox())
    whole = collector(Counter()).collect(Alternating(), None, 11, philox())
    assert found.dropped_episodes == ours.dropped_episodes == 1
    expected = torch.ones(11, 3, dtype=torch.bool)
    expected[list(left_out), 1] = False
    assert torch.equal(found.valid, expected)
    for name in ("observations", "rewards"):
        assert torch.equal(getattr(found, name)[expected], getattr(whole, name)[expected])
        assert bool(torch.isfinite(getattr(found, name)).all())
    kept = [e for e in told(whole) if e != (10.0, 4)]
    assert [e for e in told(found) if e != (10.0, 4)] == kept
    assert len(told(whole)) - len(told(found)) == (not anew)
    following = ours.collect(Alternating(), None, 1, philox())
    assert (following.observations[0, 0, 1].item() == 0) == anew


def test_what_is_out_of_its_space_is_no_number() -> None:
    from gymnasium import spaces

    class Cells(Counter):
        single_observation_space = spaces.Discrete(3, start=2)

        def shown(self) -> Tensor:
            return self.at + 2

    with pytest.raises(EnvironmentFault, match=r"environment 1 of .* index outside its"):
        collector(Cells()).collect(Alternating(), None, 8, philox())


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("opaque", [False, True])
def test_no_step_makes_the_host_wait(
    native: bool, opaque: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr("trpo_fast._native.core", None)
    waits = HostWaits()
    at_steps: list[int] = []

    class Watched(Counter):
        def step(self, actions: Tensor) -> tuple[Any, ...]:
            at_steps.append(len(waits.seen))
            before, taken = list(waits.seen), super().step(actions)
            waits.seen[:] = before  # the environment's own are its own
            return taken

    ours = collector(Watched())
    policy: nn.Module = policy_of(ours.env)
    policy = Opaque(policy) if opaque else policy
    normalizer = normalizer_for(3)
    in_all = []
    for steps in (4, 4, 24):
        waits.seen.clear()
        at_steps.clear()
        with waits:
            ours.collect(policy, normalizer, steps, philox())
        assert len(at_steps) == steps
        assert at_steps[0] == at_steps[-1], waits.seen[at_steps[0] : at_steps[-1]]
        in_all.append(len(waits.seen))
    assert in_all[1] == in_all[2] <= 20


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x[0]),
        lambda x: x.numpy(),
        np.asarray,
        lambda x: x.tolist(),
        torch.nonzero,
        lambda x: x[x > 0],
        lambda x: x.to("meta"),
    ],
)
def test_the_watch_sees_what_waits(look: Any) -> None:
    x = torch.ones(3)
    with HostWaits() as waits:
        look(x)
    assert waits.seen


@pytest.mark.parametrize(("limit", "threads"), [(1 << 16, 1), (8, 2)])
def test_an_environments_small_steps_are_made_on_one_thread(
    limit: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Watched(Counter):
        def step(self, actions: Tensor) -> tuple[Any, ...]:
            seen.append(torch.get_num_threads())
            return super().step(actions)

    monkeypatch.setattr("trpo_fast.rollouts.tensor_collector.SMALL_STEP", limit)
    seen: list[int] = []
    ours, before = collector(Watched()), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ours.collect(Alternating(), None, 4, philox())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [threads] * 4
