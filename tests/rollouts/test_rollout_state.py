"""Rollouts that go on from a saved state, or after an interrupt or a fault."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from patience import PATIENCE
from rollout_cases import assert_same, collect, in_mode, philox, policy_for, walks
from toy_environments import TERMINATED, Masked, Raising, Scripted

from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.environments.make import make_vector_env
from trpo_fast.environments.worker_handle import Worker
from trpo_fast.rollouts.collector import RolloutCollector


@pytest.mark.parametrize("vectorization", ["sync", "async", "workers"])
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


@pytest.mark.parametrize("vectorization", ["sync", "async", "workers"])
def test_what_is_saved_is_known_after_closing(vectorization: str) -> None:
    collector = walks(vectorization=vectorization)
    collector.collect(policy_for(collector), None, 9, philox())
    state = collector.state()
    collector.env.close()
    after = collector.state()
    assert state.keys() == after.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(after[name], array)


@pytest.mark.parametrize("calls", range(1, 13))
@pytest.mark.parametrize("step_timeout", [0.0, PATIENCE])
def test_workers_survive_an_interrupt_at_any_answer(
    monkeypatch: pytest.MonkeyPatch, step_timeout: float, calls: int
) -> None:
    """In steps, and in asking for what is running at a rollout's end."""
    options = {"vectorization": "workers", "num_workers": 2, "step_timeout": step_timeout}
    collector, undisturbed = walks(**options), walks()
    policy = policy_for(collector)
    for it in (collector, undisturbed):
        it.collect(policy, None, 9, philox())
    processes = collector.env.processes
    hear, left = Worker.hear, [calls]

    def interrupted(self: Any, *arguments: Any) -> Any:
        answer = hear(self, *arguments)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "hear", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collector.collect(policy, None, 5, philox(1))
    rollouts = [it.collect(policy, None, 6, philox(2)) for it in (collector, undisturbed)]
    assert_same(*rollouts)
    assert not set(processes) & set(collector.env.processes)
    collector.env.close()


def test_an_abandoned_rollout_leaves_the_state_it_began_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collector, undisturbed = walks(), walks()
    policy = policy_for(collector)
    for it in (collector, undisturbed):
        it.collect(policy, None, 9, philox())
    before = collector.state()
    step, stepped = collector.env.step, []

    def interrupted(*arguments: Any) -> Any:
        stepped.append(None)
        if len(stepped) == 12:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(collector.env, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collector.collect(policy, None, 40, philox(1))
    for name, array in collector.state().items():
        np.testing.assert_array_equal(array, before[name])
    assert_same(
        collector.collect(policy, None, 6, philox(2)),
        undisturbed.collect(policy, None, 6, philox(2)),
    )


def test_a_users_vector_environment_begins_anew_when_restored() -> None:
    collector = in_mode(AutoresetMode.SAME_STEP)
    collect(collector, 4)
    state = collector.state()
    assert "episodes" not in state
    collector.restore(state)
    rollout = collect(collector, 2)
    assert rollout.observations[0, :, 2].tolist() == [0, 0, 0]


def test_a_users_vector_environment_is_seeded_anew_each_time_it_begins_again() -> None:
    def begun() -> tuple[RolloutCollector, list[int]]:
        vector = SyncVectorEnv([Scripted])
        return RolloutCollector(make_vector_env(vector, seed=5)), vector.envs[0].unwrapped.seeds

    (collector, seeds), (other, other_seeds) = begun(), begun()
    collect(collector, 1)
    first = collector.state()
    collector.restore(first)
    collect(collector, 1)
    collector.restore(collector.state())
    assert seeds[0] == 5
    assert len(set(seeds)) == len(seeds) == 3
    other.restore(first)
    assert other_seeds == seeds[1:2]


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


@pytest.mark.reliability("c_int_seeds")
@pytest.mark.parametrize("vectorization", ["sync", "async", "workers"])
@pytest.mark.parametrize("place", ["info", "observation"])
def test_a_run_of_32_bit_seeds_goes_on_in_new_episodes(place: str, vectorization: str) -> None:
    def masked() -> RolloutCollector:
        options = {"num_envs": 2, "seed": 0, "vectorization": vectorization}
        return RolloutCollector(make_vector_env(lambda: Masked(place), **options))

    before, after = masked(), masked()
    policy = policy_for(before)
    before.collect(policy, None, 8, philox())
    state = before.state()
    assert int(state.pop("seed_bits")) == 31
    with pytest.warns(RuntimeWarning, match="seeded episodes with 32 bits"):
        after.restore(state)
    assert state["episodes"].tolist() == [1, 1]
    assert after.state()["episodes"].tolist() == [2, 2]
    assert after.state()["action_counts"].tolist() == [0, 0]
    rollout = after.collect(policy, None, 10, philox())  # raises on a masked action
    assert rollout.episode_lengths == [5, 5, 5, 5]
    before.env.close()
    after.env.close()


@pytest.mark.reliability("c_int_seeds")
@pytest.mark.parametrize("seed", [2**31 + 5, 2**62])
def test_a_users_vector_environment_gets_seeds_that_fit_a_c_int(seed: int) -> None:
    vector = SyncVectorEnv([Scripted] * 3)
    env = make_vector_env(vector, seed=seed)
    env.reset(np.empty((3, 3), np.float32))
    seeds = [inner.unwrapped.seeds[0] for inner in vector.envs]
    assert seeds == list(range(seeds[0], seeds[0] + 3))
    assert 0 <= seeds[0] <= seeds[2] < 2**31
