"""A training as the options say: from what the user gives to environments, networks and ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from trpo_fast.agent.config import Config
from trpo_fast.agent.learner import Learner
from trpo_fast.agent.making import Collector, device_of, make_collector, require_served
from trpo_fast.agent.policies import row_format
from trpo_fast.agent.shared_training import SharedTraining, shared_by
from trpo_fast.agent.state import Training
from trpo_fast.networks.recurrent import is_recurrent


def asked_for(
    options: Mapping[str, Any], policy: nn.Module | str | None
) -> tuple[Config, nn.Module | None]:
    """The options with a seed, and the policy where it is a module of the user's.

    Raises ConfigError for an option that is unknown or cannot work.
    """
    given = {k: v for k, v in options.items() if k != "env_kwargs" or v is not None}
    module = None if isinstance(policy, str) else policy
    if isinstance(policy, str):
        given["policy"] = policy
    config = Config.from_options(given)
    if config.seed is None:
        config = config.replace(seed=int(np.random.SeedSequence().generate_state(1)[0]))
    return config, module


def make_training(
    env: Any,
    config: Config,
    *,
    env_id: str | None,
    policy: nn.Module | None,
    value_function: nn.Module | None,
    process_group: Any,
    dtype: torch.dtype | None,
) -> Training:
    """A training at its beginning.

    Args:
        env: what the environments are made from.
        env_id: their id; None where the user gave none.
        config: the options; `seed` must be set.
        policy: a module of the user's; None for that which the options name.
        value_function: likewise.
        process_group: of torch.distributed, whose ranks train together; None for this process.
        dtype: of the networks; None for torch's default.

    Raises ConfigError for what cannot be trained so.
    """
    remembers = config.policy == "recurrent" or (policy is not None and is_recurrent(policy))
    require_served(config, remembers=remembers, shared=process_group is not None)
    shared = shared_by(process_group, config)
    if shared is not None:
        config = shared.start(config, env)
    collector = make_collector(env, config, row_format(policy, config.policy), shared)
    try:
        return _with_learner(
            collector,
            config,
            policy=policy,
            value_function=value_function,
            dtype=dtype,
            shared=shared,
            env_id=env_id,
        )
    except BaseException:
        collector.env.close()
        raise


def _with_learner(
    collector: Collector,
    config: Config,
    *,
    policy: nn.Module | None,
    value_function: nn.Module | None,
    dtype: torch.dtype | None,
    shared: SharedTraining | None,
    env_id: str | None,
) -> Training:
    made = collector.env
    config = config.replace(num_envs=made.num_envs if shared is None else shared.total)
    learner = Learner(
        config,
        made.observation_space,
        made.action_space,
        made.row_format,
        policy=policy,
        value_function=value_function,
        dtype=dtype,
        device=device_of(collector),
        num_envs=None if shared is None else shared.learnt_envs,
        shared=None if shared is None or shared.replicated else shared,
    )
    if shared is not None:
        shared.warn_of_rounding(learner.policy)
    given = {"policy": policy, "value_function": value_function}
    return Training(
        env_id,
        config,
        [name for name, module in given.items() if module is not None],
        learner,
        collector,
        np.random.Generator(np.random.Philox(config.seed)),
        shared,
    )
