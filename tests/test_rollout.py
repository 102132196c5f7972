"""Rollouts: the same valid transitions whatever the reset convention, and exact resumption."""

from __future__ import annotations

import gc
import os
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal
from toy_environments import BOTH, TERMINATED, TRUNCATED, Masked, Poisoned, Raising, Scripted, Walk

from trpo_fast.environments import EnvironmentFault, make_vector_env
from trpo_fast.gae import compute_gae
from trpo_fast.normalization import ObservationNormalizer
from trpo_fast.policies import MlpPolicy
from trpo_fast.rollout import Rollout, RolloutCollector, RolloutInterrupted, bootstrap_values

SCRIPTS = [
    ((2, TERMINATED), (1, TRUNCATED), (3, BOTH), (4, TRUNCATED)),
    ((3, TRUNCATED), (2, TRUNCATED), (1, TERMINATED)),
    ((50, TERMINATED),),
]
FACTORIES = [lambda i=i: Scripted(SCRIPTS[i], i) for i in range(3)]


class Alternating(nn.Module):
    """Action step % 2, with certainty: what is collected then depends on no random number."""

    def forward(self, obs: Tensor) -> Distribution:
        one = obs[:, 2].long() % 2
        return Categorical(logits=torch.stack([1e9 * (1 - one), 1e9 * one], dim=1).float())


def philox(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def collect(collector: RolloutCollector, steps: int, policy: nn.Module | None = None) -> Rollout:
    return collector.collect(policy or Alternating(), None, steps, philox())


def value_fn(observations: Tensor) -> Tensor:
    """Any function of the observation will do, as long as no two observations share a value."""
    return (observations * torch.tensor([100.0, 10.0, 1.0])).sum(dim=1).sin()


def transitions(rollout: Rollout) -> list[list[dict[str, Any]]]:
    """For each environment its valid transitions in order, advantages among them."""
    values, last_values, final_values = bootstrap_values(rollout, value_fn)
    advantages, returns = compute_gae(
        rollout.rewards,
        values,
        rollout.terminated,
        rollout.truncated,
        last_values,
        final_values=final_values,
    )
    finals = {
        (int(t), int(b)): row.tolist()
        for t, b, row in zip(*rollout.final_index, rollout.final_observations, strict=True)
    }
    steps, envs = rollout.rewards.shape
    return [
        [
            {
                "observation": rollout.observations[t, b].tolist(),
                "action": int(rollout.actions[t, b]),
                "reward": float(rollout.rewards[t, b]),
                "terminated": bool(rollout.terminated[t, b]),
                "truncated": bool(rollout.truncated[t, b]),
                "final": finals.get((t, b)),
                "advantage": float(advantages[t, b]),
                "return": float(returns[t, b]),
            }
            for t in range(steps)
            if rollout.valid[t, b]
        ]
        for b in range(envs)
    ]


def in_mode(mode: AutoresetMode) -> RolloutCollector:
    return RolloutCollector(make_vector_env(SyncVectorEnv(FACTORIES, autoreset_mode=mode), seed=0))


def test_all_reset_modes_give_the_same_valid_transitions_and_advantages() -> None:
    """Up to the end of each environment's last whole episode: the rest is cut off elsewhere."""
    per_mode = {mode: transitions(collect(in_mode(mode), 24)) for mode in AutoresetMode}
    same = per_mode.pop(AutoresetMode.SAME_STEP)
    assert per_mode.pop(AutoresetMode.DISABLED) == same
    for b, got in enumerate(per_mode.pop(AutoresetMode.NEXT_STEP)):
        ends = [i for i, row in enumerate(got) if row["terminated"] or row["truncated"]]
        whole = ends[-1] + 1 if ends else 0
        assert b == 2 or whole > 12
        assert got[:whole] == same[b][:whole]
        without = [{k: v for k, v in r.items() if k not in ("advantage", "return")} for r in got]
        for row, expected in zip(without, same[b], strict=False):
            assert row == {k: expected[k] for k in row}


def test_rows_of_a_rollout_by_hand() -> None:
    rollout = collect(in_mode(AutoresetMode.SAME_STEP), 3)
    assert rollout.observations[:, 0].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert rollout.observations[:, 1].tolist() == [[1, 0, 0], [1, 0, 1], [1, 0, 2]]
    assert rollout.actions.tolist() == [[0, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert rollout.rewards.tolist() == [[1, 1, 1], [2, 2, 2], [11, 3, 3]]
    assert rollout.terminated.tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert rollout.truncated.tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 0]]
    assert [index.tolist() for index in rollout.final_index] == [[2, 2], [0, 1]]
    assert rollout.final_observations.tolist() == [[0, 1, 1], [1, 0, 3]]
    assert rollout.last_observations.tolist() == [[0, 2, 0], [1, 1, 0], [2, 0, 3]]
    assert rollout.valid.all()
    assert rollout.num_valid == 9
    assert rollout.episode_returns == [3.0, 11.0, 6.0]
    assert rollout.episode_lengths == [2, 1, 3]
    assert (rollout.observations.dtype, rollout.rewards.dtype) == (torch.float32, torch.float32)


def test_pitfall_21_the_autoreset_row_is_masked_out_and_its_input_is_the_final_observation() -> (
    None
):
    collector = in_mode(AutoresetMode.NEXT_STEP)
    rollout = collect(collector, 8)
    episodes_ended = int((rollout.terminated | rollout.truncated)[:-1].sum())
    assert rollout.num_valid == 24 - episodes_ended
    values, last_values, final_values = bootstrap_values(rollout, value_fn)
    following = torch.cat([values[1:], last_values[None]])
    cut = rollout.truncated & ~rollout.terminated
    assert cut.any()
    torch.testing.assert_close(final_values[cut], following[cut], rtol=0, atol=0)
    reset_rows = ~rollout.valid
    assert (rollout.rewards[reset_rows] == 0).all()
    assert len(rollout.select(rollout.observations)) == rollout.num_valid
    # Whatever those rows hold reaches no advantage.
    arguments = (rollout.terminated, rollout.truncated, last_values)
    clean, _ = compute_gae(rollout.rewards, values, *arguments, final_values=final_values)
    rollout.rewards[reset_rows] = torch.nan
    values[reset_rows] = torch.nan
    dirty, _ = compute_gae(rollout.rewards, values, *arguments, final_values=final_values)
    assert torch.equal(rollout.select(dirty), rollout.select(clean))


def test_pitfall_07_a_truncation_bootstraps_from_the_final_observation_not_the_next_one() -> None:
    rollout = collect(in_mode(AutoresetMode.SAME_STEP), 6)
    values, _, final_values = bootstrap_values(rollout, value_fn)
    cut = rollout.truncated & ~rollout.terminated
    for t, b in cut.nonzero().tolist():
        row = rollout.observations[t, b]
        expected = value_fn((row + torch.tensor([0.0, 0.0, 1.0]))[None])
        torch.testing.assert_close(final_values[t, b], expected[0], rtol=0, atol=0)
    assert (final_values[~cut] == 0).all()
    assert not torch.equal(final_values[:-1][cut[:-1]], values[1:][cut[:-1]])


def test_pitfall_09_no_padding_reaches_the_value_function() -> None:
    seen: list[Tensor] = []

    def recording(observations: Tensor) -> Tensor:
        seen.append(observations)
        return value_fn(observations)

    collector = in_mode(AutoresetMode.SAME_STEP)
    rollout = collect(collector, 6)
    bootstrap_values(rollout, recording)
    steps = int((rollout.truncated & ~rollout.terminated).sum())
    assert sum(len(rows) for rows in seen) == 6 * 3 + 3 + steps
    rows = torch.cat(seen)
    assert {int(i) for i in rows[:, 0]} == {0, 1, 2}
    # all of them observations that the environments did give: step <= the episode's length
    for index, episode, step in rows.int().tolist():
        script = SCRIPTS[index]
        assert step <= script[episode % len(script)][0]


def test_values_are_computed_in_bounded_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from trpo_fast import recording

    rollout = collect(in_mode(AutoresetMode.SAME_STEP), 6)
    whole = bootstrap_values(rollout, value_fn)
    monkeypatch.setattr(recording, "_VALUE_ROWS", 5)
    for part, expected in zip(bootstrap_values(rollout, value_fn), whole, strict=True):
        torch.testing.assert_close(part, expected)
    with pytest.raises(
        ValueError, match=r"must give \[N\] values .* N = 18 it gave shape \(18, 1\)"
    ):
        bootstrap_values(rollout, lambda rows: rows[:, :1])


def test_rollouts_follow_on_from_each_other() -> None:
    parts, whole = in_mode(AutoresetMode.SAME_STEP), in_mode(AutoresetMode.SAME_STEP)
    pieces = [collect(parts, steps) for steps in (5, 1, 9)]
    long = collect(whole, 15)
    for name in ("observations", "actions", "rewards", "terminated", "truncated"):
        joined = torch.cat([getattr(piece, name) for piece in pieces])
        assert torch.equal(joined, getattr(long, name)), name
    returns = [r for piece in pieces for r in piece.episode_returns]
    assert sorted(returns) == sorted(long.episode_returns)


def walks(seed: int = 0, **options: Any) -> RolloutCollector:
    env = make_vector_env(Walk, num_envs=3, seed=seed, **options)
    return RolloutCollector(env)


def policy_for(collector: RolloutCollector, **options: Any) -> MlpPolicy:
    generator = torch.Generator().manual_seed(0)
    env = collector.env
    return MlpPolicy(env.observation_space, env.action_space, generator=generator, **options)


def assert_same(one: Rollout, other: Rollout) -> None:
    for name, value in vars(one).items():
        counterpart = getattr(other, name)
        if isinstance(value, Tensor):
            assert torch.equal(value, counterpart), name
        elif name == "final_index":
            assert all(map(torch.equal, value, counterpart))
        else:
            assert value == counterpart, name


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("continuous", [True, False])
def test_a_restored_collector_continues_bit_for_bit(vectorization: str, continuous: bool) -> None:
    options = {"vectorization": vectorization, "env_kwargs": {"continuous": continuous}}
    original = walks(**options)
    policy, rng = policy_for(original), philox()
    for steps in (4, 10, 7):
        original.collect(policy, None, steps, rng)
    state, rng_state = original.state(), rng.bit_generator.state
    expected = [original.collect(policy, None, 12, rng) for _ in range(2)]
    original.env.close()

    resumed, other_rng = walks(**options), philox(99)
    resumed.restore({name: array.copy() for name, array in state.items()})
    other_rng.bit_generator.state = rng_state
    for rollout in expected:
        assert_same(resumed.collect(policy, None, 12, other_rng), rollout)
    resumed.env.close()


def test_a_restored_collector_of_mujoco_continues_bit_for_bit() -> None:
    pytest.importorskip("mujoco")

    def make() -> RolloutCollector:
        return RolloutCollector(make_vector_env("Hopper-v5", num_envs=2, seed=0))

    original, resumed = make(), make()
    policy, rng = policy_for(original), philox()
    original.collect(policy, None, 50, rng)
    resumed.restore(original.state())
    follow = philox(5), philox(5)
    assert_same(
        original.collect(policy, None, 20, follow[0]), resumed.collect(policy, None, 20, follow[1])
    )


def test_state_is_plain_arrays_that_later_rollouts_do_not_touch() -> None:
    collector = walks()
    assert collector.state() == {}
    policy = policy_for(collector)
    collector.collect(policy, None, 5, philox())
    state = collector.state()
    assert all(isinstance(array, np.ndarray) for array in state.values())
    before = {name: array.copy() for name, array in state.items()}
    collector.collect(policy, None, 5, philox())
    for name, array in before.items():
        np.testing.assert_array_equal(state[name], array)


def test_restoring_the_empty_state_begins_anew() -> None:
    collector = walks()
    collector.restore({})
    rollout = collector.collect(policy_for(collector), None, 5, philox())
    fresh = walks().collect(policy_for(collector), None, 5, philox())
    assert torch.equal(rollout.observations, fresh.observations)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observations": np.zeros((2, 2))}, r"\(2, 2\) observations .* this run has \(3, 2\)"),
        ({"lengths": np.zeros(2)}, r"lengths must have shape \(3,\)"),
        ({"action_counts": np.array([1, 2, 3000])}, "does not match action_counts"),
    ],
)
def test_a_state_of_another_shape_is_refused(change: dict[str, Any], message: str) -> None:
    collector = walks()
    collector.collect(policy_for(collector), None, 5, philox())
    with pytest.raises(ValueError, match=message):
        walks().restore({**collector.state(), **change})


def test_an_environment_that_does_not_repeat_itself_is_announced() -> None:
    """Scripted counts its resets, whatever their seeds."""
    collector = RolloutCollector(
        make_vector_env(lambda: Scripted(((9, TERMINATED),)), num_envs=1, seed=0)
    )
    collect(collector, 4)
    with pytest.warns(RuntimeWarning, match="led to another observation than recorded"):
        collector.restore(collector.state())


def test_worker_processes_survive_an_interrupt_in_the_middle_of_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Answers that nobody read must not be taken for those of a later step."""
    collector, undisturbed = walks(vectorization="async"), walks()
    policy = policy_for(collector)
    for it in (collector, undisturbed):
        it.collect(policy, None, 9, philox())
    inner = collector.env.vector

    def interrupted() -> Any:
        inner.parent_pipes[0].recv()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(inner, "step_wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collector.collect(policy, None, 5, philox(1))
    rollouts = [it.collect(policy, None, 6, philox(2)) for it in (collector, undisturbed)]
    assert_same(*rollouts)
    assert not any(process.is_alive() for process in inner.processes)
    collector.env.close()


@pytest.mark.parametrize("fault", ["interrupt", "raise"])
def test_an_abandoned_rollout_leaves_the_state_it_began_with(fault: str) -> None:
    collector, undisturbed = walks(), walks()
    policy = policy_for(collector)
    for it in (collector, undisturbed):
        it.collect(policy, None, 9, philox())
    before = collector.state()
    asked: list[None] = []

    def should_stop() -> bool:
        asked.append(None)
        if len(asked) == 12 and fault == "raise":
            raise KeyboardInterrupt
        return len(asked) == 12

    error = RolloutInterrupted if fault == "interrupt" else KeyboardInterrupt
    with pytest.raises(error):
        collector.collect(policy, None, 40, philox(1), should_stop)
    for name, array in collector.state().items():
        np.testing.assert_array_equal(array, before[name])
    assert_same(
        collector.collect(policy, None, 6, philox(2)),
        undisturbed.collect(policy, None, 6, philox(2)),
    )


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
    expected = policy(rollout.observations.flatten(0, 1)).log_prob(rollout.actions.flatten(0, 1))
    torch.testing.assert_close(rollout.log_probs.flatten(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert not rollout.log_probs.requires_grad
    to_env = policy.to_env(rollout.actions.flatten(0, 1)).numpy()
    np.testing.assert_allclose(np.stack(given).reshape(to_env.shape), to_env)
    if "box" in name:
        assert (rollout.actions.abs() > 1).any()


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
    expected = policy(rollout.observations.flatten(0, 1)).log_prob(rollout.actions.flatten(0, 1))
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


def poisoned(where: str, at: tuple[int, int], mode: AutoresetMode | None, **options: Any) -> Any:
    """Three environments, the second of which misbehaves once."""
    script = options.pop("script", ((3, TERMINATED), (2, TRUNCATED)))
    factories = [
        lambda: Scripted(script, 0),
        lambda: Poisoned(where, at, script, 1, **options),
        lambda: Scripted(script, 2),
    ]
    if mode is None:
        made = iter([factory() for factory in factories])
        return make_vector_env(made.__next__, num_envs=3, seed=0)
    return make_vector_env(SyncVectorEnv(factories, autoreset_mode=mode), seed=0)


MODES = [None, *AutoresetMode]


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("observation", np.nan),
        ("observation", -np.inf),
        ("reward", np.nan),
        ("reward", np.inf),
        ("reward", 1e39),  # more than float32 holds
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_a_nan_from_an_environment_stops_the_rollout(
    mode: AutoresetMode | None, where: str, value: float
) -> None:
    collector = RolloutCollector(poisoned(where, (1, 1), mode, value=value))
    with pytest.raises(EnvironmentFault, match=f"environment 1 .* {where} at step 1") as caught:
        collect(collector, 20)
    assert caught.value.env_index == 1
    assert caught.value.step == 1
    assert caught.value.action == 0
    assert "action 0" in str(caught.value)


def test_an_action_that_is_not_finite_is_the_policys_fault() -> None:
    class Echo(Scripted):
        action_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)

        def step(self, action: Any) -> Any:
            return (action.copy(), *super().step(action)[1:])

    class Overflowing(nn.Module):
        def forward(self, obs: Tensor) -> Distribution:
            return Independent(Normal(obs * torch.inf, 1.0, validate_args=False), 1)

    collector = RolloutCollector(make_vector_env(Echo, num_envs=1, seed=0))
    with pytest.raises(EnvironmentFault, match="The policy gave that action"):
        collect(collector, 3, Overflowing())


def test_pitfall_23_a_nan_reward_with_finite_observations_is_caught() -> None:
    collector = RolloutCollector(poisoned("reward", (0, 2), None))
    with pytest.raises(EnvironmentFault, match="NaN or infinite reward"):
        collect(collector, 5)


def by_episode(rows: list[dict[str, Any]]) -> dict[float, list[dict[str, Any]]]:
    episodes: dict[float, list[dict[str, Any]]] = {}
    for row in rows:
        episodes.setdefault(row["observation"][1], []).append(row)
    return episodes


@pytest.mark.parametrize(
    ("where", "at"),
    [
        *product(["observation", "reward"], [(1, 1), (1, 2), (0, 1)]),
        ("reward", (0, 3)),  # a terminated episode's final observation is not used
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_dropping_removes_one_episode_and_nothing_else(
    mode: AutoresetMode | None, at: tuple[int, int], where: str
) -> None:
    collector = RolloutCollector(poisoned(where, at, mode), on_fault="drop")
    with pytest.warns(RuntimeWarning, match="environment 1 .* its episode is dropped"):
        rollout = collect(collector, 12)
    assert rollout.dropped_episodes == collector.dropped_episodes == 1
    for tensor in (rollout.observations, rollout.rewards, rollout.final_observations):
        assert torch.isfinite(tensor).all()
    clean = transitions(collect(RolloutCollector(poisoned(where, (99, 0), mode)), 12))
    got = transitions(rollout)
    assert got[0] == clean[0]
    assert got[2] == clean[2]
    # environment 1: complete episodes only, none of them number at[0], all as in the clean run
    kept = [row for row in got[1] if row["observation"][1] != at[0]]
    assert kept == got[1]
    expected, remaining = (by_episode(rows) for rows in (clean[1], got[1]))
    whole = (expected.keys() & remaining.keys()) - {max(expected), max(remaining)}
    assert len(whole) >= 2
    for episode in whole:
        assert remaining[episode] == expected[episode]
    assert len(rollout.episode_returns) == len(rollout.episode_lengths)
    assert np.isfinite(rollout.episode_returns).all()


def test_a_terminated_episode_may_end_in_a_nan_observation() -> None:
    """MuJoCo environments terminate because the state is no longer finite."""
    for mode in MODES:
        collector = RolloutCollector(poisoned("observation", (0, 3), mode))
        rollout = collect(collector, 8)
        clean = collect(RolloutCollector(poisoned("observation", (99, 0), mode)), 8)
        assert transitions(rollout) == transitions(clean)


@pytest.mark.parametrize("mode", MODES)
def test_a_nan_first_observation_is_reset_once_more_when_dropping(
    mode: AutoresetMode | None,
) -> None:
    for at in ((0, 0), (1, 0)):
        with pytest.raises(EnvironmentFault, match="observation at its reset"):
            collect(RolloutCollector(poisoned("observation", at, mode)), 8)
        collector = RolloutCollector(poisoned("observation", at, mode), on_fault="drop")
        with pytest.warns(RuntimeWarning, match="at a reset"):
            rollout = collect(collector, 12)
        assert torch.isfinite(rollout.observations).all()
        assert collector.dropped_episodes == 1
        assert at[0] not in {row["observation"][1] for row in transitions(rollout)[1]}


def test_an_environment_that_only_gives_nan_stops_even_when_dropping() -> None:
    class Hopeless(Scripted):
        def step(self, action: Any) -> Any:
            observation, _, *rest = super().step(action)
            return (observation, np.nan, *rest)

    collector = RolloutCollector(make_vector_env(Hopeless, num_envs=2, seed=0), on_fault="drop")
    with (
        pytest.warns(RuntimeWarning, match="dropped"),
        pytest.raises(EnvironmentFault, match="every episode of this rollout was dropped"),
    ):
        collect(collector, 8)


def test_an_environment_that_cannot_be_started_stops_even_when_dropping() -> None:
    class Stillborn(Scripted):
        def _observation(self) -> Any:
            return super()._observation() * np.nan

    for kind in (Stillborn, _NeverAgain):
        collector = RolloutCollector(make_vector_env(kind, num_envs=1, seed=0), on_fault="drop")
        with (
            pytest.warns(RuntimeWarning, match="dropped"),
            pytest.raises(EnvironmentFault, match="observation at its reset"),
        ):
            collect(collector, 8)


class _NeverAgain(Scripted):
    """Gives NaN from its second episode on."""

    def _observation(self) -> Any:
        return super()._observation() * (1.0 if self.episode == 0 else np.nan)


@pytest.mark.parametrize("place", ["observation", "info", "method"])
def test_masks_after_a_dropped_episode_are_those_of_the_new_one(place: str) -> None:
    class Faulty(Masked):
        resets = 0

        def reset(self, **options: Any) -> Any:
            self.resets += 1
            return super().reset(**options)

        def step(self, action: Any) -> Any:
            observation, reward, *rest = super().step(action)
            return (observation, np.nan if (self.resets, self.time) == (1, 3) else reward, *rest)

    env = make_vector_env(lambda: Faulty(place), num_envs=2, seed=0)
    collector = RolloutCollector(env, on_fault="drop")
    with pytest.warns(RuntimeWarning, match="dropped"):
        rollout = collector.collect(policy_for(collector), None, 12, philox())
    assert rollout.dropped_episodes == 2
    assert rollout.num_valid == 24 - 6
    assert rollout.action_masks is not None
    expected = torch.nn.functional.one_hot(rollout.observations[..., 0].long() % 4, 4).bool()
    assert torch.equal(rollout.action_masks, expected)


def test_a_users_vector_environment_begins_anew_when_restored() -> None:
    collector = in_mode(AutoresetMode.SAME_STEP)
    collect(collector, 4)
    state = collector.state()
    assert "episodes" not in state
    collector.restore(state)
    rollout = collect(collector, 2)
    assert rollout.observations[0, :, 2].tolist() == [0, 0, 0]


def test_only_the_first_dropped_episode_is_announced() -> None:
    class Often(Scripted):
        def step(self, action: Any) -> Any:
            observation, reward, *rest = super().step(action)
            return (observation, np.nan if self.episode % 2 else reward, *rest)

    collector = RolloutCollector(make_vector_env(Often, num_envs=2, seed=0), on_fault="drop")
    with pytest.warns(RuntimeWarning) as announced:
        [collect(collector, 12) for _ in range(3)]
    assert len(announced) == 1
    assert collector.dropped_episodes > 4


def test_an_environment_that_raises_leaves_the_last_state_usable() -> None:
    def make() -> Any:
        return make_vector_env(lambda: Raising(4), num_envs=2, seed=0)

    collector = RolloutCollector(make())
    collect(collector, 2)
    before = collector.state()
    with pytest.raises(EnvironmentFault, match="environment 0 raised ZeroDivisionError"):
        collect(collector, 5)
    after = collector.state()
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)
    resumed = RolloutCollector(make())
    resumed.restore(after)
    assert collect(resumed, 1).observations[0].tolist() == [[0, 0, 2], [0, 0, 2]]


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="'stop' or 'drop', got 'ignore'"):
        RolloutCollector(make_vector_env(Scripted, num_envs=1, seed=0), on_fault="ignore")
    with pytest.raises(ValueError, match="at least one step, got 0"):
        collect(in_mode(AutoresetMode.SAME_STEP), 0)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_memory_and_file_handles_stay_flat(vectorization: str) -> None:
    collector = walks(vectorization=vectorization)
    policy = policy_for(collector)
    rng = philox()

    def run(rollouts: int) -> None:
        for _ in range(rollouts):
            collector.collect(policy, None, 64, rng)

    run(5)
    gc.collect()
    handles, resident = _handles(), _resident()
    run(60)  # about 10,000 transitions
    gc.collect()
    assert _handles() == handles
    assert _resident() - resident < 4 << 20
    collector.env.close()


def _handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_no_warnings_on_a_real_environment() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collector = RolloutCollector(make_vector_env("CartPole-v1", num_envs=2, seed=0))
        rollout = collector.collect(policy_for(collector), None, 100, philox())
    assert rollout.num_valid == 200
    assert sum(rollout.episode_lengths) <= 200
