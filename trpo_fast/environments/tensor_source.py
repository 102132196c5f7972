"""From what a user names a tensor environment by to one that is stepped."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from trpo_fast.base.errors import (
    EnvironmentSetupError,
    MissingExtraError,
    UnknownEnvironmentError,
)
from trpo_fast.environments.make import environment_name, setup_error
from trpo_fast.environments.tensor_environments import TensorEnvironments


def make_tensor_env(
    source: Any,
    *,
    num_envs: int,
    seed: int,
    env_kwargs: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> TensorEnvironments:
    """The environments of a run with ``vectorization="tensor"``.

    Args:
        source: the object (see ``tensor_contracts.py``), a function that makes it, or
            "module:factory", which is imported.
        num_envs: B, for a function that takes it; an object has its own.
        seed: likewise; and of the first reset, where that takes one.
        env_kwargs: further keyword arguments of the function.
        device: likewise, unless "auto"; the environment's tensors must then be there.

    Raises:
        EnvironmentSetupError: it cannot be made, or lacks a part of the contract.
        EnvironmentFault: its first reset raised.
    """
    kwargs = dict(env_kwargs or {})
    name = environment_name(source)
    if not is_recipe(source):
        if kwargs:
            raise EnvironmentSetupError(
                f"env_kwargs {sorted(kwargs)} come too late for {name}, which is already made; "
                "give them to its constructor, or pass a function instead."
            )
        made = source
    else:
        factory = _imported(source) if isinstance(source, str) else source
        options = {"num_envs": num_envs, "seed": seed, "device": device}
        if device == "auto":
            del options["device"]
        given = {**_taken(factory, options), **kwargs}
        try:
            made = factory(**given)
        except Exception as error:
            raise setup_error(name, error, kwargs) from error
    return TensorEnvironments(made, name=name, seed=seed)


def is_recipe(source: Any) -> bool:
    """Whether environments can be made from it any number of times."""
    made = hasattr(source, "step") and not isinstance(source, type)
    return isinstance(source, str) or (callable(source) and not made)


def _taken(factory: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that the factory has a parameter for."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a callable of C, say
        return {}
    return {name: value for name, value in options.items() if name in parameters}


def _imported(name: str) -> Callable[..., Any]:
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise EnvironmentSetupError(
            f"vectorization='tensor' takes an environment as module:factory, got {name!r}: a "
            "function of that module that returns the environment (ids of gymnasium's registry "
            "are for the other vectorizations)"
        )
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise UnknownEnvironmentError(f"{name}: there is no module {module!r}") from error
        raise MissingExtraError(f"{name} needs something that is not installed: {error}") from error
    except ImportError as error:
        raise MissingExtraError(f"{name} cannot be imported: {error}") from error
    except Exception as error:  # the module's code is somebody's own
        text = f"{name} cannot be imported: {type(error).__name__}: {error}"
        raise EnvironmentSetupError(text) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UnknownEnvironmentError(f"{name}: {module!r} has no {attribute!r}")
        found = getattr(found, part)
    if not callable(found):
        raise EnvironmentSetupError(
            f"{name} is a {type(found).__name__}; it must be a function (or a class) that makes "
            "the environment"
        )
    return found  # type: ignore[no-any-return]
