"""The agent's whole state as plain data, and whether one fits an agent.

The order of training is deterministic given this state: weights, optimiser and normaliser
statistics, the random generator, and the running episodes (their number and actions).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trpo_fast._version import __version__
from trpo_fast.agent.config import OPTIONS, Config, ConfigError
from trpo_fast.agent.learner import Learner
from trpo_fast.agent.making import Collector
from trpo_fast.agent.older_files import current_description, current_options
from trpo_fast.agent.policies import box_distribution, named_boxes
from trpo_fast.agent.portable import WHAT, NotPortable, from_json, same, to_json
from trpo_fast.agent.saved_spaces import NoEnvironments, space_to_json
from trpo_fast.agent.saved_state import check_outline, check_sizes, check_values
from trpo_fast.agent.shared_training import SharedTraining
from trpo_fast.base.machine import machine
from trpo_fast.environments.vectorization import same_episodes
from trpo_fast.runs.checkpoint import CheckpointError, state_differences

State = Mapping[str, Any]
# Stable-Baselines3's stats_window_size: episodes in rollout/ep_rew_mean.
EPISODE_WINDOW = 100


@dataclass
class Progress:
    """How far the training is."""

    num_timesteps: int = 0
    num_updates: int = 0
    num_episodes: int = 0
    dropped_episodes: int = 0
    time_elapsed: float = 0.0
    best_evaluation: float | None = None
    ranks: int = 1


@dataclass
class Training:
    """All that decides what an agent does next.

    Attributes:
        env_id: The id its environments were made from; None for functions and objects.
        config: The options, with the number of environments and the seed as they are.
        custom_networks: Which of "policy" and "value_function" are modules of the user's own.
        learner: Networks, optimizers, running statistics.
        collector: Steps the environments.
        rng: The source of every random number outside the environments.
        shared: The ranks that share it; None where there is one.
        pending_collector: The collector's state to return to before the next rollout, after a load
            or a fault.
    """

    env_id: str | None
    config: Config
    custom_networks: list[str]
    learner: Learner
    collector: Collector
    rng: np.random.Generator
    shared: SharedTraining | None = None
    pending_collector: State | None = None
    progress: Progress = field(default_factory=Progress)
    recent_returns: deque[float] = field(default_factory=lambda: deque(maxlen=EPISODE_WINDOW))
    recent_lengths: deque[int] = field(default_factory=lambda: deque(maxlen=EPISODE_WINDOW))

    def __post_init__(self) -> None:
        # Once, and not at every update: bounds of images are many numbers.
        env = self.collector.env
        spaces = {"observation": env.observation_space, "action": env.action_space}
        self.space_documents = {name: space_to_json(space) for name, space in spaces.items()}
        self.space_texts = {f"{name} space": str(space) for name, space in spaces.items()}
        # Of Boxes: None where there is none, or the policy is a module of the user's own.
        own = "policy" not in self.custom_networks and named_boxes(env.action_space)
        self.distribution = box_distribution(self.config, env.action_space) if own else None


def state_of(training: Training) -> dict[str, Any]:
    """A copy of all that decides what the agent does next."""
    collector = training.pending_collector
    return {
        "agent": description(training),
        "config": _portable_config(training),
        "custom_networks": list(training.custom_networks),
        "spaces": training.space_documents,
        "progress": dataclasses.asdict(training.progress),
        "learner": training.learner.state_dict(),
        "rng": _rng_state(training.rng),
        "collector": training.collector.state() if collector is None else dict(collector),
        "recent_returns": list(training.recent_returns),
        "recent_lengths": list(training.recent_lengths),
    }


def whole(training: Training, state: dict[str, Any]) -> dict[str, Any]:
    """What a file holds of the training: this rank's state, on rank 0 with the others' episodes."""
    return state if training.shared is None else training.shared.whole(state)


def load_into(training: Training, state: State, *, changed: frozenset[str] = frozenset()) -> None:
    """Take the agent to a state; options in `changed` keep the agent's values.

    The environments follow before the next rollout. Raises CheckpointError when the state cannot
    be this agent's.
    """
    try:
        progress = Progress(**state["progress"])
        training.learner.load_state_dict(state["learner"], keep=changed)
        _load_rng(training.rng, state["rng"])
        returns, lengths = list(state["recent_returns"]), list(state["recent_lengths"])
        collector = state["collector"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint does not fit this agent: {error}") from error
    training.progress = progress
    training.recent_returns = type(training.recent_returns)(returns, training.recent_returns.maxlen)
    training.recent_lengths = type(training.recent_lengths)(lengths, training.recent_lengths.maxlen)
    keep_episodes(training, {**state, "collector": collector}, changed)


def keep_episodes(training: Training, state: State, changed: frozenset[str]) -> None:
    """Go on in the saved running episodes if they are those of this agent's environments."""
    same = (
        state["config"].get("num_envs") == training.config.num_envs
        and not changed & {"seed", "env_kwargs", "wrapper"}
        and same_episodes(state["config"].get("vectorization"), training.config.vectorization)
        and state["agent"].get("environment") == training.env_id
    )
    training.pending_collector = state["collector"] if same else None


def description(training: Training) -> dict[str, Any]:
    """What must agree between a checkpoint and an agent, as plain values."""
    return {
        "environment": training.env_id,
        **training.space_texts,
        "activation": training.config.activation,
        "distribution": training.distribution,
        "scale_actions": training.config.scale_actions,
        "normalize_observations": training.config.normalize_observations,
        "normalize_rewards": training.config.normalize_rewards,
        "policy": _shapes(training.learner.policy),
        "value function": _shapes(training.learner.value_function),
    }


def check_fits(training: Training, state: State, *, changed: frozenset[str] = frozenset()) -> None:
    """CheckpointError when the state cannot be this agent's.

    It lists the differences from another kind of agent, or the values that none could go on from.
    """
    saved, here = current_description(state["agent"]), description(training)
    if here["distribution"] is None:  # earlier versions said what the option was
        saved = {**saved, "distribution": None}
    if training.env_id is None or saved.get("environment") is None:
        # An environment given as an object is the user's word that it is the right one.
        saved = {**saved, "environment": None}
        here["environment"] = None
    lines = state_differences(saved, here)
    if lines:
        listed = "\n  ".join(lines)
        raise CheckpointError(f"the checkpoint is of another agent:\n  {listed}")
    check_values(training.learner, training.collector.env, state, changed)


def check_networks(state: State, given: Mapping[str, nn.Module | None]) -> None:
    """CheckpointError when the agent had modules of the user's own that were not given again."""
    wanted = state.get("custom_networks", [])
    missing = [name for name, module in given.items() if module is None and name in wanted]
    if missing:
        words = " and ".join(f"{name}=" for name in missing)
        raise CheckpointError(
            f"the agent was trained with modules of your own: pass {words} to load "
            "(a checkpoint holds weights, never code)"
        )


def saved_dtype(state: State) -> torch.dtype | None:
    """Of the parameters of a checkpoint's networks that were made here; None where none were."""
    learner, own = state["learner"], state.get("custom_networks", [])
    for name in ("policy", "value_function"):
        saved = learner.get(name) if name not in own else None
        for value in saved.values() if isinstance(saved, Mapping) else ():
            if isinstance(value, Tensor) and value.is_floating_point():
                return value.dtype
    return None


def recipe(
    state: State, path: Path, env: Any, changes: Mapping[str, Any], *, predict_only: bool = False
) -> tuple[Any, Config, frozenset[str]]:
    """How to build the agent of a checkpoint.

    Returns the environment, the options, and the names of those that differ from the saved ones.
    Raises CheckpointError when the file does not say, or when it would import code.
    """
    check_outline(state, Progress, EPISODE_WINDOW)
    saved = state["config"]
    try:
        kwargs = from_json(saved.get("env_kwargs", {}))
        config = Config.from_options({**current_options(saved), "env_kwargs": kwargs})
    except (ConfigError, ValueError) as error:
        raise CheckpointError(
            f"{path} holds a configuration that cannot be used: {error}"
        ) from None
    check_sizes(state, config)
    wanted = config.replace(**changes)
    if predict_only:
        try:
            env = NoEnvironments(state.get("spaces"), wanted.num_envs)
        except ValueError as error:
            raise CheckpointError(f"{path} cannot be loaded for predict alone: {error}") from None
    elif env is None:
        env = saved_environment(state, path)
    changed = {name for name in OPTIONS if not same(getattr(wanted, name), getattr(config, name))}
    return env, wanted, frozenset(changed)


def saved_environment(state: State, path: Path) -> str:
    """The environment id in a checkpoint, which must not import code.

    gymnasium imports the module before a colon in an id: a file is never reason enough to.
    """
    name = state["agent"].get("environment")
    if not isinstance(name, str):
        raise CheckpointError(
            f"{path} does not name its environment (it was given as an object or a function): "
            "pass env=, or predict_only=True"
        )
    if ":" in name:
        raise CheckpointError(
            f"{path} names the environment {name!r}, which imports the module "
            f"{name.split(':')[0]!r}: if you trust it, pass env={name!r}"
        )
    return name


def refuse_wrapper(config: Config, path: Path) -> None:
    """CheckpointError where a file alone says that a wrapper is to be imported."""
    if config.wrapper:
        raise CheckpointError(
            f"{path} names the wrapper {config.wrapper!r}, which imports code: if you trust it, "
            f"pass wrapper={config.wrapper!r} (--wrapper)"
        )


def config_document(training: Training) -> dict[str, Any]:
    """What config.json holds."""
    return {
        "trpo_fast": __version__,
        "environment": training.env_id,
        "stepping": training.collector.env.choice or training.config.vectorization,
        "distribution": training.distribution,
        "options": _portable_config(training),
        "networks": dict.fromkeys(training.custom_networks, "given as a module"),
        "machine": machine(),
    }


def _portable_config(training: Training) -> dict[str, Any]:
    options = training.config.to_json()
    with contextlib.suppress(NotPortable):  # refused by `require_portable` where it is written
        options["env_kwargs"] = to_json(options["env_kwargs"], "env_kwargs")
    return {name: options[name] for name in OPTIONS}


def require_portable(training: Training) -> None:
    """ConfigError where a file could not tell how to make the environment again."""
    try:
        to_json(training.config.env_kwargs, "env_kwargs")
    except NotPortable as error:
        raise ConfigError(
            f"{error}, which no checkpoint or config.json can hold ({WHAT} are kept exactly). Give "
            "TRPO a function that makes the environment with it, in place of env_kwargs, and load "
            "and resume with the same env="
        ) from None


def _shapes(module: nn.Module) -> dict[str, list[int]]:
    tensors = ((k, v) for k, v in module.state_dict().items() if isinstance(v, Tensor))
    return {name: list(value.shape) for name, value in tensors}


def _rng_state(rng: np.random.Generator) -> dict[str, Any]:
    """The Philox generator's state as JSON: its counters are 64-bit numbers, written as lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return value.tolist() if isinstance(value, np.ndarray) else value

    state: dict[str, Any] = plain(rng.bit_generator.state)
    return state


def _load_rng(rng: np.random.Generator, state: State) -> None:
    if state["bit_generator"] != "Philox":
        raise ValueError(f"the random generator is {state['bit_generator']!r}, not Philox")
    arrays = {key: np.array(value, np.uint64) for key, value in state["state"].items()}
    buffer = np.array(state["buffer"], np.uint64)
    rng.bit_generator.state = {**state, "state": arrays, "buffer": buffer}
