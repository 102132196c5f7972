"""The environments that evaluations are played in, and recorded from."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from trpo_fast.agent.evaluation import EnvFactory
from trpo_fast.base.errors import EnvironmentSetupError, MissingExtraError
from trpo_fast.base.install import install_line
from trpo_fast.base.output import remark
from trpo_fast.environments.env_pool import PoolOfOne, only_here
from trpo_fast.environments.headless import draw_without_display
from trpo_fast.environments.make import environment_name, setup_error
from trpo_fast.environments.mujoco_warnings import model_warnings_once
from trpo_fast.environments.processes import closed
from trpo_fast.runs.files import refusal

ARRAY_MODES = ("rgb_array", "rgb_array_list")


def environment_factory(
    env: Any, env_kwargs: Mapping[str, Any], vectorization: str = "sync"
) -> EnvFactory:
    """How to make one more environment of the kind an agent trains on.

    An id that only EnvPool has is made by it, where the agent trains on EnvPool. Raises
    EnvironmentSetupError for an object that carries no recipe for another one; calling the factory
    does where that recipe fails.
    """
    name = environment_name(env)
    if only_here(env, vectorization):
        return partial(PoolOfOne, env, env_kwargs)
    named = isinstance(env, str | EnvSpec)
    if isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv) or not (named or callable(env)):
        env, named, env_kwargs = _spec_of(env), True, {}

    def make() -> gymnasium.Env[Any, Any]:
        try:
            with model_warnings_once(name):
                made: Any = _by_name(env, env_kwargs) if named else env(**env_kwargs)
        except Exception as error:
            raise setup_error(name, error, env_kwargs) from error
        if not isinstance(made, gymnasium.Env):
            raise EnvironmentSetupError(
                f"{name} returned {type(made).__name__}, not a gymnasium.Env, for an evaluation"
            )
        return made

    return make


def _spec_of(env: Any) -> EnvSpec:
    spec = getattr(env, "spec", None)
    if spec is None:
        raise EnvironmentSetupError(
            f"evaluation needs an environment of its own, and {type(env).__name__} has no spec to "
            "make one from: pass env=, an id or a function that makes one (and give TRPO such an "
            "env for eval_every)"
        )
    found: EnvSpec = spec
    return found


def _by_name(env: str | EnvSpec, env_kwargs: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
    """What `gymnasium.make` gives; of the spec of a `make_vec`, one of its environments.

    `make_vec` notes its own arguments among those of the environments.
    """
    if isinstance(env, str) or "vectorization_mode" not in env.kwargs:
        return gymnasium.make(env, **env_kwargs)
    single = copy.copy(env)
    single.kwargs = kwargs = dict(env.kwargs)
    for name in ("vectorization_mode", "num_envs", "vector_kwargs"):
        kwargs.pop(name, None)
    wrappers = kwargs.pop("wrappers", ())
    limit = kwargs.pop("max_episode_steps", None)
    made = gymnasium.make(single, max_episode_steps=limit, **env_kwargs)
    for wrapper in wrappers:
        made = wrapper(made)
    return made


def require_another(make_env: Callable[[], Any]) -> None:
    """Make one environment and close it: what would end a run at its first evaluation.

    Raises EnvironmentSetupError with the ways out.
    """
    try:
        made = make_env()
    except EnvironmentSetupError as error:
        raise EnvironmentSetupError(
            f"eval_every needs an environment beside those of the training, and none can be made: "
            f"{error} Give TRPO an id or a function that makes one, or leave eval_every at 0."
        ) from error
    closed(made.close)  # what that raises, each evaluation will tell


def recording_factory(env: Any, env_kwargs: Mapping[str, Any], directory: Path) -> EnvFactory:
    """Like `environment_factory`, with a video of every episode in `directory`.

    The environment raises MissingExtraError or EnvironmentSetupError when it cannot be recorded.
    """
    from gymnasium.wrappers import RecordVideo

    class Recording(RecordVideo):
        def stop_recording(self) -> None:
            if self.recorded_frames:
                super().stop_recording()  # type: ignore[no-untyped-call]
            self.recording = False  # without a warning where the first frame was refused

        def close(self) -> None:
            try:
                self.stop_recording()
            except Exception as error:
                raise EnvironmentSetupError(
                    f"the video of {name} could not be written: {type(error).__name__}: {error}"
                ) from error
            super().close()  # type: ignore[no-untyped-call]

    make = _rendering_factory(env, env_kwargs)
    name = environment_name(env)

    def make_recording() -> gymnasium.Env[Any, Any]:
        made = make()
        if made.render_mode not in ARRAY_MODES:
            modes = made.metadata.get("render_modes", [])
            made.close()
            raise EnvironmentSetupError(
                f"{name} cannot be recorded: its render mode is {made.render_mode!r} (it knows "
                f"{', '.join(map(str, modes)) or 'none'}), and a video needs 'rgb_array'"
            )
        reason = draw_without_display(made, remark)
        if reason is not None:
            made.close()
            raise EnvironmentSetupError(f"{name} cannot be recorded: {reason}")
        try:
            return Recording(_Frames(made, name), str(directory), episode_trigger=lambda _: True)
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            text = f"recording videos needs more packages: {install_line('video')}"
            raise MissingExtraError(f"{text} ({error})") from error
        except OSError as error:
            raise EnvironmentSetupError(
                f"no video can be written to {directory}: {refusal(error)}"
            ) from error
        except (ValueError, TypeError, gymnasium.error.Error) as error:
            raise EnvironmentSetupError(f"{name} cannot be recorded: {error}") from error

    return make_recording


def _rendering_factory(env: Any, env_kwargs: Mapping[str, Any]) -> EnvFactory:
    """Environments made with render_mode="rgb_array", unless they choose their own."""
    asked = {**env_kwargs, "render_mode": "rgb_array"}
    if isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv):
        spec = _spec_of(env)
        return environment_factory(spec, {"render_mode": "rgb_array"})
    if isinstance(env, str | EnvSpec) or not callable(env):
        return environment_factory(env, asked)
    try:
        parameters = inspect.signature(env).parameters.values()
        takes = any(p.name == "render_mode" or p.kind is p.VAR_KEYWORD for p in parameters)
    except (TypeError, ValueError):  # a callable of C, say
        takes = True
    return environment_factory(env, asked if takes else env_kwargs)


class _Frames(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Passes on frames that make a video, and names what is wrong with any other."""

    def __init__(self, env: gymnasium.Env[Any, Any], name: str) -> None:
        super().__init__(env)
        self._name = name

    def render(self) -> Any:
        """The frame, or frames."""
        try:
            found: Any = self.env.render()
        except Exception as error:
            raise EnvironmentSetupError(
                f"{self._name} cannot be recorded: its render() raised {type(error).__name__}: "
                f"{error}"
            ) from error
        for frame in found if isinstance(found, list) else [found]:
            shape = np.shape(frame)
            if not isinstance(frame, np.ndarray) or len(shape) != 3 or shape[2] not in (3, 4):
                what = f"an array of shape {shape}" if shape else type(frame).__name__
                raise EnvironmentSetupError(
                    f"{self._name} cannot be recorded: its render() gave {what}, and a video "
                    "needs frames [height, width, 3]"
                )
        return found
