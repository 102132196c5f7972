"""What a state dict may hold, checked before any of it is taken over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trpo_fast.base.tensors import all_finite
from trpo_fast.preconditioning.curvature import AGE
from trpo_fast.update.options import TABLE, Options

__all__ = ["AGE", "STATISTICS", "check_loaded", "number"]

# The preconditioner's statistics by name, with their number of dimensions.
STATISTICS = {"kfac_G": 2, "kfac_pi": 0, "fisher_diagonal": 2}


def check_loaded(state: Mapping[str, Any]) -> None:
    """Check options and preconditioner statistics; keys that are none of ours are ignored.

    Args:
        state: ``param_groups`` and ``state``, as ``Optimizer.load_state_dict`` matched them to the
            parameters.

    Raises:
        ValueError: an option out of its limits; statistics of a wrong type, or not finite.
    """
    for group in state["param_groups"]:
        known = {name: group[name] for name in TABLE if name in group}
        Options(**{**known, "lr": number("lr", known.get("lr", Options.lr))})
    for index, entry in enumerate(state["state"].values()):
        where = f"the loaded state's entry {index}"
        if not isinstance(entry, Mapping):
            kind = type(entry).__name__
            raise ValueError(f"{where} is a {kind}, expected a dict")  # noqa: TRY004
        age = entry.get(AGE, 0)
        if not isinstance(age, int) or isinstance(age, bool) or age < 0:
            raise ValueError(f"{where} has {AGE} {age!r}, expected a whole number >= 0")
        for name, value in entry.items():
            if isinstance(value, Tensor) and not (value.is_meta or all_finite(value)):
                raise ValueError(f"{where} has a NaN or an infinity in {name}; leave the state out")
            if name in STATISTICS:
                _check_statistic(f"{where} has {name}", name, value)


def _check_statistic(what: str, name: str, value: object) -> None:
    """A matrix with variances on its diagonal, a positive balance, or variances."""
    if not isinstance(value, Tensor) or value.ndim != STATISTICS[name] or value.is_complex():
        kind = type(value).__name__
        found = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"as a {kind}"
        raise ValueError(f"{what} {found}, expected {STATISTICS[name]} dimensions of numbers")
    if value.is_meta or not value.numel():
        return
    spread = value.diagonal() if name == "kfac_G" else value
    least = float(spread.min())
    if least < 0 or (name == "kfac_pi" and least == 0):
        raise ValueError(f"{what} with {least:g} where only a positive number can be")


def number(name: str, value: float | Tensor) -> float:
    """A number, or what a tensor of one element holds."""
    if not isinstance(value, Tensor):
        return value
    if value.numel() != 1 or value.is_complex():
        raise ValueError(f"{name} is a tensor of shape {tuple(value.shape)}, expected one number")
    return float(value)
