"""Running normalisation of observations and rewards, frozen while a rollout is being used.

What rollout k shows is pending until `commit()`, which the agent calls after the update; it
applies from rollout k + 1 on. Within one update every network therefore sees one and the same
normalisation, at sampling time as in the loss: otherwise the KL between the old policy (old
statistics) and the new one (new statistics) would not be 0 at the old parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from trpo_fast.rollouts.running_sums import running_sums

__all__ = ["ObservationNormalizer", "ReturnScaler", "RunningMeanStd"]

Array = TypeVar("Array", npt.NDArray[np.floating[Any]], torch.Tensor)
Float64 = npt.NDArray[np.float64]
StateDict = dict[str, Float64]
Rows = npt.ArrayLike | torch.Tensor

# Added to variances, so that a constant input divides by 1e-4 and not by 0 (the constant of
# Stable-Baselines3's VecNormalize).
EPSILON = 1e-8


class RunningMeanStd:
    """Mean and population variance of all rows seen, in float64.

    Args:
        shape: shape of one row; () for scalars.

    Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing
    sample variances", equation 2.1; stable where sums of squares cancel.
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.mean: Float64 = np.zeros(shape)
        self.var: Float64 = np.ones(shape)
        self.count = 0.0

    def update(self, batch: Rows) -> None:
        """Take in rows, [..., *shape] with any number of leading axes.

        Those of a tensor on a device are summed there, and only their moments leave it.

        Raises:
            ValueError: the trailing axes are not ``shape``, or a value is NaN or infinite (one
                such value would stay in the statistics for ever).
        """
        rows: Any = batch.double() if _on_device(batch) else np.asarray(batch, np.float64)
        shape, given = self.mean.shape, tuple(rows.shape)
        if given[len(given) - len(shape) :] != shape:
            raise ValueError(f"expected rows of shape {shape}, got an array of shape {given}.")
        rows = rows.reshape(-1, *shape)
        if not len(rows):
            return
        mean, var = _moments(rows)
        if not np.isfinite(mean).all():
            rows = rows.numpy(force=True) if isinstance(rows, torch.Tensor) else rows
            row = int(np.argwhere(~np.isfinite(rows))[0][0])
            raise ValueError(f"row {row} of the batch holds NaN or infinity: {rows[row]}.")
        self._merge(mean, var, float(len(rows)))

    def merge(self, other: RunningMeanStd) -> None:
        """Take in everything that ``other`` has seen."""
        if other.count:
            self._merge(other.mean, other.var, other.count)

    def _merge(self, mean: Float64, var: Float64, count: float) -> None:
        total = self.count + count
        delta = mean - self.mean
        # M2 = M2_a + M2_b + delta^2 n_a n_b / n
        m2 = self.var * self.count + var * count + delta**2 * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.var = m2 / total
        self.count = total

    @property
    def std(self) -> Float64:
        """Standard deviation, never 0: sqrt(var + 1e-8)."""
        return np.sqrt(self.var + EPSILON)

    def state_dict(self) -> StateDict:
        """Plain float64 arrays: ``mean``, ``var``, ``count``."""
        return {
            "mean": np.array(self.mean),
            "var": np.array(self.var),
            "count": np.asarray(self.count, np.float64),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            ValueError: a key is missing, a shape differs, or a value cannot be a statistic.
        """
        mean = _checked("mean", state, self.mean.shape)
        var = _checked("var", state, self.mean.shape)
        count = _checked("count", state, ())
        if (var < 0).any() or count < 0:
            raise ValueError("normaliser state: var and count must not be negative.")
        self.mean, self.var, self.count = mean, var, float(count)


class ObservationNormalizer:
    """``clip((x - mean) / std)`` with the statistics of the rollouts committed so far.

    Before the first commit mean is 0 and std 1, so only the clipping acts.

    Args:
        shape: shape of one observation, (O,).
        clip: bound on the absolute normalised value, > 0.
    """

    def __init__(self, shape: tuple[int, ...], clip: float = 10.0) -> None:
        if not clip > 0:
            raise ValueError(f"clip must be positive, got {clip!r}.")
        self.clip = float(clip)
        self.statistics = RunningMeanStd(shape)
        self.pending = RunningMeanStd(shape)
        self._refresh()

    def __call__(self, observations: Array, out: Array | None = None) -> Array:
        """Normalised observations, [..., O], of the kind and precision given.

        ``out`` (of the same kind and shape) receives the result without allocating.
        """
        if isinstance(observations, torch.Tensor):
            mean, scale = self._tensors(observations)
            shifted = torch.sub(observations, mean, out=out)
            return shifted.mul_(scale).clamp_(-self.clip, self.clip)
        if observations.dtype == np.float32:
            mean32, scale32 = self._float32
            result: npt.NDArray[Any] = np.subtract(observations, mean32, out=out)
            np.multiply(result, scale32, out=result)
        else:
            result = np.subtract(observations, self.statistics.mean, out=out)
            np.multiply(result, self._scale, out=result)
        # maximum and minimum: np.clip costs several times as much on a batch of a few rows
        np.maximum(result, -self.clip, out=result)
        np.minimum(result, self.clip, out=result)
        return result

    def constants(self, dtype: npt.DTypeLike) -> tuple[npt.NDArray[Any], npt.NDArray[Any], float]:
        """Mean [O], scale [O] and clip, with which observations of that dtype are normalised."""
        single = np.dtype(dtype) == np.float32
        mean, scale = self._float32 if single else (self.statistics.mean, self._scale)
        return mean.ravel(), scale.ravel(), self.clip

    def observe(self, observations: Rows, valid: Rows | None = None) -> None:
        """Note the raw observations of a rollout, [..., O]; they count from `commit` on.

        Args:
            observations: what the policy was shown, before normalisation; an array, or a tensor on
                any device.
            valid: [...], false on rows to leave out (autoreset rows, dropped episodes).
        """
        as_given = _on_device(observations)
        rows: Any = observations if as_given else np.asarray(observations)
        keep: Any = valid if as_given or valid is None else np.asarray(valid)
        keep = None if keep is None or bool(keep.all()) else keep
        self.pending.update(rows if keep is None else rows[keep])

    def commit(self) -> None:
        """Apply what was observed. Call between an update and the next rollout."""
        self.statistics.merge(self.pending)
        self.pending = RunningMeanStd(self.statistics.mean.shape)
        self._refresh()

    def _refresh(self) -> None:
        empty = self.statistics.count == 0
        self._scale = np.ones(self.statistics.mean.shape) if empty else 1 / self.statistics.std
        self._float32 = self.statistics.mean.astype(np.float32), self._scale.astype(np.float32)
        self._tensor_cache: dict[
            tuple[torch.dtype, torch.device], tuple[torch.Tensor, torch.Tensor]
        ] = {}

    def _tensors(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        key = (like.dtype, like.device)
        if key not in self._tensor_cache:
            self._tensor_cache[key] = (
                torch.as_tensor(self.statistics.mean, dtype=like.dtype, device=like.device),
                torch.as_tensor(self._scale, dtype=like.dtype, device=like.device),
            )
        return self._tensor_cache[key]

    def state_dict(self) -> StateDict:
        """The committed statistics as plain arrays; save between updates, after `commit`."""
        return self.statistics.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; forgets what was pending. Raises ValueError."""
        self.statistics.load_state_dict(state)
        self.pending = RunningMeanStd(self.statistics.mean.shape)
        self._refresh()


class ReturnScaler:
    """Divides rewards by the standard deviation of the running discounted return.

    Rewards keep their sign and their zero; no mean is taken off, which would change the task.

    Args:
        gamma: discount of the return, in [0, 1].
        num_envs: B.
        clip: bound on the absolute scaled reward, > 0.

    Source: Engstrom et al. 2020, arXiv:2005.12729, section 3 and algorithm 1.
    """

    def __init__(self, gamma: float, num_envs: int = 1, clip: float = 10.0) -> None:
        if not (math.isfinite(gamma) and 0 <= gamma <= 1):
            raise ValueError(f"gamma must lie in [0, 1], got {gamma!r}.")
        if not clip > 0:
            raise ValueError(f"clip must be positive, got {clip!r}.")
        self.gamma = float(gamma)
        self.clip = float(clip)
        self.statistics = RunningMeanStd()
        self.pending = RunningMeanStd()
        self._returns = np.zeros(num_envs)

    @property
    def scale(self) -> float:
        """What rewards are divided by; 1 before the first commit."""
        return float(self.statistics.std) if self.statistics.count else 1.0

    def __call__(self, rewards: Array) -> Array:
        """Scaled and clipped rewards, of the kind, shape and precision given."""
        if isinstance(rewards, torch.Tensor):
            return (rewards / self.scale).clamp_(-self.clip, self.clip)
        scaled: npt.NDArray[np.floating[Any]] = np.clip(
            rewards / rewards.dtype.type(self.scale), -self.clip, self.clip
        )
        return scaled

    def begin_anew(self, first: Rows) -> None:
        """Forget the running returns of environments whose next row is an episode's first, [B]."""
        self._returns[_tensor(first, torch.bool).numpy(force=True)] = 0

    def observe(self, rewards: Rows, ended: Rows, valid: Rows | None = None) -> None:
        """Note the raw rewards of a rollout; they count from `commit` on.

        Args:
            rewards: [T, B], unscaled; arrays, or tensors on one device, as all arguments.
            ended: [T, B], true where an episode ended (terminated or truncated).
            valid: [T, B], false on rows to leave out.
        """
        raw = _tensor(rewards, torch.float64)
        if raw.ndim != 2 or raw.shape[1] != len(self._returns):
            raise ValueError(
                f"rewards must be [T, {len(self._returns)}] for {len(self._returns)} "
                f"environments, got shape {tuple(raw.shape)}."
            )
        over = _tensor(ended, torch.bool)
        keep = torch.ones_like(over) if valid is None else _tensor(valid, torch.bool)
        # Rows left out count with reward 0: they belong to an episode of which no row is kept from
        # there on, or lie between two.
        before = torch.from_numpy(self._returns).to(raw.device)
        running = running_sums(torch.where(keep, raw, 0.0), over, before, self.gamma)
        self.pending.update(running[keep])
        self._returns = torch.where(over[-1], 0.0, running[-1]).numpy(force=True)

    def commit(self) -> None:
        """Apply what was observed. Call between an update and the next rollout."""
        self.statistics.merge(self.pending)
        self.pending = RunningMeanStd()

    def state_dict(self) -> StateDict:
        """Plain arrays, the running returns of the current episodes [B] among them."""
        return {**self.statistics.state_dict(), "returns": self._returns.copy()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave; forgets what was pending. Raises ValueError."""
        returns = _checked("returns", state, self._returns.shape)
        self.statistics.load_state_dict(state)
        self._returns = returns
        self.pending = RunningMeanStd()


def _on_device(rows: Any) -> TypeGuard[torch.Tensor]:
    """Whether NumPy cannot look at them where they are."""
    return isinstance(rows, torch.Tensor) and not rows.is_cpu


def _moments(rows: Any) -> tuple[Float64, Float64]:
    """Mean and population variance of rows [N, ...]; what is not finite is met by the caller."""
    if isinstance(rows, torch.Tensor):
        mean = rows.mean(0)
        both: Float64 = torch.stack([mean, (rows - mean).square().mean(0)]).numpy(force=True)
        return both[0], both[1]
    mean = rows.mean(axis=0)
    with np.errstate(invalid="ignore"):
        return mean, np.square(rows - mean).mean(axis=0)


def _tensor(values: Any, dtype: torch.dtype) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values.to(dtype)
    return torch.from_numpy(np.array(values, np.bool_ if dtype is torch.bool else np.float64))


def _checked(name: str, state: Mapping[str, Any], shape: tuple[int, ...]) -> Float64:
    if name not in state:
        raise ValueError(f"normaliser state: {name!r} is missing; it holds {sorted(state)}.")
    array = np.array(state[name], np.float64)
    if array.shape != shape:
        raise ValueError(f"normaliser state: {name} must have shape {shape}, got {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"normaliser state: {name} holds NaN or infinity.")
    return array
