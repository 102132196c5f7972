"""compute_gae against a loop that follows the definition one element at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trpo_fast.rollouts import gae
from trpo_fast.rollouts.gae import compute_gae

Case = dict[str, Any]


def naive_gae(case: Case, gamma: float, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """The contract, element by element in Python floats."""
    steps, envs = case["rewards"].shape
    advantages = np.zeros((steps, envs))
    for b in range(envs):
        running = 0.0
        for t in range(steps - 1, -1, -1):
            terminated, truncated = case["terminated"][t, b], case["truncated"][t, b]
            if terminated:
                next_value = 0.0
            elif truncated:
                next_value = float(case["final_values"][t, b])
            elif t == steps - 1:
                next_value = float(case["last_values"][b])
            else:
                next_value = float(case["values"][t + 1, b])
            value = float(case["values"][t, b])
            delta = float(case["rewards"][t, b]) + gamma * next_value - value
            running = delta if terminated or truncated else delta + gamma * lam * running
            advantages[t, b] = running
    return advantages, advantages + case["values"].astype(np.float64)


def make_case(
    steps: int,
    envs: int,
    *,
    seed: int = 0,
    terminate: float = 0.1,
    truncate: float = 0.1,
    dtype: Any = np.float64,
) -> Case:
    rng = np.random.default_rng(seed)
    terminated = rng.random((steps, envs)) < terminate
    truncated = rng.random((steps, envs)) < truncate
    final_values = rng.normal(size=(steps, envs)).astype(dtype)
    final_values[~(truncated & ~terminated)] = np.nan  # nothing else may be read
    return {
        "rewards": rng.normal(size=(steps, envs)).astype(dtype),
        "values": rng.normal(size=(steps, envs)).astype(dtype),
        "terminated": terminated,
        "truncated": truncated,
        "last_values": rng.normal(size=envs).astype(dtype),
        "final_values": final_values,
    }


def assert_matches(case: Case, gamma: float, lam: float, dtype: Any) -> None:
    advantages, returns = compute_gae(**case, gamma=gamma, lam=lam)
    expected, expected_returns = naive_gae(case, gamma, lam)
    # The recursion runs in float64 whatever the storage, so one rounding is all that separates
    # float32 results from the loop.
    eps = np.finfo(dtype).eps
    scale = 1 + np.abs(expected).max()
    np.testing.assert_allclose(advantages, expected, rtol=2 * eps, atol=4 * eps * scale)
    np.testing.assert_allclose(
        returns,
        expected_returns,
        rtol=4 * eps,
        atol=8 * eps * (scale + 1 + np.abs(expected_returns).max()),
    )
    assert advantages.dtype == returns.dtype == dtype


probability = st.sampled_from([0.0, 0.05, 0.3, 1.0])


@settings(max_examples=300)
@given(
    steps=st.integers(1, 40),
    envs=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
    terminate=probability,
    truncate=probability,
    gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    lam=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_matches_the_elementwise_loop(
    steps: int,
    envs: int,
    seed: int,
    terminate: float,
    truncate: float,
    gamma: float,
    lam: float,
    dtype: Any,
) -> None:
    """Covers one-step episodes (probability 1), both flags at once, and no end at all."""
    case = make_case(steps, envs, seed=seed, terminate=terminate, truncate=truncate, dtype=dtype)
    assert_matches(case, gamma, lam, dtype)


def test_hand_computed_row_values() -> None:
    """Two steps, one environment; gamma 0.5, lambda 0.5, so gamma * lambda = 0.25."""

    def run(terminated: bool, truncated: bool, final: float | None = None) -> list[float]:
        return compute_gae(
            np.array([[1.0], [2.0]]),
            np.array([[10.0], [20.0]]),
            np.array([[terminated], [False]]),
            np.array([[truncated], [False]]),
            np.array([40.0]),
            final_values=None if final is None else np.full((2, 1), final),
            gamma=0.5,
            lam=0.5,
        )[0][:, 0].tolist()

    # Last row: 2 + 0.5 * 40 - 20 = 2. First row by case:
    assert run(False, False) == [1.5, 2.0]  # 1 + 0.5 * 20 - 10 + 0.25 * 2
    assert run(True, False) == [-9.0, 2.0]  # 1 - 10
    assert run(False, True, 100.0) == [41.0, 2.0]  # 1 + 0.5 * 100 - 10
    assert run(True, True) == [-9.0, 2.0]  # terminated wins, no final value needed


def test_pitfall_07_gae_stops_at_a_truncation_and_bootstraps_from_the_final_observation() -> None:
    case = make_case(6, 1, terminate=0, truncate=0)
    case["truncated"][2, 0] = True
    case["final_values"][2, 0] = 7.0
    advantages, _ = compute_gae(**case, gamma=0.9, lam=0.8)
    expected = case["rewards"][2, 0] + 0.9 * 7.0 - case["values"][2, 0]
    assert advantages[2, 0] == pytest.approx(expected, rel=1e-14)

    other = {name: array.copy() for name, array in case.items()}
    other["rewards"][3:] += 100  # the next episode
    other["values"][3:] -= 50
    other["last_values"] += 30
    np.testing.assert_array_equal(compute_gae(**other, gamma=0.9, lam=0.8)[0][:3], advantages[:3])


def test_nothing_leaks_from_rows_after_an_episode_end() -> None:
    """Autoreset rows may hold anything, NaN included."""
    case = make_case(8, 2, terminate=0, truncate=0)
    case["terminated"][3, 0] = True
    case["truncated"][3, 1] = True
    case["final_values"][3, 1] = 1.0
    clean = compute_gae(**case)[0]
    case["rewards"][4] = np.nan
    case["values"][4] = np.inf
    dirty = compute_gae(**case)[0]
    np.testing.assert_array_equal(dirty[:4], clean[:4])
    np.testing.assert_array_equal(dirty[5:], clean[5:])
    assert np.isfinite(clean).all()


def test_returns_are_advantages_plus_values_exactly() -> None:
    for dtype in (np.float32, np.float64):
        case = make_case(33, 5, dtype=dtype)
        advantages, returns = compute_gae(**case)
        np.testing.assert_array_equal(returns, advantages + case["values"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_in_tensors_out(dtype: torch.dtype) -> None:
    case = make_case(20, 3, dtype=np.float32 if dtype == torch.float32 else np.float64)
    expected = compute_gae(**case)
    tensors = {name: torch.from_numpy(array) for name, array in case.items()}
    tensors["values"].requires_grad_()
    got = compute_gae(**tensors)
    for tensor, array in zip(got, expected, strict=True):
        assert isinstance(tensor, torch.Tensor)
        assert tensor.dtype == dtype
        assert not tensor.requires_grad
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_any_strides() -> None:
    case = make_case(16, 6)
    expected = compute_gae(**case)[0]
    layouts: list[Any] = [
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=0)[::2],
        lambda a: np.ascontiguousarray(a[::-1])[::-1],
        lambda a: np.repeat(a, 3, axis=-1)[..., ::3],
    ]
    for layout in layouts:
        strided = {name: layout(array) for name, array in case.items()}
        np.testing.assert_array_equal(compute_gae(**strided)[0], expected)
    broadcast = dict(case, values=np.broadcast_to(case["values"][:1], (16, 6)))
    copied = dict(broadcast, values=broadcast["values"].copy())
    np.testing.assert_array_equal(compute_gae(**broadcast)[0], compute_gae(**copied)[0])
    transposed = {n: torch.from_numpy(np.asfortranarray(a)) for n, a in case.items()}
    np.testing.assert_array_equal(compute_gae(**transposed)[0].numpy(), expected)


def test_inputs_are_left_alone() -> None:
    case = make_case(16, 6)
    before = {name: array.copy() for name, array in case.items()}
    for array in case.values():
        array.flags.writeable = False
    compute_gae(**case)
    for name, array in case.items():
        np.testing.assert_array_equal(array, before[name])


def test_mixed_precision_is_taken_as_float64() -> None:
    case = make_case(12, 3, dtype=np.float32)
    case["rewards"] = case["rewards"].astype(np.float64)
    assert_matches(case, 0.99, 0.95, np.float64)


def test_flags_may_be_zeros_and_ones() -> None:
    case = make_case(12, 3)
    expected = compute_gae(**case)[0]
    for dtype in (np.uint8, np.int64, np.float32):
        flags = {name: case[name].astype(dtype) for name in ("terminated", "truncated")}
        np.testing.assert_array_equal(compute_gae(**{**case, **flags})[0], expected)


def test_column_blocks_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(50, 331, dtype=np.float32)
    whole = compute_gae(**case)
    monkeypatch.setattr(gae, "_PARALLEL_SIZE", 1)
    monkeypatch.setattr(gae, "_MIN_COLUMNS", 7)
    for threads in (2, 3, 64):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        blocks = compute_gae(**case)
        np.testing.assert_array_equal(blocks[0], whole[0])
        np.testing.assert_array_equal(blocks[1], whole[1])


def test_concurrent_callers_agree_with_serial() -> None:
    cases = [make_case(64, 8, seed=seed) for seed in range(16)]
    serial = [compute_gae(**case)[0] for case in cases]
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda case: compute_gae(**case)[0], cases))
    for got, expected in zip(parallel, serial, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_truncation_without_final_values_is_refused() -> None:
    case = make_case(6, 3, terminate=0, truncate=0)
    case["final_values"] = None
    compute_gae(**case)
    case["truncated"][4, 2] = True
    with pytest.raises(ValueError, match=r"step 4 of environment 2 .* final_values"):
        compute_gae(**case)
    case["terminated"][4, 2] = True
    compute_gae(**case)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rewards": np.zeros(6)}, ValueError, r"\[T, B\].*rewards\[:, None\]"),
        ({"rewards": np.zeros((6, 2))}, ValueError, r"values must have shape \(6, 2\).*\(6, 3\)"),
        ({"values": np.zeros((5, 3))}, ValueError, r"values must have shape \(6, 3\).*\(5, 3\)"),
        ({"values": np.zeros((6, 1))}, ValueError, "values must have shape"),
        ({"last_values": np.zeros((1, 3))}, ValueError, r"last_values must have shape \(3,\)"),
        ({"last_values": np.zeros(1)}, ValueError, r"last_values must have shape \(3,\)"),
        ({"final_values": np.zeros((6, 4))}, ValueError, "final_values must have shape"),
        ({"truncated": np.zeros((6, 4), bool)}, ValueError, "truncated must have shape"),
        (
            {"terminated": np.full((6, 3), 2)},
            ValueError,
            r"terminated must hold booleans.*\(0, 0\)",
        ),
        ({"terminated": np.full((6, 3), np.nan)}, ValueError, "terminated must hold booleans"),
        (
            {"rewards": np.zeros((6, 3), int)},
            TypeError,
            "rewards must be float32 or float64.*int64",
        ),
        ({"values": np.zeros((6, 3), np.float16)}, TypeError, "values must be float32.*float16"),
        ({"values": np.zeros((6, 3), complex)}, TypeError, "values must be float32.*complex"),
        ({"values": [[0.0] * 3] * 6}, TypeError, "values must be a NumPy array.*list"),
        ({"values": torch.zeros(6, 3)}, TypeError, "not a mixture.*values: tensor"),
        ({"terminated": torch.zeros(6, 3).bool()}, TypeError, "not a mixture"),
        ({"gamma": 1.5}, ValueError, r"gamma must lie in \[0, 1\], got 1.5"),
        ({"gamma": float("nan")}, ValueError, "gamma must lie"),
        ({"gamma": "0.9"}, TypeError, "gamma must be a number"),
        ({"lam": -0.1}, ValueError, r"lam must lie in \[0, 1\], got -0.1"),
        ({"lam": True}, TypeError, "lam must be a number"),
    ],
)
def test_bad_arguments_are_named(change: Case, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compute_gae(**{**make_case(6, 3), **change})


@pytest.mark.parametrize("shape", [(0, 3), (6, 0), (0, 0)])
def test_empty_rollout_is_refused(shape: tuple[int, int]) -> None:
    floats, flags = np.zeros(shape), np.zeros(shape, bool)
    with pytest.raises(ValueError, match="empty rollout"):
        compute_gae(floats, floats, flags, flags, np.zeros(shape[1]))


@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda t: t.to(torch.bfloat16), "bfloat16"),
        (lambda t: t.to_sparse(), "dense CPU tensor"),
        (lambda t: t.to("meta"), "device meta"),
    ],
)
def test_unsupported_tensors_are_refused(convert: Any, message: str) -> None:
    case = {n: torch.from_numpy(a) for n, a in make_case(6, 3).items()}
    case["values"] = convert(case["values"])
    with pytest.raises(TypeError, match=f"values.*{message}"):
        compute_gae(**case)


SURVIVES = textwrap.dedent(
    """
    import numpy as np
    from trpo_fast.rollouts.gae import compute_gae
    zeros, ends = np.zeros((4, 2)), np.zeros((4, 2), bool)
    advantages, _ = compute_gae(zeros + 1, zeros, ends, ends, np.zeros(2), gamma=1.0, lam=1.0)
    assert advantages[:, 0].tolist() == [4, 3, 2, 1], advantages
    """
)


@pytest.mark.parametrize("cache_dir", ["/proc/no-such-directory", "/dev/null/below-a-file"])
def test_survives_having_nowhere_to_cache(cache_dir: str) -> None:
    """As with a read-only installation and no home directory."""
    environment = {k: v for k, v in os.environ.items() if k != "HOME"}
    environment["NUMBA_CACHE_DIR"] = cache_dir
    done = subprocess.run(
        [sys.executable, "-c", SURVIVES],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_survives_a_damaged_cache(tmp_path: Any) -> None:
    environment = dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path))
    command = [sys.executable, "-c", SURVIVES]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:10])
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
