"""Every option of the agent, once: name, default, help text, limits.

Those of the policy update come from the optimizer's own table, `trpo_fast.update.options`.
`TRPO(...)` takes these as keywords, `trpo-fast train` as options, `config.json` and checkpoints
as JSON. A file is only ever parsed and checked against this table, never evaluated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trpo_fast.agent.portable import same
from trpo_fast.base.errors import UserError
from trpo_fast.base.option import Option, check_fields, option, table_of
from trpo_fast.base.synonyms import hint
from trpo_fast.environments.vectorization import SAME_EPISODES, VECTORIZATIONS, same_episodes
from trpo_fast.networks.head import BOX_DISTRIBUTIONS
from trpo_fast.runs.tracking import TRACKERS
from trpo_fast.update.options import GROUP, SharedOptions

# Of the agent's own policies.
POLICIES = ("auto", "mlp", "cnn", "multi_input", "recurrent")
GROUPS = ("environment", "rollout", "networks", GROUP, "critic", "run")


class ConfigError(UserError):
    """An option has a value that cannot work; the text names it and what to do."""


class UnknownOptionError(ConfigError, TypeError):
    """An option that does not exist; the text offers the nearest names."""


@dataclass(frozen=True, kw_only=True)
class Config(SharedOptions):
    """The options of one training run. Invalid values raise ConfigError at construction."""

    num_envs: int = option(8, "environment", "environments stepped together", minimum=1, fixed=True)
    vectorization: str = option(
        "auto",
        "environment",
        "how they are stepped: in this process (sync), by this one and some others (workers), by "
        "whichever of the two the first steps show to be quicker (auto), in one process each "
        "(async), or by envpool; these but the last give the same bits. tensor is for environments "
        "that step all at once in torch tensors: an object, or module:factory that makes one",
        choices=VECTORIZATIONS,
        fixed=True,
        note=f"A resumed run may go from one of {', '.join(sorted(SAME_EPISODES))} to another",
    )
    num_workers: int = option(
        0, "environment", "processes of workers (0: one a core besides this one's)", minimum=0
    )
    step_timeout: float = option(
        0.0,
        "environment",
        "seconds after which a step of an environment in another process is taken to hang (0: "
        "never); one in this process cannot be ended, and is told of with the line it is at",
        minimum=0.0,
    )
    env_kwargs: dict[str, Any] = option(  # noqa: RUF009 (a field, as the others)
        dict, "environment", "keyword arguments for the environment", fixed=True
    )
    wrapper: str = option(
        "",
        "environment",
        "module:Class of a wrapper around each environment; several with commas between, the "
        "innermost first",
        fixed=True,
    )
    seed: int | None = option(
        None,
        "environment",
        "seed of everything random (None draws one and records it)",
        minimum=0,
        maximum=2**63 - 1,  # what torch.Generator.manual_seed takes
        fixed=True,
    )
    on_fault: str = option(
        "stop",
        "environment",
        "a NaN from an environment stops the run, or drops the episode with a warning",
        choices=("stop", "drop"),
    )

    # Longer than an episode of Pendulum: with all environments in the same phase of theirs, a
    # shorter rollout can hold nothing but its end, whose scaled advantages are noise.
    rollout_steps: int = option(
        256, "rollout", "steps per environment between updates", minimum=1, fixed=True
    )
    gamma: float = option(0.99, "rollout", "discount factor", minimum=0.0, maximum=1.0)
    lam: float = option(
        0.95, "rollout", "lambda of generalised advantage estimation", minimum=0.0, maximum=1.0
    )
    # docs/choosing-defaults.md: what it is worth.
    value_lam: float | None = option(
        None,
        "rollout",
        "lambda of the returns that the value function is fitted to (None: lam)",
        minimum=0.0,
        maximum=1.0,
    )
    normalize_observations: bool = option(
        True, "rollout", "scale observations by their running mean and deviation", fixed=True
    )
    observation_clip: float = option(
        10.0, "rollout", "bound on a normalised observation", above=0.0, fixed=True
    )
    normalize_rewards: bool = option(
        True, "rollout", "scale rewards by the running deviation of the return", fixed=True
    )
    normalize_advantages: bool = option(
        True, "rollout", "give each batch's advantages mean 0 and deviation 1"
    )

    # docs/choosing-defaults.md: what it is worth.
    max_kl_per: str = option(
        "dimension",
        GROUP,
        "what max_kl is for: each number or choice of an action, or the whole of it",
        choices=("dimension", "action"),
        fixed=True,
        note="dimension: the bound on the KL of the joint action is max_kl times their count, 6 "
        "for HalfCheetah, 1 for CartPole.",
    )
    shrink_max_kl: bool = option(
        True,
        GROUP,
        "less of max_kl for a rollout whose advantages vary more than its returns",
        note="Of constraint=hard: max_kl times (Var(returns) / Var(advantages))^2 where that is "
        "below 1, since the advantages then are mostly the critic's errors.",
    )

    policy: str = option(
        "auto",
        "networks",
        "a perceptron (mlp), convolutions for images (cnn), an encoder for each part of a Dict or "
        "Tuple (multi_input), a memory after such encoders (recurrent); auto: cnn or multi_input "
        "where there are images, else mlp",
        choices=POLICIES,
        fixed=True,
    )
    hidden_sizes: tuple[int, ...] = option(
        (64, 64),
        "networks",
        "widths of the policy's hidden layers (cnn has its own)",
        minimum=1,
        fixed=True,
    )
    value_hidden_sizes: tuple[int, ...] = option(
        (64, 64),
        "networks",
        "widths of the value function's hidden layers (cnn has its own)",
        minimum=1,
        fixed=True,
    )
    cell: str = option(
        "lstm", "networks", "of a recurrent policy", choices=("lstm", "gru"), fixed=True
    )
    cell_size: int = option(
        64, "networks", "numbers that a recurrent policy's cell gives", minimum=1, fixed=True
    )
    share_encoder: bool = option(
        False,
        "networks",
        "the value function reads the policy's encoder (cnn, multi_input), which the policy's "
        "steps alone move",
        fixed=True,
    )
    activation: str = option(
        "tanh", "networks", "activation of both networks: tanh, relu, silu, ...", fixed=True
    )
    # docs/choosing-defaults.md: what it is worth.
    log_std_init: float | None = option(
        None,
        "networks",
        "first log standard deviation of a Gaussian or Beta policy (None: -log(n) / 2 for the n "
        "numbers of an action, 1 for one squashed number)",
        fixed=True,
        note="None makes the first actions about as long, whatever their numbers: 1, in units of "
        "the bounds, as far as a Beta or a tanh reaches. A Beta's is at least -5 and at most "
        "log(1/2).",
    )
    scale_actions: bool = option(
        True,
        "networks",
        "a Gaussian's actions are in units of the Box's bounds, whose middle is 0",
        fixed=True,
    )
    state_dependent_std: bool = option(
        False, "networks", "let the standard deviation depend on the observation", fixed=True
    )
    # docs/choosing-defaults.md: what it is worth.
    distribution: str = option(
        "auto",
        "networks",
        "of Box actions: a Gaussian clipped to the bounds, one squashed into them by tanh, or a "
        "Beta distribution between them; auto: where bounds are finite a Beta, or a squashed "
        "Gaussian if an action has one number, else a Gaussian",
        choices=("auto", *BOX_DISTRIBUTIONS),
        fixed=True,
        note="auto takes a Gaussian, too, where scale_actions=False asks for one, or "
        "state_dependent_std or a log_std_init below -5 or above log(1/2) for what a Beta has not.",
    )
    device: str = option("auto", "networks", 'where the networks live: "auto", "cpu", "cuda"')

    critic_epochs: int = option(10, "critic", "passes over each rollout", minimum=0)
    critic_batch_size: int = option(128, "critic", "rows in a minibatch", minimum=1)
    critic_lr: float = option(1e-3, "critic", "learning rate of Adam", minimum=0.0)

    deterministic_ranks: bool = option(
        False,
        "run",
        "on several ranks, every one makes the whole update: the bits of one process, and its time",
    )
    rank_timeout: float = option(
        600.0, "run", "seconds after which a rank that does not answer has hung", above=0.0
    )
    track: str = option(
        "none",
        "run",
        "what else gets the rows of progress.csv; where to, its own environment variables say",
        choices=TRACKERS,
    )
    save_every: int = option(
        10, "run", "updates between checkpoints (0: only at the end)", minimum=0
    )
    keep_checkpoints: int = option(3, "run", "rolling checkpoints kept", minimum=1)
    eval_every: int = option(
        0,
        "run",
        "steps between evaluations, the best one's checkpoint is kept (0: none)",
        minimum=0,
    )
    eval_episodes: int = option(10, "run", "episodes of an evaluation", minimum=1)
    eval_envs: int = option(
        16,
        "run",
        "most environments that an evaluation makes, beside the training's (0: none, it is played "
        "in the training's own, whose episodes are then entered again, or begin anew where they "
        "cannot be)",
        minimum=0,
    )
    eval_max_steps: int = option(
        100_000, "run", "steps after which an episode of an evaluation is stopped", minimum=1
    )

    def __post_init__(self) -> None:
        try:
            check_fields(self, OPTIONS)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if self.wrapper and self.vectorization in ("envpool", "tensor"):
            raise ConfigError(
                f"vectorization={self.vectorization!r} steps environments that no wrapper can be "
                f"put around, got wrapper={self.wrapper!r}"
            )

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
        """The options, tuples as lists; `env_kwargs` as it is, see portable.py."""
        values = {name: getattr(self, name) for name in OPTIONS}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def refuse_unknown(names: Iterable[str]) -> None:
    """Raise UnknownOptionError for the first name that is not an option."""
    for name in names:
        if name not in OPTIONS:
            known = (*OPTIONS, "run_dir")
            raise UnknownOptionError(f"unknown option {name!r}{hint(str(name), known)}")


def differences(old: Config, new: Config, *, fixed: bool | None = None) -> list[str]:
    """`name: old -> new` for each option that differs; only fixed or only free ones if asked."""
    alike = same_episodes(old.vectorization, new.vectorization)
    return [
        f"{name}: {getattr(old, name)!r} -> {getattr(new, name)!r}"
        for name, row in OPTIONS.items()
        if not same(getattr(old, name), getattr(new, name))
        and fixed in (None, row.fixed and not (name == "vectorization" and alike))
    ]


def _by_group(table: Mapping[str, Option]) -> dict[str, Option]:
    return {name: row for group in GROUPS for name, row in table.items() if row.group == group}


OPTIONS = _by_group(table_of(Config))
