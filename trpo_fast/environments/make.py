"""From what a user names an environment by to a vector of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv

from trpo_fast.base.errors import (
    EnvironmentFault,
    EnvironmentSetupError,
    MissingExtraError,
    UnknownEnvironmentError,
    UnsupportedSpaceError,
)
from trpo_fast.base.install import install_line
from trpo_fast.base.spaces import Space, check_action_space
from trpo_fast.environments import env_pool
from trpo_fast.environments.automatic import (
    START_METHOD,
    AutomaticEnvironments,
    why_not_workers,
)
from trpo_fast.environments.flattening import ObservationFlattener
from trpo_fast.environments.gymnasium_vectors import LocalEnvironments
from trpo_fast.environments.interface import Environments
from trpo_fast.environments.mujoco_warnings import model_warnings_once
from trpo_fast.environments.nested_actions import own_space
from trpo_fast.environments.origins import is_importable, newest_version, registering_package
from trpo_fast.environments.process_vector import ProcessEnvironments
from trpo_fast.environments.row_format import RowFormat
from trpo_fast.environments.seeded_episodes import SeededEpisodes
from trpo_fast.environments.vector_environment import VectorEnvironment
from trpo_fast.environments.vector_masks import without_mask
from trpo_fast.environments.vectorization import VECTORIZATIONS
from trpo_fast.environments.workers import Workers

Environment = (
    str | EnvSpec | Callable[..., gym.Env[Any, Any]] | gym.Env[Any, Any] | VectorEnv[Any, Any, Any]
)
# The module whose absence an environment complains of, and the extra that brings it.
_EXTRAS = {"mujoco": "mujoco", "box2d": "box2d", "pygame": "video", "moviepy": "video"}


def make_vector_env(
    env: Environment,
    *,
    num_envs: int = 8,
    vectorization: str = "sync",
    seed: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    num_workers: int = 0,
    step_timeout: float = 0.0,
    rows: Callable[[Space], RowFormat] = ObservationFlattener,
    first: int = 0,
) -> Environments:
    """A vector of ``num_envs`` environments with seeded, replayable episodes.

    Args:
        env: an id of gymnasium's registry, a factory (called once per environment), one Env
            (a vector of one), or a gymnasium vector environment, which is used as it is:
            ``num_envs`` is then its own, and its episodes cannot be replayed.
        num_envs: B, >= 1.
        vectorization: "sync" (in this process), "workers" (some processes and this one, a share
            each, through shared memory), "auto" ("sync" until its first steps tell that "workers"
            pay; what is made already stays "sync"), "async" (one process each), or "envpool" (an
            id of EnvPool, stepped by its threads; its episodes cannot be replayed). All but the
            last give the same episodes, to the bit.
        seed: every episode is seeded from it, the environment's index and the episode's number;
            None draws one (kept in ``.seed``).
        env_kwargs: keyword arguments of the environment's constructor.
        num_workers: processes of "workers" besides this one; 0: as many as there are other cores.
        step_timeout: seconds after which a step or a reset in another process is taken to hang, and
            one in this process is told of, since nobody can end it; 0: never.
        rows: makes the format of the observations from their space, as `ObservationFlattener` and
            `ObservationPacker` do.
        first: number of the first of them, where others are another process's: their episodes are
            seeded accordingly.

    Raises:
        EnvironmentSetupError: the environment cannot be made or served; its kinds are
            UnknownEnvironmentError, MissingExtraError and UnsupportedSpaceError.
        EnvironmentFault: a worker process could not make its environment.
    """
    _check_arguments(num_envs, vectorization, seed)
    if not (isinstance(env, str | EnvSpec | gym.Env | VectorEnv) or callable(env)):
        raise EnvironmentSetupError(
            f"env is {env!r}; it must be an id such as 'CartPole-v1', a function that makes an "
            "environment, an Env or a vector environment."
        )
    seed = (
        int(np.random.SeedSequence().generate_state(2, np.uint64)[0] >> 1) if seed is None else seed
    )
    name = environment_name(env)
    if isinstance(env, VectorEnv):
        _refuse_kwargs(env_kwargs, name)
        return VectorEnvironment(env, name=name, seed=seed + first, rows=rows)
    if vectorization == "envpool":
        pool = _pool(env, num_envs, seed + first, env_kwargs or {})
        return VectorEnvironment(pool, name=name, seed=seed + first, rows=rows)
    if isinstance(env, gym.Env):
        _refuse_kwargs(env_kwargs, name)
        if vectorization in ("workers", "async"):
            raise EnvironmentSetupError(
                f"one {name} object cannot run in several processes; pass its id or a function "
                "that makes one, or use vectorization='sync'."
            )
        num_envs = 1
    kwargs = dict(env_kwargs or {})
    factories = [_Factory(env, kwargs, name, seed, i, first) for i in range(num_envs)]
    if vectorization == "workers":
        return _workers(factories, rows, num_workers, step_timeout)
    local = vectorization if vectorization == "async" else "sync"
    make = partial(_vector, factories, rows, local, step_timeout)
    vector = VectorEnvironment(make(), name=name, seed=seed, remake=make, rows=rows)
    if vectorization != "auto":
        return vector
    reason = why_not_workers(env, vector.vector.envs[0], env_kwargs or {}, num_envs, num_workers)
    if reason is not None:
        vector.choice = f"sync: {reason}"
        return vector
    return AutomaticEnvironments(
        vector,
        partial(_workers, factories, rows, num_workers, step_timeout),
        num_workers,
        step_timeout,
    )


def environment_name(env: Environment) -> str:
    """What to call an environment in messages and directory names."""
    if isinstance(env, str):
        return env
    spec = env if isinstance(env, EnvSpec) else getattr(env, "spec", None)
    if spec is not None:
        return str(spec.id)
    if isinstance(env, gym.Env):
        return type(env.unwrapped).__name__
    return str(getattr(env, "__name__", type(env).__name__))


def _check_arguments(num_envs: Any, vectorization: Any, seed: Any) -> None:
    if not isinstance(num_envs, int) or num_envs < 1:
        raise EnvironmentSetupError(f"num_envs must be a whole number >= 1, got {num_envs!r}.")
    if vectorization not in VECTORIZATIONS:
        raise EnvironmentSetupError(
            f"vectorization must be one of {', '.join(VECTORIZATIONS)}; got {vectorization!r}."
        )
    if seed is not None and (not isinstance(seed, int) or seed < 0):
        raise EnvironmentSetupError(f"seed must be a whole number >= 0, got {seed!r}.")


def _refuse_kwargs(env_kwargs: Mapping[str, Any] | None, name: str) -> None:
    if env_kwargs:
        raise EnvironmentSetupError(
            f"env_kwargs {sorted(env_kwargs)} come too late for {name}, which is already made; "
            "give them to its constructor, or pass an id or a function instead."
        )


def _pool(
    env: Environment, num_envs: int, seed: int, env_kwargs: Mapping[str, Any]
) -> VectorEnv[Any, Any, Any]:
    if not isinstance(env, str):
        raise EnvironmentSetupError(
            f"EnvPool makes environments by their ids; it cannot step {environment_name(env)}, "
            "which is an object of Python. Use vectorization='sync' or 'async'."
        )
    if not env_pool.is_installed():
        raise MissingExtraError(
            "vectorization='envpool' needs a package that is not installed. "
            f"Install it with: {install_line('envpool')}"
        )
    return env_pool.PooledEnvironments(env, num_envs, seed, env_kwargs)


class _Factory:
    """Makes environment ``index``; picklable, for worker processes that are not forked."""

    def __init__(
        self, env: Any, kwargs: dict[str, Any], name: str, seed: int, index: int, first: int
    ) -> None:
        self.env = env
        self.kwargs = kwargs
        self.name = name
        self.seed = seed
        self.index = index
        self.first = first

    def __call__(self) -> SeededEpisodes:
        try:
            made = self._make()
        except Exception as error:
            raise setup_error(self.name, error, self.kwargs) from error
        if not isinstance(made, gym.Env):
            raise EnvironmentSetupError(
                f"{self.name} returned {type(made).__name__}, not a gymnasium.Env. A vector "
                "environment is passed itself, not through a function."
            )
        return SeededEpisodes(made, self.seed, self.index, self.first)

    def _make(self) -> Any:
        if isinstance(self.env, gym.Env):
            return self.env
        with model_warnings_once(self.name):
            if isinstance(self.env, (str, EnvSpec)):
                return gym.make(self.env, **self.kwargs)
            return self.env(**self.kwargs)


def _first(factories: Sequence[_Factory], rows: Callable[[Space], RowFormat]) -> SeededEpisodes:
    """The first environment, whose spaces are served.

    It is made before any other: what fails later fails once per process, with a longer text.
    """
    first = factories[0]()
    try:
        check_action_space(own_space(first.action_space))
        rows(without_mask(first.observation_space, own_space(first.action_space)))
    except UnsupportedSpaceError:
        first.close()
        raise
    return first


def _workers(
    factories: Sequence[_Factory],
    rows: Callable[[Space], RowFormat],
    num_workers: int,
    step_timeout: float,
    start_timeout: float | None = None,
) -> Workers:
    first, auto = _first(factories, rows), start_timeout is not None
    if auto:
        first.env.close()  # whose exception keeps `auto` from it: it closes copies amid a run
    else:
        first.close()
    return Workers(
        factories,
        first.observation_space,
        first.action_space,
        name=factories[0].name,
        seed=factories[0].seed,
        workers=num_workers,
        step_timeout=step_timeout,
        start_timeout=start_timeout,
        rows=rows,
        method=START_METHOD if auto else "",
    )


def _vector(
    factories: Sequence[_Factory],
    rows: Callable[[Space], RowFormat],
    vectorization: str,
    step_timeout: float,
) -> VectorEnv[Any, Any, Any]:
    first = _first(factories, rows)
    # SAME_STEP spends no step on resetting, and leaves nothing pending between two steps that
    # a checkpoint would have to keep.
    mode = AutoresetMode.SAME_STEP
    if vectorization == "sync":
        return LocalEnvironments(
            [lambda: first, *factories[1:]], watched=factories[0].name, step_timeout=step_timeout
        )
    first.close()
    try:
        return ProcessEnvironments(factories, mode, factories[0].name, step_timeout)
    except EnvironmentFault as fault:
        # the frames of the traceback keep the half-made vector, and with it its processes, alive
        raise fault.with_traceback(None) from None
    except (EOFError, OSError, RuntimeError) as error:
        raise EnvironmentSetupError(
            f"the processes of {factories[0].name} could not be started: "
            f"{type(error).__name__}: {str(error) or 'one of them died'}"
        ) from None


def setup_error(name: str, error: Exception, kwargs: Mapping[str, Any]) -> EnvironmentSetupError:
    """What an exception in making an environment is in words."""
    text = str(error)
    if isinstance(error, EnvironmentSetupError):
        return error
    if isinstance(error, gym.error.UnregisteredEnv):
        hint = registering_package(name) or _suggestion(name)
        return UnknownEnvironmentError(f"there is no environment {name!r}.{hint}")
    newer = newest_version(name)
    if isinstance(error, ImportError) and newer is not None and "have been moved" in text:
        return UnknownEnvironmentError(
            f"gymnasium no longer has {name!r}. Did you mean {newer}? ({text})"
        )
    if isinstance(error, (gym.error.DependencyNotInstalled, ImportError)):
        sure = isinstance(error, (gym.error.DependencyNotInstalled, ModuleNotFoundError))
        return MissingExtraError(_install_text(name, text, sure))
    given = f" with {dict(kwargs)}" if kwargs else ""
    return EnvironmentSetupError(f"{name} could not be made{given}: {type(error).__name__}: {text}")


def _suggestion(name: str) -> str:
    known = {key.lower(): key for key in gym.registry}
    base = name.lower().rpartition("-v")[0] or name.lower()
    near = [key for key in known if key.rpartition("-v")[0] == base]
    near = near[-1:] or difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if not near:
        return (
            " gymnasium.envs.registry lists those there are; one of your own needs "
            "gymnasium.register, or the form 'module:Name-v0'."
        )
    return f" Did you mean {' or '.join(known[key] for key in near)}?"


def _install_text(name: str, reason: str, sure: bool) -> str:
    """What to install; unless ``sure``, only what is not there (a module may fail to load)."""
    lowered = reason.lower()
    for module, extra in _EXTRAS.items():
        if module in lowered and (sure or not is_importable(module)):
            return (
                f"{name} needs a package that is not installed. "
                f"Install it with: {install_line(extra)}"
            )
    return f"{name} needs something that cannot be imported: {reason}"
