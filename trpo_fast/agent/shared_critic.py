"""The critic's fit where several ranks share the rows: each fits its own, and they take the mean.

A collective for each minibatch would take longer than the minibatch. Every rank therefore passes
over its own rows, from the same parameters and moments, and after each pass all go on from the
mean of what they found, weighed by rows: local steps with periodic averaging (McDonald et al. 2010;
Stich 2019).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trpo_fast.agent.critic import Critic, explained_variance
from trpo_fast.agent.shared_training import SharedTraining
from trpo_fast.rollouts.normalization import RunningMeanStd

# Rows of a rank's minibatch at least: with fewer, Adam's own work is most of a step.
FEWEST_ROWS = 32
MOMENTS = ("exp_avg", "exp_avg_sq")


class CriticFit(NamedTuple):
    """What one fit did, over the rows of all ranks."""

    loss: float | None
    skipped_rows: int


def minibatch_rows(wanted: int, shared: SharedTraining | None) -> int:
    """Rows of a rank's minibatch: its part of those of one process, by its environments."""
    if shared is None:
        return wanted
    part = -(-wanted * shared.own_envs // shared.total)
    return min(wanted, max(part, FEWEST_ROWS))


def fit_critic(
    critic: Critic,
    observations: Any,
    returns: Tensor,
    rng: np.random.Generator,
    shared: SharedTraining | None,
) -> CriticFit:
    """Regress the returns on the observations.

    Args:
        critic: on several ranks with the same parameters and moments on each, before and after.
        observations: [N, ...] of this rank, as the networks see them.
        returns: [N].
        rng: as ``Critic.fit`` takes it; several ranks advance it alike.
        shared: the ranks that share the rows; None where all are here.

    Raises:
        RankError: another rank's fit failed; the critic is as it was.
    """
    targets = returns.to(critic.parameters[0].device)
    if shared is None or shared.ranks.count == 1:
        fit = critic.fit(observations, targets, rng)
        return CriticFit(fit.loss, fit.skipped_rows)
    noise = np.random.Generator(np.random.Philox([int(rng.integers(1 << 63)), shared.ranks.rank]))
    before = _vector(critic)
    loss, skipped = None, 0
    try:
        for _ in range(critic.epochs):
            loss, left_out = _pass(critic, observations, targets, noise, shared)
            skipped = max(skipped, left_out)
    except BaseException:
        _set(critic, before)
        raise
    return CriticFit(loss, skipped)


def _pass(
    critic: Critic,
    observations: Any,
    targets: Tensor,
    noise: np.random.Generator,
    shared: SharedTraining,
) -> tuple[float | None, int]:
    """Each rank's pass over its own rows, then their mean; the loss, and the rows skipped."""
    start = _vector(critic)
    # The change, then rows, their squared error, those skipped; the last for a rank that failed.
    # Sent as precisely as the parameters are held: the change is small beside them.
    dtype = torch.promote_types(critic.parameters[0].dtype, torch.float32)
    total = start.new_zeros(len(start) + 4, dtype=dtype)

    def fit_own() -> None:
        fit = critic.fit(observations, targets, noise, epochs=1)
        rows = len(targets) - fit.skipped_rows
        now = _vector(critic)
        # A mask's infinity has not changed, and infinity less infinity is no number.
        total[:-4] = rows * torch.where(now == start, 0.0, now - start)
        total[-4:-1] = total.new_tensor([rows, rows * (fit.loss or 0.0), fit.skipped_rows])

    shared.ranks.sum_or_end(total, fit_own)
    rows, error, skipped, _ = total[-4:].tolist()
    _set(critic, start + total[:-4].double() / rows if rows else start)
    return error / rows if rows else None, int(skipped)


def explained_by_all(
    values: Tensor, returns: Tensor, shared: SharedTraining | None
) -> float | None:
    """``explained_variance`` over the rows of all ranks; of several, their finite ones."""
    if shared is None or shared.ranks.count == 1:
        return explained_variance(values, returns)
    rows = torch.stack((returns, returns - values), -1)
    moments = RunningMeanStd((2,))
    moments.update(rows[torch.isfinite(rows).all(-1)].numpy(force=True))
    shared.merge(moments)
    of_returns, of_errors = moments.var.tolist()
    return 1.0 - of_errors / of_returns if moments.count and of_returns > 0 else None


def _vector(critic: Critic) -> Tensor:
    """All that a fit changes, as float64 numbers: networks, Adam's moments, its steps."""
    state = critic.state_dict()
    parts = [*critic.parameters, *critic.value_function.buffers()]
    for index, parameter in enumerate(critic.parameters):
        entry = state.get(str(index), {})
        parts += [entry.get(name, torch.zeros_like(parameter)) for name in MOMENTS]
        parts.append(torch.as_tensor(entry.get("step", 0.0)))
    device = critic.parameters[0].device
    return torch.cat([part.detach().to(device, torch.float64).reshape(-1) for part in parts])


def _set(critic: Critic, vector: Tensor) -> None:
    """Make the critic that of such a vector."""
    rest = vector

    def taken(like: Tensor) -> Tensor:
        nonlocal rest
        own, rest = rest[: like.numel()], rest[like.numel() :]
        own = own if like.is_floating_point() else own.round()
        return own.to(like.dtype).view(like.shape)

    with torch.no_grad():
        for tensor in (*critic.parameters, *critic.value_function.buffers()):
            tensor.copy_(taken(tensor))
    state: dict[str, dict[str, Any]] = {}
    for index, parameter in enumerate(critic.parameters):
        entry: dict[str, Any] = {name: taken(parameter.detach()) for name in MOMENTS}
        entry["step"] = taken(torch.zeros((), device="cpu")).round().cpu()
        if float(entry["step"]):  # else Adam has not begun
            state[str(index)] = entry
    critic.load_state_dict(state)
