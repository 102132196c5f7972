"""Stable-Baselines3's callbacks on this agent.

They count and ask by environment step, and the agent calls once an update: after each, the steps of
its rollout are gone through one by one, with the policy as it is after the update. Frequencies such
as EvalCallback's therefore mean what they mean there, rounded up to the end of an update.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

from trpo_fast.base.output import remark

INFO = 20
_HOME = "stable_baselines3.common.callbacks"


def is_sb3_callback(callback: Any) -> bool:
    """Whether this is one of theirs, or of a subclass; without importing them."""
    return any(kind.__module__ == _HOME for kind in type(callback).__mro__)


class Sb3Callback:
    """One of Stable-Baselines3's callbacks, or a list of them, as `CallbackRunner` calls it.

    Args:
        callback: a BaseCallback.
        total_timesteps: where the training ends, counted as theirs is: from the agent's first step.
    """

    def __init__(self, callback: Any, total_timesteps: int) -> None:
        self._callback = callback
        self._total_timesteps = total_timesteps
        self._model: Any = None

    def init_callback(self, agent: Any) -> None:
        """Show the callback the agent as a model of theirs."""
        self._model = _Model(agent)
        with warnings.catch_warnings():
            # EvalCallback's, about the class of a vector of environments that is not theirs.
            warnings.filterwarnings("ignore", "Training and eval env are not of the same type")
            self._callback.init_callback(self._model)

    def on_training_start(self, local: Mapping[str, Any], global_: Mapping[str, Any]) -> None:
        """Before the first update."""
        seen = {**local, "self": self._model, "total_timesteps": self._total_timesteps}
        self._callback.on_training_start(seen, dict(global_))
        self._callback.on_rollout_start()

    def on_step(self) -> bool:
        """After an update: each step of its rollout; False when one of them stops the training."""
        model = self._model
        rewards, ended, valid = model.agent.last_steps
        done = model.agent.num_timesteps - int(valid.sum())
        going = True
        for step in range(len(rewards)):
            done += int(valid[step].sum())
            model.num_timesteps = done
            infos: list[dict[str, Any]] = [{} for _ in rewards[step]]
            shown = {"rewards": rewards[step], "dones": ended[step], "infos": infos}
            self._callback.update_locals({**shown, "n_steps": step})
            if not self._callback.on_step():
                going = False
                break
        model.num_timesteps = model.agent.num_timesteps
        self._callback.on_rollout_end()
        if going:
            self._callback.on_rollout_start()
        return going

    def on_training_end(self) -> None:
        """After the last update."""
        self._callback.on_training_end()


class _Model:
    """What a callback may ask of `self.model`: the agent's own attributes, and those below."""

    verbose = 0

    def __init__(self, agent: Any) -> None:
        self.agent = agent
        self.num_timesteps = agent.num_timesteps
        self.logger = _Logger(agent)
        self.n_envs = agent.config.num_envs
        self._envs = _Environments(agent)

    def get_env(self) -> _Environments:
        return self._envs

    def dump_logs(self, iteration: int = 0) -> None:
        """Nothing to do: the row is written with the next update."""

    def get_vec_normalize_env(self) -> None:
        """The agent's statistics are its own."""

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self.agent, name)
        except AttributeError:
            raise AttributeError(
                f"a callback asked for model.{name}, which trpo_fast's agent does not have"
            ) from None


class _Environments:
    """`self.training_env`: how many environments there are, and of what spaces."""

    def __init__(self, agent: Any) -> None:
        self.num_envs = agent.config.num_envs
        self.observation_space = agent.observation_space
        self.action_space = agent.action_space

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a callback asked for training_env.{name}; of the training's environments it may see "
            "num_envs, observation_space and action_space"
        )


class _Logger:
    """`self.logger`: numbers recorded here go to TensorBoard with the next update's."""

    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self.name_to_value: dict[str, Any] = {}
        self._averaged: dict[str, int] = {}  # how many numbers a mean has, since the last row

    def record(self, key: str, value: Any, exclude: Any = None) -> None:
        del exclude
        self.name_to_value[key] = value
        with contextlib.suppress(TypeError, ValueError):  # a text or a picture: rows hold numbers
            self._agent.callback_figures[key] = float(value)

    def record_mean(self, key: str, value: Any, exclude: Any = None) -> None:
        """The mean of what is recorded for one row, as theirs is of what one dump writes."""
        if key not in self._agent.callback_figures:
            self._averaged[key] = 0
        count = self._averaged[key] = self._averaged.get(key, 0) + 1
        before = self.name_to_value[key] if count > 1 else 0.0
        self.record(key, before + (value - before) / count, exclude)

    def dump(self, step: int = 0) -> None:
        """Nothing to do: the row is written with the next update."""

    def log(self, *arguments: Any, level: int = INFO) -> None:
        """Print, as theirs does at level INFO and above."""
        if level >= INFO:
            remark(" ".join(map(str, arguments)))

    def debug(self, *arguments: Any) -> None:
        """Not shown."""

    info = warn = error = log
