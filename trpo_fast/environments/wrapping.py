"""Wrappers of environments by name, ``module:Class``, as `TRPO` and the command take them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from trpo_fast.base.errors import EnvironmentSetupError
from trpo_fast.environments.make import environment_name


def wrapped(env: Any, wrappers: str) -> Callable[..., gym.Env[Any, Any]]:
    """A function that makes an environment and puts wrappers around it.

    It holds names alone, so that it can be pickled and shares nothing with the program.

    Args:
        env: an id, its specification, or a function that makes one.
        wrappers: "module:name", several with commas between, the innermost first. Each is called
            with the environment and gives another.

    Raises EnvironmentSetupError for another kind of environment, a name that is none, or that
    cannot be imported; what is made does where a wrapper gives no environment.
    """
    named = isinstance(env, str | EnvSpec)
    if not named and (isinstance(env, gym.Env | gym.vector.VectorEnv) or not callable(env)):
        raise EnvironmentSetupError(
            f"wrapper={wrappers!r} wraps environments as they are made, and "
            f"{environment_name(env)} is already made: wrap it yourself, or give its id"
        )
    names = tuple(name.strip() for name in wrappers.split(","))
    for name in names:
        _load(name)
    made = partial(_make, env, names)
    made.__dict__["__name__"] = environment_name(env)  # what messages call it by
    return made


def _make(env: Any, names: tuple[str, ...], **kwargs: Any) -> gym.Env[Any, Any]:
    made: Any = gym.make(env, **kwargs) if isinstance(env, str | EnvSpec) else env(**kwargs)
    for name in names:
        made = _load(name)(made)
        if not isinstance(made, gym.Env):
            raise EnvironmentSetupError(
                f"the wrapper {name} gave {type(made).__name__}, not a gymnasium.Env"
            )
    around: gym.Env[Any, Any] = made
    return around


def _load(name: str) -> Callable[[Any], Any]:
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise EnvironmentSetupError(
            f"wrapper={name!r} is not module:Class, as in gymnasium.wrappers:TimeAwareObservation"
        )
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # the module's code is somebody's own
        raise EnvironmentSetupError(
            f"the wrapper {name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(found):
        what = "there is none of that name" if found is None else f"it is a {type(found).__name__}"
        raise EnvironmentSetupError(f"the wrapper {name} cannot be used: {what} in {module}")
    wrapper: Callable[[Any], Any] = found
    return wrapper
