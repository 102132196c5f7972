"""Whole episodes of a policy, apart from training.

Episodes are seeded by their number, so a score depends neither on how many environments run side
by side nor on what training did with its random numbers.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from trpo_fast.base.errors import (
    BadObservationError,
    EnvironmentFault,
    EnvironmentSetupError,
    MissingExtraError,
)
from trpo_fast.environments.make import environment_name
from trpo_fast.environments.mujoco_warnings import model_warnings_once

EnvFactory = Callable[[], gymnasium.Env[Any, Any]]
# (raw observations of n environments, their infos) -> n actions for env.step.
Act = Callable[[Sequence[Any], Sequence[dict[str, Any]]], Sequence[Any]]

MAX_PARALLEL = 16
# Keeps evaluation episodes apart from training's, which are keyed (seed, environment, episode).
EVALUATION_KEY = 0xE7A1


@dataclass(frozen=True)
class Evaluation:
    """Returns and lengths of the episodes, in order of their number."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns (population)."""
        return float(np.std(self.returns))

    @property
    def mean_length(self) -> float:
        """Mean length in steps."""
        return float(np.mean(self.lengths))


def run_episodes(
    act: Act,
    make_env: EnvFactory,
    episodes: int,
    *,
    seed: int,
    parallel: int = MAX_PARALLEL,
) -> Evaluation:
    """Play so many episodes and report their returns.

    Every environment plays a fixed share of the episodes: taking whichever finish first would
    favour short ones. Raises ValueError when `episodes` is below 1, EnvironmentFault when an
    environment returns NaN or infinity.
    """
    given: object = episodes
    if not isinstance(given, numbers.Integral) or episodes < 1:
        raise ValueError(f"an evaluation needs a whole number >= 1 of episodes, got {episodes!r}")
    envs: list[gymnasium.Env[Any, Any]] = []
    returns, lengths = [0.0] * episodes, [0] * episodes
    try:
        envs.extend(make_env() for _ in range(min(episodes, parallel)))
        current = list(range(len(envs)))
        starts = [env.reset(seed=episode_seed(seed, i)) for i, env in enumerate(envs)]
        observations, infos = [s[0] for s in starts], [s[1] for s in starts]
        while any(number < episodes for number in current):
            playing = [i for i, number in enumerate(current) if number < episodes]
            shown = [_with_mask(envs[i], infos[i]) for i in playing]
            try:
                actions = act([observations[i] for i in playing], shown)
            except BadObservationError as error:
                index = playing[error.env]
                step = lengths[current[index]]
                where = f"evaluation episode {current[index]}, step {step}"
                raise EnvironmentFault(f"{where}: {error}", env_index=index, step=step) from error
            for i, action in zip(playing, actions, strict=True):
                observations[i], reward, terminated, truncated, infos[i] = envs[i].step(action)
                returns[current[i]] += float(reward)
                lengths[current[i]] += 1
                if terminated or truncated:
                    current[i] += len(envs)
                    if current[i] < episodes:
                        start = episode_seed(seed, current[i])
                        observations[i], infos[i] = envs[i].reset(seed=start)
    finally:
        for env in envs:
            env.close()
    return Evaluation(tuple(returns), tuple(lengths))


def _with_mask(env: gymnasium.Env[Any, Any], info: dict[str, Any]) -> dict[str, Any]:
    """The info, with the mask of an environment that has a method for it (sb3-contrib's way)."""
    if "action_mask" in info or not env.has_wrapper_attr("action_masks"):
        return info
    return {**info, "action_mask": env.get_wrapper_attr("action_masks")()}


def episode_seed(seed: int, episode: int) -> int:
    """The seed that evaluation episode `episode` is reset with."""
    return int(np.random.SeedSequence((seed, EVALUATION_KEY, episode)).generate_state(1)[0])


def environment_factory(env: Any, env_kwargs: dict[str, Any]) -> EnvFactory:
    """How to make one more environment of the kind an agent trains on.

    Raises ValueError for an environment object that carries no recipe for another one.
    """

    def make() -> gymnasium.Env[Any, Any]:
        with model_warnings_once(environment_name(env)):
            made: gymnasium.Env[Any, Any]
            named = isinstance(env, str | EnvSpec)
            made = gymnasium.make(env, **env_kwargs) if named else env(**env_kwargs)
            return made

    if isinstance(env, str | EnvSpec):
        return make
    if not isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv) and callable(env):
        return make
    spec = getattr(env, "spec", None)
    if spec is None:
        raise ValueError(
            f"evaluation needs an environment of its own, and {type(env).__name__} has no spec to "
            "make one from: pass env=, an id or a function that makes one (and give TRPO such an "
            "env for eval_every)"
        )
    return lambda: gymnasium.make(spec)


def recording_factory(env: Any, env_kwargs: dict[str, Any], directory: Path) -> EnvFactory:
    """Like `environment_factory`, with a video of every episode in `directory`.

    The environment raises MissingExtraError or EnvironmentSetupError when it cannot be recorded.
    """
    from gymnasium.wrappers import RecordVideo

    make = environment_factory(env, {**env_kwargs, "render_mode": "rgb_array"})

    def make_recording() -> gymnasium.Env[Any, Any]:
        try:
            return RecordVideo(make(), str(directory), episode_trigger=lambda _: True)
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            text = "recording videos needs more packages: pip install 'trpo-fast[video]'"
            raise MissingExtraError(f"{text} ({error})") from error
        except (ValueError, TypeError, gymnasium.error.Error) as error:
            raise EnvironmentSetupError(f"this environment cannot be recorded: {error}") from error

    return make_recording
