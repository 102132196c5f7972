"""Every option of the agent, once: name, default, help text, limits.

`TRPO(...)` takes these as keywords, `trpo-fast train` as options, `config.json` and checkpoints
as JSON. A file is only ever parsed and checked against this table, never evaluated.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import numbers
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trpo_fast.base.errors import UserError

# Ways to step environments that give the same bits: a run may be resumed with another of them.
SAME_EPISODES = frozenset({"auto", "sync", "workers", "async"})
GROUPS = ("environment", "rollout", "networks", "policy update", "critic", "run")


class ConfigError(UserError):
    """An option has a value that cannot work; the text names it and what to do."""


class UnknownOptionError(ConfigError, TypeError):
    """An option that does not exist; the text offers the nearest names."""


@dataclass(frozen=True)
class Option:
    """What is known about one option besides its type and default.

    `fixed` options decide shapes or data: a run cannot be resumed with another value.
    """

    text: str
    group: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    above: float | None = None
    maximum: float | None = None
    below: float | None = None
    fixed: bool = False


def _option(default: Any, group: str, text: str, **limits: Any) -> Any:
    return field(default=default, metadata={"option": Option(text, group, **limits)})


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options of one training run. Invalid values raise ConfigError at construction."""

    num_envs: int = _option(
        8, "environment", "environments stepped together", minimum=1, fixed=True
    )
    vectorization: str = _option(
        "auto",
        "environment",
        "how they are stepped: in this process (sync), by this one and some others (workers), by "
        "whichever of the two the first steps show to be quicker (auto), in one process each "
        "(async), or by envpool; all but the last give the same bits",
        choices=("auto", "sync", "workers", "async", "envpool"),
        fixed=True,
    )
    num_workers: int = _option(
        0, "environment", "processes of workers (0: one a core besides this one's)", minimum=0
    )
    step_timeout: float = _option(
        0.0,
        "environment",
        "seconds after which an environment's step in workers is taken to hang (0: never)",
        minimum=0.0,
    )
    env_kwargs: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "option": Option("keyword arguments for the environment", "environment", fixed=True)
        },
    )
    seed: int | None = _option(
        None,
        "environment",
        "seed of everything random (None, in Python, draws one and records it)",
        minimum=0,
        maximum=2**63 - 1,  # what torch.Generator.manual_seed takes
        fixed=True,
    )
    on_fault: str = _option(
        "stop",
        "environment",
        "a NaN from an environment stops the run, or drops the episode with a warning",
        choices=("stop", "drop"),
    )

    # Longer than an episode of Pendulum: with all environments in the same phase of theirs, a
    # shorter rollout can hold nothing but its end, whose scaled advantages are noise.
    rollout_steps: int = _option(
        256, "rollout", "steps per environment between updates", minimum=1, fixed=True
    )
    gamma: float = _option(0.99, "rollout", "discount factor", minimum=0.0, maximum=1.0)
    lam: float = _option(
        0.95, "rollout", "lambda of generalised advantage estimation", minimum=0.0, maximum=1.0
    )
    normalize_observations: bool = _option(
        True, "rollout", "scale observations by their running mean and deviation", fixed=True
    )
    observation_clip: float = _option(
        10.0, "rollout", "bound on a normalised observation", above=0.0, fixed=True
    )
    normalize_rewards: bool = _option(
        True, "rollout", "scale rewards by the running deviation of the return", fixed=True
    )
    normalize_advantages: bool = _option(
        True, "rollout", "give each batch's advantages mean 0 and deviation 1"
    )

    hidden_sizes: tuple[int, ...] = _option(
        (64, 64), "networks", "widths of the policy's hidden layers", minimum=1, fixed=True
    )
    value_hidden_sizes: tuple[int, ...] = _option(
        (64, 64), "networks", "widths of the value function's hidden layers", minimum=1, fixed=True
    )
    activation: str = _option(
        "tanh", "networks", "activation of both networks: tanh, relu, silu, ...", fixed=True
    )
    # As in OpenAI's spinningup; see docs/learning-results.md for what it does to HalfCheetah.
    log_std_init: float = _option(
        -0.5, "networks", "first log standard deviation of a Gaussian policy", fixed=True
    )
    state_dependent_std: bool = _option(
        False, "networks", "let the standard deviation depend on the observation", fixed=True
    )
    squash: bool = _option(
        False, "networks", "tanh-squash Gaussian actions into the action bounds", fixed=True
    )
    device: str = _option("auto", "networks", 'where the networks live: "auto", "cpu", "cuda"')

    max_kl: float = _option(0.01, "policy update", "bound on the mean KL of an update", above=0.0)
    damping: float = _option(0.1, "policy update", "added to the Fisher matrix", minimum=0.0)
    adaptive_damping: bool = _option(
        False, "policy update", "adapt the damping to how well the quadratic model predicts"
    )
    cg_iters: int = _option(10, "policy update", "most conjugate-gradient iterations", minimum=1)
    cg_tol: float = _option(
        1e-4, "policy update", "relative residual at which they stop (0: run all)", minimum=0.0
    )
    cg_progress_tol: float = _option(
        0.05,
        "policy update",
        "stop preconditioned ones, too, at one that adds less than this share (0: never)",
        minimum=0.0,
        below=1.0,
    )
    preconditioner: str = _option(
        "auto",
        "policy update",
        "of conjugate gradients: kfac, diagonal or none; auto is kfac where it pays",
        choices=("auto", "none", "diagonal", "kfac"),
    )
    precision: str = _option(
        "auto",
        "policy update",
        "of what the Fisher products multiply; the rest stays fp32 or better; auto is bf16 where "
        "the CPU has an instruction for it and the preconditioner is kfac",
        choices=("auto", "fp32", "tf32", "bf16x3", "bf16"),
    )
    fisher_fraction: float = _option(
        1.0, "policy update", "share of the rows used for the Fisher matrix", above=0.0, maximum=1.0
    )
    backtrack_coeff: float = _option(
        0.8, "policy update", "line search: shrink by this much", above=0.0, below=1.0
    )
    max_backtracks: int = _option(
        10, "policy update", "line search: at most this many shrinks", minimum=0
    )
    accept_ratio: float = _option(
        0.0, "policy update", "line search: least actual / expected improvement", minimum=0.0
    )
    constraint: str = _option(
        "hard",
        "policy update",
        "trust region, KL penalty, or plain natural gradient",
        choices=("hard", "penalty", "none"),
    )
    beta: float = _option(1.0, "policy update", "weight of the KL penalty", above=0.0)
    adaptive_beta: bool = _option(
        True, "policy update", "adapt the penalty's weight so that the KL is near max_kl"
    )
    kl_direction: str = _option(
        "old_new",
        "policy update",
        "KL(old, new) or KL(new, old)",
        choices=("old_new", "new_old"),
    )
    lr: float = _option(1.0, "policy update", "multiplies the step", minimum=0.0)
    backend: str = _option(
        "auto",
        "policy update",
        'what computes the update; "cuda" is for networks on a CUDA device',
        choices=("auto", "cpu", "cuda", "reference"),
    )

    # docs/end-to-end.md: adam explains more of the returns' variance for its time.
    critic_method: str = _option(
        "adam",
        "critic",
        "minibatch Adam, or Gauss-Newton steps on whole rollouts, one a pass (1 to 3 suffice)",
        choices=("adam", "gauss_newton"),
    )
    critic_epochs: int = _option(10, "critic", "passes over each rollout", minimum=0)
    critic_batch_size: int = _option(128, "critic", "rows in a minibatch", minimum=1)
    critic_lr: float = _option(1e-3, "critic", "learning rate of Adam", minimum=0.0)

    save_every: int = _option(
        10, "run", "updates between checkpoints (0: only at the end)", minimum=0
    )
    keep_checkpoints: int = _option(3, "run", "rolling checkpoints kept", minimum=1)
    eval_every: int = _option(
        0,
        "run",
        "steps between evaluations, the best one's checkpoint is kept (0: none)",
        minimum=0,
    )
    eval_episodes: int = _option(10, "run", "episodes of an evaluation", minimum=1)

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            checked = _checked(
                item.name, TYPES[item.name], OPTIONS[item.name], getattr(self, item.name)
            )
            object.__setattr__(self, item.name, checked)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Config:
        """The configuration with these options, the defaults elsewhere.

        Raises UnknownOptionError with the nearest names for a key that does not exist.
        """
        refuse_unknown(options)
        return cls(**options)

    def replace(self, **changes: Any) -> Config:
        """A copy with some options changed, checked again."""
        refuse_unknown(changes)
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """The options as plain JSON values; `from_options` reads them back."""
        values = {name: getattr(self, name) for name in OPTIONS}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def refuse_unknown(names: Iterable[str]) -> None:
    """Raise UnknownOptionError for the first name that is not an option."""
    for name in names:
        if name not in OPTIONS:
            raise UnknownOptionError(f"unknown option {name!r}{did_you_mean(str(name), OPTIONS)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean ...?"` with the known names nearest to `name`, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=2, cutoff=0.6)
    return "; did you mean " + " or ".join(map(repr, near)) + "?" if near else ""


def same_episodes(one: Any, other: Any) -> bool:
    """Whether two values of `vectorization` give the same episodes."""
    return one == other or {one, other} <= SAME_EPISODES


def differences(old: Config, new: Config, *, fixed: bool | None = None) -> list[str]:
    """`name: old -> new` for each option that differs; only fixed or only free ones if asked."""
    alike = same_episodes(old.vectorization, new.vectorization)
    return [
        f"{name}: {getattr(old, name)!r} -> {getattr(new, name)!r}"
        for name, option in OPTIONS.items()
        if getattr(old, name) != getattr(new, name)
        and fixed in (None, option.fixed and not (name == "vectorization" and alike))
    ]


def _checked(name: str, kind: Any, option: Option, value: Any) -> Any:
    """`value` as the option's own type, within its limits; ConfigError otherwise."""
    if typing.get_origin(kind) is types.UnionType:
        if value is None:
            return None
        (kind,) = (k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_origin(kind) is tuple:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ConfigError(f"{name} is a list of whole numbers, got {value!r}")
        return tuple(_number(name, int, option, item) for item in value)
    if typing.get_origin(kind) is dict:
        return _json_object(name, value)
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{name} is true or false, got {value!r}")
    if kind is str:
        return _word(name, option, value)
    return _number(name, kind, option, value)


def _number(name: str, kind: type, option: Option, value: Any) -> Any:
    wanted = numbers.Integral if kind is int else numbers.Real
    if isinstance(value, bool) or not isinstance(value, wanted):
        noun = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{name} is {noun}, got {value!r}")
    number = kind(value)
    if not math.isfinite(number):
        raise ConfigError(f"{name} must be finite, got {value!r}")
    rules: tuple[tuple[float | None, Callable[[float, float], bool], str], ...] = (
        (option.minimum, operator.ge, "at least"),
        (option.above, operator.gt, "above"),
        (option.maximum, operator.le, "at most"),
        (option.below, operator.lt, "below"),
    )
    for limit, holds, words in rules:
        if limit is not None and not holds(number, limit):
            raise ConfigError(f"{name} must be {words} {limit:g}, got {value!r}")
    return number


def _word(name: str, option: Option, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{name} is a word, got {value!r}")
    if option.choices and value not in option.choices:
        hint = did_you_mean(value, option.choices)
        raise ConfigError(f"{name} is one of {', '.join(option.choices)}, got {value!r}{hint}")
    return value


def _json_object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"{name} is a mapping with text keys, got {value!r}")
    return dict(value)


def is_json(value: Any) -> bool:
    """Whether `value` survives a trip through JSON (an env_kwargs object may not)."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


OPTIONS: dict[str, Option] = {f.name: f.metadata["option"] for f in dataclasses.fields(Config)}
TYPES: dict[str, Any] = typing.get_type_hints(Config)
