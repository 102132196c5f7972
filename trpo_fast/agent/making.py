"""The environments of an agent, made as its options say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trpo_fast.agent.config import OPTIONS, Config
from trpo_fast.base.errors import EnvironmentSetupError
from trpo_fast.base.spaces import Space
from trpo_fast.environments.interface import Environments
from trpo_fast.environments.make import make_vector_env
from trpo_fast.environments.row_format import RowFormat


def make_environments(env: Any, config: Config, rows: Callable[[Space], RowFormat]) -> Environments:
    """The environments that an agent trains in.

    Args:
        env: what the user named them by.
        config: the agent's options.
        rows: makes the format of their observations from the space.
    """
    with _options_out_of_place(config.env_kwargs):
        return make_vector_env(
            env,
            num_envs=config.num_envs,
            vectorization=config.vectorization,
            seed=config.seed,
            env_kwargs=config.env_kwargs,
            num_workers=config.num_workers,
            step_timeout=config.step_timeout,
            rows=rows,
        )


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
