"""Running statistics, and the rule for when they apply."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trpo_fast.rollouts.normalization import ObservationNormalizer, ReturnScaler, RunningMeanStd


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    offset=st.sampled_from([0.0, 5.0, 1e7]),
    seed=st.integers(0, 1000),
)
def test_statistics_equal_those_of_all_rows_together(
    sizes: list[int], offset: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    batches = [offset + rng.normal(size=(n, 3)) for n in sizes]
    running, merged = RunningMeanStd((3,)), RunningMeanStd((3,))
    for batch in batches:
        running.update(batch)
        part = RunningMeanStd((3,))
        part.update(batch)
        merged.merge(part)
    rows = np.concatenate(batches)
    for statistics in (running, merged):
        assert statistics.count == len(rows)
        if len(rows):
            np.testing.assert_allclose(statistics.mean, rows.mean(0), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(statistics.var, rows.var(0), rtol=1e-7, atol=1e-10)


def test_rows_may_have_any_leading_axes() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 5, 3))
    one, other = RunningMeanStd((3,)), RunningMeanStd((3,))
    one.update(rows)
    other.update(rows.reshape(20, 3))
    np.testing.assert_array_equal(one.mean, other.mean)
    with pytest.raises(ValueError, match=r"rows of shape \(3,\), got .* \(3, 5\)"):
        one.update(np.zeros((3, 5)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_rows_never_enter_the_statistics(bad: float) -> None:
    statistics = RunningMeanStd((2,))
    statistics.update([[1.0, 2.0], [3.0, 4.0]])
    before = statistics.state_dict()
    with pytest.raises(ValueError, match=r"row 1 .* NaN or infinity"):
        statistics.update([[0.0, 0.0], [bad, 0.0]])
    for name, array in statistics.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normalizer_serves_arrays_and_tensors_alike(dtype: Any) -> None:
    rng = np.random.default_rng(1)
    normalizer = ObservationNormalizer((3,), clip=2.0)
    normalizer.observe(rng.normal(3, 2, size=(50, 4, 3)))
    normalizer.commit()
    raw = rng.normal(3, 4, size=(7, 3)).astype(dtype)
    given_raw = raw.copy()
    expected = np.clip(
        (raw - normalizer.statistics.mean) / np.sqrt(normalizer.statistics.var + 1e-8), -2, 2
    )
    tolerance = 10 * np.finfo(dtype).eps
    for out in (None, np.empty_like(raw)):
        result = normalizer(raw, out)
        assert result.dtype == dtype
        assert out is None or result is out
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)
    tensor = normalizer(torch.from_numpy(raw))
    assert tensor.dtype == torch.from_numpy(raw).dtype
    np.testing.assert_allclose(tensor.numpy(), expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(raw, given_raw)
    assert (np.abs(expected) == 2).any()


def test_pitfall_03_statistics_gathered_in_a_rollout_apply_from_the_next_one_on() -> None:
    rng = np.random.default_rng(2)
    normalizer = ObservationNormalizer((2,))
    scaler = ReturnScaler(0.99, num_envs=2)
    raw, rewards = rng.normal(4, 2, size=(5, 2)), rng.normal(4, 2, size=(6, 2))
    for rollout in range(3):
        before, scaled_before = normalizer(raw), scaler(rewards)
        normalizer.observe(rng.normal(rollout, 2, size=(10, 2)))
        scaler.observe(rewards + rollout, np.zeros((6, 2), bool))
        np.testing.assert_array_equal(normalizer(raw), before)
        np.testing.assert_array_equal(scaler(rewards), scaled_before)
        normalizer.commit()
        scaler.commit()
        assert not np.array_equal(normalizer(raw), before)
        assert not np.array_equal(scaler(rewards), scaled_before)


def test_normalizer_starts_as_the_identity_up_to_clipping() -> None:
    raw = np.array([[0.5, -3.0], [20.0, -20.0]])
    np.testing.assert_array_equal(ObservationNormalizer((2,))(raw), [[0.5, -3.0], [10.0, -10.0]])


def test_constant_observations_do_not_divide_by_zero() -> None:
    normalizer = ObservationNormalizer((1,))
    normalizer.observe(np.full((9, 1), 7.0))
    normalizer.commit()
    np.testing.assert_array_equal(normalizer(np.array([[7.0], [8.0]])), [[0.0], [10.0]])


def test_masked_rows_are_not_observed() -> None:
    rows = np.array([[[1.0], [np.nan]], [[3.0], [5.0]]])
    normalizer = ObservationNormalizer((1,))
    normalizer.observe(rows, np.array([[True, False], [True, True]]))
    normalizer.commit()
    assert normalizer.statistics.count == 3
    assert normalizer.statistics.mean == pytest.approx(3.0)


def test_return_scaler_divides_by_the_deviation_of_the_discounted_return() -> None:
    scaler = ReturnScaler(0.5, num_envs=2)
    rewards = np.array([[1.0, 1.0], [2.0, 0.0], [4.0, 2.0]])
    ended = np.array([[False, False], [True, False], [False, False]])
    assert scaler.scale == 1.0
    scaler.observe(rewards, ended)
    scaler.commit()
    # R of environment 0: 1, 2.5, (new episode) 4; of environment 1: 1, 0.5, 2.25
    seen = [1.0, 2.5, 4.0, 1.0, 0.5, 2.25]
    assert scaler.scale == pytest.approx(np.std(seen), rel=1e-7)
    np.testing.assert_allclose(scaler(rewards), rewards / np.std(seen), rtol=1e-7)
    np.testing.assert_allclose(
        scaler(torch.from_numpy(rewards)).numpy(), scaler(rewards), rtol=1e-15
    )
    # Episodes go on into the next rollout: 0.5 * 4 + 1 = 3 and 0.5 * 2.25 + 1 = 2.125
    scaler.observe(np.ones((1, 2)), np.zeros((1, 2), bool))
    scaler.commit()
    assert scaler.scale == pytest.approx(np.std([*seen, 3.0, 2.125]), rel=1e-7)


def test_return_scaler_leaves_out_masked_rows() -> None:
    """An autoreset row between two episodes, as against the same episodes without it."""
    plain, with_row = ReturnScaler(0.9, num_envs=1), ReturnScaler(0.9, num_envs=1)
    plain.observe([[1.0], [2.0], [3.0]], np.array([[False], [True], [False]]))
    with_row.observe(
        [[1.0], [2.0], [np.nan], [3.0]],
        np.array([[False], [True], [False], [False]]),
        np.array([[True], [True], [False], [True]]),
    )
    for name, array in plain.state_dict().items():
        np.testing.assert_array_equal(with_row.state_dict()[name], array)


def test_return_scaler_forgets_the_return_of_an_episode_that_was_left() -> None:
    """One whose end no row shows: the next row begins another."""
    ours, fresh = ReturnScaler(0.9, num_envs=2), ReturnScaler(0.9, num_envs=2)
    rows, none = np.ones((4, 2)), np.zeros((4, 2), bool)
    ours.observe(rows, none)
    before = ours.state_dict()["returns"]
    ours.begin_anew(torch.tensor([True, False]))
    assert ours.state_dict()["returns"].tolist() == [0.0, before[1]]
    ours.observe(rows, none)
    fresh.observe(rows, none)
    assert ours.state_dict()["returns"][0] == fresh.state_dict()["returns"][0]


def test_return_scaler_sums_over_rollouts_as_a_loop_over_steps_does() -> None:
    rng = np.random.default_rng(0)
    scaler, running, seen = ReturnScaler(0.97, num_envs=3), np.zeros(3), []
    for steps in (1, 7, 20):
        rewards, ended = rng.normal(size=(steps, 3)), rng.random((steps, 3)) < 0.2
        valid = np.ones((steps, 3), bool)
        valid[1:] &= ~ended[:-1]  # the row after an end only resets
        ended &= valid
        for t in range(steps):
            running = np.where(valid[t], 0.97 * running + rewards[t], running)
            seen += running[valid[t]].tolist()
            running = np.where(ended[t], 0, running)
        scaler.observe(rewards, ended, valid)
        scaler.commit()
        np.testing.assert_allclose(scaler.state_dict()["returns"], running, rtol=1e-13)
    assert scaler.statistics.count == len(seen)
    assert scaler.scale == pytest.approx(np.std(seen), rel=1e-7)


def test_scaled_rewards_are_clipped() -> None:
    scaler = ReturnScaler(0.0, num_envs=1, clip=3.0)
    scaler.observe([[1.0], [-1.0]], np.zeros((2, 1), bool))
    scaler.commit()
    np.testing.assert_allclose(scaler(np.array([[100.0, -100.0, 0.0]])), [[3.0, -3.0, 0.0]])


@pytest.mark.parametrize(
    "make", [lambda: ObservationNormalizer((2,)), lambda: ReturnScaler(0.9, num_envs=2)]
)
def test_state_round_trip_continues_bit_for_bit(make: Any) -> None:
    rng = np.random.default_rng(3)

    def observe(it: Any, batch: np.ndarray) -> None:
        it.observe(*((batch,) if isinstance(it, ObservationNormalizer) else (batch, batch > 1)))
        it.commit()

    original, restored = make(), make()
    observe(original, rng.normal(size=(8, 2)))
    restored.load_state_dict(original.state_dict())
    batch = rng.normal(size=(8, 2))
    for it in (original, restored):
        observe(it, batch)
    np.testing.assert_array_equal(original(batch), restored(batch))
    for name, array in original.state_dict().items():
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(restored.state_dict()[name], array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": np.zeros(3)}, r"mean must have shape \(2,\), got \(3,\)"),
        ({"var": np.array([1.0, -1.0])}, "must not be negative"),
        ({"mean": np.array([0.0, np.nan])}, "mean holds NaN"),
        ({"count": None}, "'count' is missing"),
    ],
)
def test_damaged_state_is_refused_and_changes_nothing(change: dict[str, Any], message: str) -> None:
    normalizer = ObservationNormalizer((2,))
    state = {**normalizer.state_dict(), **change}
    state = {name: array for name, array in state.items() if array is not None}
    with pytest.raises(ValueError, match=message):
        normalizer.load_state_dict(state)
    np.testing.assert_array_equal(normalizer.statistics.mean, [0.0, 0.0])
    assert normalizer.statistics.count == 0


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="clip must be positive, got 0"):
        ObservationNormalizer((2,), clip=0)
    with pytest.raises(ValueError, match="clip must be positive, got nan"):
        ReturnScaler(0.9, clip=float("nan"))
    with pytest.raises(ValueError, match=r"gamma must lie in \[0, 1\], got 2"):
        ReturnScaler(2)
    with pytest.raises(ValueError, match=r"rewards must be \[T, 3\]"):
        ReturnScaler(0.9, num_envs=3).observe(np.zeros((4, 2)), np.zeros((4, 2), bool))
