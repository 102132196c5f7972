"""The environments of an agent, made as its options say, and what it collects rollouts with.

Environments stepped in NumPy, each with episodes of its own that can be replayed; and those that
step all at once in torch tensors, whose rollouts stay on their device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from trpo_fast.agent.config import OPTIONS, Config, ConfigError
from trpo_fast.agent.shared_training import SharedTraining
from trpo_fast.base.errors import EnvironmentSetupError
from trpo_fast.base.spaces import Space
from trpo_fast.environments.flattening import ObservationFlattener
from trpo_fast.environments.interface import Environments
from trpo_fast.environments.make import make_vector_env
from trpo_fast.environments.row_format import RowFormat
from trpo_fast.environments.tensor_environments import TensorEnvironments
from trpo_fast.environments.tensor_source import make_tensor_env
from trpo_fast.rollouts.collector import RolloutCollector
from trpo_fast.rollouts.tensor_collector import TensorCollector

AnyEnvironments = Environments | TensorEnvironments
Collector = RolloutCollector | TensorCollector


def make_collector(
    env: Any,
    config: Config,
    rows: Callable[[Space], RowFormat],
    shared: SharedTraining | None = None,
) -> Collector:
    """The collector of an agent, on the environments that it trains in.

    Args:
        env: what the user named them by; see ``make_vector_env`` and ``make_tensor_env``.
        config: the agent's options; `seed` must be set.
        rows: makes the format of their observations from the space.
        shared: the ranks that share them out; None where all are here.

    Raises ConfigError for observations that these environments or ranks do not serve.
    """
    with _options_out_of_place(config.env_kwargs):
        if config.vectorization == "tensor":
            tensors = tensor_environments(env, config)
            if not isinstance(rows(tensors.observation_space), ObservationFlattener):
                tensors.close()
                raise ConfigError(
                    "tensor environments are shown to policies as flattened rows, and this policy "
                    f"takes {tensors.observation_space} as it is: use policy='mlp', or a module "
                    "without observation = 'structured'"
                )
            return TensorCollector(tensors, on_fault=config.on_fault)
        made = make_vector_env(
            env,
            num_envs=config.num_envs if shared is None else shared.own_envs,
            vectorization=config.vectorization,
            seed=config.seed,
            env_kwargs=config.env_kwargs,
            num_workers=config.num_workers,
            step_timeout=config.step_timeout,
            rows=rows,
            first=0 if shared is None else shared.first,
        )
        if shared is None:
            return RolloutCollector(made, on_fault=config.on_fault)
        of = shared.first, shared.total
        return RolloutCollector(made, on_fault=config.on_fault, of=of)


def require_served(config: Config, *, remembers: bool, shared: bool) -> None:
    """ConfigError for what cannot be trained together.

    Args:
        config: the options.
        remembers: whether the policy has a memory.
        shared: whether several ranks share the training.
    """
    if remembers and config.vectorization == "tensor":
        raise ConfigError(
            "tensor environments are not served with a recurrent policy: use another one, or "
            "environments that step in NumPy"
        )
    if shared and config.vectorization == "tensor":
        raise ConfigError(
            "several ranks do not share out tensor environments, for now: start one process, or "
            "use environments that step in NumPy"
        )


def tensor_environments(env: Any, config: Config) -> TensorEnvironments:
    """Tensor environments, on the device that the options name.

    Raises ConfigError where they are elsewhere.
    """
    made = make_tensor_env(
        env,
        num_envs=config.num_envs,
        seed=int(config.seed or 0),
        env_kwargs=config.env_kwargs,
        device=config.device,
    )
    if config.device != "auto" and torch.device(config.device).type != made.device.type:
        made.close()
        raise ConfigError(
            f"device={config.device!r}, but the tensors of {made.name} are on {made.device}: leave "
            "it at 'auto', or make the environment there"
        )
    return made


def device_of(collector: Collector) -> torch.device | None:
    """Where the networks of an agent go; None where its options alone decide."""
    env = collector.env
    return env.device if isinstance(env, TensorEnvironments) else None


@contextlib.contextmanager
def _options_out_of_place(env_kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Say so where an environment refuses an argument that is the agent's."""
    try:
        yield
    except EnvironmentSetupError as error:
        for name in env_kwargs:
            if name in OPTIONS and f"unexpected keyword argument '{name}'" in str(error):
                raise EnvironmentSetupError(
                    f"{error}. {name} is an option of the agent, not of its environment: give it "
                    f"beside env_kwargs, as TRPO(env, {name}={env_kwargs[name]!r})"
                ) from error
        raise
