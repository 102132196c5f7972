"""Generalised advantage estimation: one backward sweep over a rollout, time first.

The kernel keeps the running advantage of every environment in one float64 row and walks the
rollout from its last step to its first, so each input is read once, in memory order, and the
inner loop over environments vectorises. Environments are independent: large rollouts are split
by columns over threads (the kernel releases the GIL) and the result does not depend on how many.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["compute_gae"]

Array = TypeVar("Array", np.ndarray, torch.Tensor)
_Float = npt.NDArray[Any]
_Bool = npt.NDArray[np.bool_]
_Kernel = Callable[..., None]

# One core sweeps this many elements in a few milliseconds; starting threads takes about 0.2. Below
# it the rollout fits the caches, and a single core is not held up by memory.
_PARALLEL_SIZE = 1 << 22
# A block narrower than a few cache lines makes neighbouring threads fetch the same lines.
_MIN_COLUMNS = 64


def compute_gae(
    rewards: Array,
    values: Array,
    terminated: Array,
    truncated: Array,
    last_values: Array,
    *,
    final_values: Array | None = None,
    gamma: float = 0.99,
    lam: float = 0.95,
) -> tuple[Array, Array]:
    """Advantages and returns of a rollout of ``T`` steps in ``B`` environments.

    With ``next_value`` 0 where an episode terminated, ``final_values`` where it was truncated
    only, and otherwise the next row's value (``last_values`` after the last row)::

        delta = rewards + gamma * next_value - values
        advantage = delta + gamma * lam * (1 - (terminated | truncated)) * next_advantage
        returns = advantage + values

    A row that is both terminated and truncated counts as terminated. What a rule does not select
    is not read: NaN in ``final_values`` away from truncations, or in rows after an episode's
    end, goes nowhere.

    Args:
        rewards: [T, B], float32 or float64 (where the arguments differ, all are taken as float64).
        values: [T, B], V of the observation each action was chosen from.
        terminated: [T, B], true where the episode reached a terminal state at this step.
        truncated: [T, B], true where it was cut short at this step.
        last_values: [B], V of the observation after the last row.
        final_values: [T, B], V of the last observation of truncated episodes; read only where
            ``truncated & ~terminated``. May be None when there is no such row.
        gamma: discount per step, in [0, 1].
        lam: the lambda of GAE, in [0, 1].

    Returns:
        ``(advantages, returns)``, [T, B] each, of the arguments' kind (NumPy arrays, CPU tensors,
        or tensors on a CUDA device) and precision. The recursion itself runs in float64. No
        gradient flows through.

    Raises:
        TypeError: the arguments are neither all NumPy arrays nor all tensors on one device, or not
            of a supported dtype.
        ValueError: shapes disagree, the rollout is empty, a flag is neither 0 nor 1, ``gamma`` or
            ``lam`` is outside [0, 1], or a truncated-only row comes without ``final_values``.

    Source: Schulman et al. 2016, arXiv:1506.02438, equation 16; Pardo et al. 2018,
    arXiv:1712.00378, section 3, for bootstrapping at truncations.
    """
    _check_coefficient("gamma", gamma)
    _check_coefficient("lam", lam)
    floats = {"rewards": rewards, "values": values, "last_values": last_values}
    if final_values is not None:
        floats["final_values"] = final_values
    flags = {"terminated": terminated, "truncated": truncated}
    if getattr(rewards, "is_cuda", False):
        _check_kind(floats | flags)
        from trpo_fast.backends.cuda.gae import gae

        device: Any = gae
        found: tuple[Array, Array] = device(
            rewards, values, terminated, truncated, last_values, final_values, gamma, lam
        )
        return found
    as_tensor = _check_kind(floats | flags)
    arrays = _float_arrays({name: _to_numpy(name, a) for name, a in floats.items()})
    ended = {name: _flag_array(name, _to_numpy(name, a)) for name, a in flags.items()}
    _check_shapes(arrays | ended)
    if final_values is None:
        _check_no_bootstrap_needed(ended["terminated"], ended["truncated"])
        arrays["final_values"] = arrays["values"]  # of the right type, and never read

    advantages, returns = np.empty_like(arrays["rewards"]), np.empty_like(arrays["rewards"])
    _sweep(arrays, ended, advantages, returns, float(gamma), float(lam))
    result: tuple[Any, Any] = (advantages, returns)
    if as_tensor:
        result = torch.from_numpy(advantages), torch.from_numpy(returns)
    return result


def _sweep(
    arrays: dict[str, _Float],
    ended: dict[str, _Bool],
    advantages: _Float,
    returns: _Float,
    gamma: float,
    lam: float,
) -> None:
    """Run the kernel over all columns, in blocks of columns when the rollout is large."""

    def run(first: int, stop: int) -> None:
        _run_kernel(
            arrays["rewards"],
            arrays["values"],
            ended["terminated"],
            ended["truncated"],
            arrays["last_values"],
            arrays["final_values"],
            gamma,
            gamma * lam,
            first,
            stop,
            advantages,
            returns,
        )

    columns = advantages.shape[1]
    blocks = min(torch.get_num_threads(), columns // _MIN_COLUMNS)
    if blocks < 2 or advantages.size < _PARALLEL_SIZE:
        run(0, columns)
        return
    edges = [columns * i // blocks for i in range(blocks + 1)]
    run(0, 0)  # compile before the threads start, so that they never compile twice
    with ThreadPoolExecutor(blocks) as pool:
        list(pool.map(run, edges[:-1], edges[1:]))


def _gae_kernel(
    rewards: _Float,  # [T, B]
    values: _Float,  # [T, B]
    terminated: _Bool,  # [T, B]
    truncated: _Bool,  # [T, B]
    last_values: _Float,  # [B]
    final_values: _Float,  # [T, B]
    gamma: float,
    gamma_lam: float,
    first: int,
    stop: int,
    advantages: _Float,  # [T, B], written
    returns: _Float,  # [T, B], written
) -> None:
    """Columns ``first`` to ``stop``.

    Rows are sliced and everything is loaded before anything is selected: with a load behind a
    branch, or an index that might be negative, the loop would not vectorise. Selects, because
    0 * NaN is NaN.
    """
    steps = rewards.shape[0]
    running = np.zeros(stop - first, np.float64)
    for back in range(steps):
        t = steps - 1 - back
        row = slice(first, stop)
        following = last_values[row] if back == 0 else values[t + 1, row]
        reward, value, final = rewards[t, row], values[t, row], final_values[t, row]
        over, cut = terminated[t, row], truncated[t, row]
        advantage, target = advantages[t, row], returns[t, row]
        for b in range(len(running)):
            ended, stopped = over[b], cut[b]
            beyond, after, later, v = final[b], following[b], running[b], value[b]
            bootstrap = beyond if stopped else after
            next_value = 0.0 if ended else np.float64(bootstrap)
            tail = 0.0 if ended | stopped else gamma_lam * later
            running[b] = reward[b] + gamma * next_value - v + tail
            advantage[b] = running[b]
            target[b] = advantage[b] + v


def _run_kernel(*arguments: Any) -> None:
    try:
        _compiled(cache=True)(*arguments)
    except Exception:  # noqa: BLE001
        # The kernel raises nothing itself on checked arguments, so this is numba's on-disk
        # cache: nowhere to write, disk full, files damaged. It only saves compile time.
        _compiled(cache=False)(*arguments)


@functools.cache
def _compiled(cache: bool) -> _Kernel:
    # numba takes half a second to import: only a process that computes advantages pays.
    import numba

    kernel: _Kernel = numba.njit(nogil=True, cache=cache)(_gae_kernel)
    return kernel


def _check_coefficient(name: str, value: Any) -> None:
    if not isinstance(value, (int, float, np.number)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number in [0, 1], got {value!r}.")
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise ValueError(f"{name} must lie in [0, 1], got {value!r}.")


def _check_kind(arguments: dict[str, Any]) -> bool:
    """True when all arguments are tensors, False when all are NumPy arrays."""
    kinds = {name: _kind(name, value) for name, value in arguments.items()}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
        raise TypeError(
            f"compute_gae takes NumPy arrays or tensors, not a mixture; got {listed}. "
            "Convert with torch.from_numpy(...) or tensor.numpy()."
        )
    return "tensor" in kinds.values()


def _kind(name: str, value: Any) -> str:
    if isinstance(value, np.ndarray):
        return "array"
    if isinstance(value, torch.Tensor):
        return "tensor"
    raise TypeError(
        f"{name} must be a NumPy array or a tensor, got {type(value).__name__}. "
        "Wrap it in numpy.asarray(...)."
    )


def _to_numpy(name: str, value: Any) -> npt.NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    if value.device.type != "cpu" or value.layout != torch.strided:
        raise TypeError(
            f"{name} must be a dense CPU tensor, or all of them on one CUDA device; got device "
            f"{value.device}, layout {value.layout}. Move it with .cpu() or .to_dense() first."
        )
    if value.dtype not in (torch.bool, torch.float32, torch.float64) and (
        value.is_floating_point() or value.is_complex()
    ):
        raise TypeError(_dtype_message(name, value.dtype))
    array: npt.NDArray[Any] = value.detach().resolve_neg().numpy()
    return array


def _float_arrays(arrays: dict[str, npt.NDArray[Any]]) -> dict[str, _Float]:
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64):
            raise TypeError(_dtype_message(name, array.dtype))
    dtype = np.result_type(*arrays.values())
    return {name: np.ascontiguousarray(array, dtype) for name, array in arrays.items()}


def _dtype_message(name: str, dtype: Any) -> str:
    return (
        f"{name} must be float32 or float64, got {dtype}. "
        "Convert with .astype(numpy.float32) or .float()."
    )


def _flag_array(name: str, array: npt.NDArray[Any]) -> _Bool:
    if array.dtype != np.bool_ and array.size:
        wrong = (array != 0) & (array != 1)
        if wrong.any():
            where = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(
                f"{name} must hold booleans (or 0 and 1), got {array[where]!r} at index {where}."
            )
    return np.ascontiguousarray(array, np.bool_)


def _check_shapes(arrays: dict[str, npt.NDArray[Any]]) -> None:
    shape = arrays["rewards"].shape
    if len(shape) != 2:
        raise ValueError(
            f"rewards must be [T, B], time first, got shape {shape}. "
            "A single environment is B = 1: rewards[:, None]."
        )
    if 0 in shape:
        raise ValueError(f"empty rollout: rewards has shape {shape}; T and B must be at least 1.")
    for name, array in arrays.items():
        expected = shape[1:] if name == "last_values" else shape
        if array.shape != expected:
            raise ValueError(
                f"{name} must have shape {expected} to go with rewards {shape}, got {array.shape}."
            )


def _check_no_bootstrap_needed(terminated: _Bool, truncated: _Bool) -> None:
    cut = truncated & ~terminated
    if cut.any():
        step, env = (int(i) for i in np.argwhere(cut)[0])
        raise ValueError(
            f"step {step} of environment {env} was truncated but final_values is None. Pass "
            "final_values [T, B] with V of the episode's last observation in that place; taking "
            "a truncation for a termination would bias the advantages."
        )
