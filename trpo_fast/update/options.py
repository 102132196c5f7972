"""The options of one update: their defaults, limits and errors, once."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

CHOICES: dict[str, tuple[str, ...]] = {
    "preconditioner": ("auto", "none", "diagonal", "kfac"),
    "precision": ("auto", "fp32", "tf32", "bf16x3", "bf16"),
    "step_size": ("damped", "boundary"),
    "constraint": ("hard", "penalty", "none"),
    "kl_direction": ("old_new", "new_old"),
    "noise": ("eval", "fixed"),
    "backend": ("auto", "cpu", "cuda", "reference"),
}
# Keywords of torch's optimizers that ask for what a trust-region step cannot be.
UNSERVED = {
    "capturable": "whether a candidate is taken is decided on the host, so no step can be captured",
    "differentiable": "the line search is no differentiable function of its inputs",
    "foreach": "all parameters are one vector already",
    "fused": "backend= names what computes the update",
}
GREATEST_COUNT = 2**31 - 1  # the native int
# (lower limit, whether it is excluded, upper limit, whether it is excluded)
LIMITS: dict[str, tuple[float, bool, float, bool]] = {
    "max_kl": (0.0, True, math.inf, True),
    "damping": (0.0, False, math.inf, True),
    "cg_iters": (1, False, GREATEST_COUNT, False),
    "cg_tol": (0.0, False, 1.0, True),
    "cg_progress_tol": (0.0, False, 1.0, True),
    "fisher_fraction": (0.0, True, 1.0, False),
    "backtrack_coeff": (0.0, True, 1.0, True),
    "max_backtracks": (0, False, GREATEST_COUNT, False),
    "accept_ratio": (0.0, False, 1.0, True),
    "beta": (0.0, True, math.inf, True),
    "lr": (0.0, False, math.inf, True),
}
WHOLE = ("cg_iters", "max_backtracks")
FLAGS = ("adaptive_damping", "adaptive_beta", "maximize")


@dataclass(frozen=True)
class Options:
    """Checked options of one update; ``docs`` and ``TRPOOptimizer`` say what each means.

    ``max_kl``, ``damping``, ``cg_iters`` and ``backtrack_coeff`` are the defaults of OpenAI's
    baselines and spinningup (0.01, 0.1, 10, 0.8).

    Raises:
        ValueError: an option is outside its limits, or of the wrong type.
    """

    max_kl: float = 0.01
    damping: float = 0.1
    adaptive_damping: bool = False
    cg_iters: int = 10
    cg_tol: float = 1e-4
    cg_progress_tol: float = 0.05
    preconditioner: str = "auto"
    precision: str = "auto"
    fisher_fraction: float = 1.0
    step_size: str = "damped"
    backtrack_coeff: float = 0.8
    max_backtracks: int = 10
    accept_ratio: float = 0.0
    constraint: str = "hard"
    beta: float = 1.0
    adaptive_beta: bool = True
    kl_direction: str = "old_new"
    noise: str = "eval"
    lr: float = 1.0
    maximize: bool = False
    backend: str = "auto"

    def __post_init__(self) -> None:
        for name in LIMITS:
            check_number(name, getattr(self, name))
        for name in FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(  # noqa: TRY004
                    f"{name} must be True or False, got {getattr(self, name)!r}"
                )
        for name, choices in CHOICES.items():
            _check_choice(name, getattr(self, name), choices)

    def as_group(self) -> dict[str, Any]:
        """The options as plain Python values, so that a state dict loads with weights_only."""
        group = asdict(self)
        for name in LIMITS:
            group[name] = int(group[name]) if name in WHOLE else float(group[name])
        return group


NAMES = tuple(field.name for field in fields(Options))


def from_group(group: Mapping[str, Any]) -> Options:
    """The options in a parameter group; keys that are none of ours are ignored.

    Raises:
        ValueError: as ``Options``, or when an option is missing.
    """
    missing = [name for name in NAMES if name not in group]
    if missing:
        raise ValueError(f"the parameter group lacks {', '.join(missing)}; do not delete options")
    return Options(**{name: group[name] for name in NAMES})


def check_number(name: str, value: object) -> None:
    """Raise ValueError where the value is outside the limits of the option ``name``."""
    low, open_low, high, open_high = LIMITS[name]
    kind = "a whole number" if name in WHOLE else "a number"
    if high == math.inf:
        span = f"{'>' if open_low else '>='} {low:g} and finite"
    else:
        span = f"in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
    whole = isinstance(value, numbers.Integral)
    typed = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not typed or (name in WHOLE and not whole):
        raise ValueError(f"{name} must be {kind} {span}, got {value!r}")
    number = float(value)  # type: ignore[arg-type]
    above = number > low if open_low else number >= low
    below = number < high if open_high else number <= high
    if not (above and below):
        raise ValueError(f"{name} must be {kind} {span}, got {value!r}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def refuse_unserved(keywords: dict[str, Any]) -> None:
    """Raise for keywords that are none of ours; for torch's own, with the reason."""
    for name, value in keywords.items():
        if name not in UNSERVED:
            raise TypeError(f"TRPOOptimizer() got an unexpected keyword argument {name!r}")
        if value:
            raise ValueError(f"TRPOOptimizer has no {name}: {UNSERVED[name]}")
