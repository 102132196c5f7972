"""Callbacks of `TRPO.learn`, in the two forms that Stable-Baselines3 takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from trpo_fast.agent.sb3_callbacks import Sb3Callback, is_sb3_callback

LocalsGlobals = dict[str, Any]
Callback = Callable[[LocalsGlobals, LocalsGlobals], Any] | Any


class CallbackRunner:
    """Calls a function `f(locals, globals)`, or an object with `on_step()`, once an update.

    Returning False (NumPy's too, but no other value) stops the training after the update. Objects
    may also have `init_callback(agent)`, `on_training_start(locals, globals)` and
    `on_training_end()`. Those of Stable-Baselines3 are served as sb3_callbacks.py says. A list is
    called one by one; ``total_timesteps`` is where the training ends. Raises TypeError for anything
    else.
    """

    def __init__(
        self, callback: Callback | list[Callback] | None, agent: Any, total_timesteps: int
    ) -> None:
        given = callback if isinstance(callback, list | tuple) else [callback]
        self._callbacks = [_checked(each, total_timesteps) for each in given if each is not None]
        self._call("init_callback", agent)

    def start(self, local: LocalsGlobals, global_: LocalsGlobals) -> None:
        """Called once, before the first update."""
        self._call("on_training_start", local, global_)

    def step(self, local: LocalsGlobals, global_: LocalsGlobals) -> bool:
        """After an update; False when the training is to stop."""
        going = True
        for callback in self._callbacks:
            has_step = hasattr(callback, "on_step")
            answer = callback.on_step() if has_step else callback(local, global_)
            going = going and not (isinstance(answer, bool | np.bool_) and not answer)
        return going

    def end(self) -> None:
        """After the last update, when the training was not cut short by an error."""
        self._call("on_training_end")

    def _call(self, name: str, *arguments: Any) -> None:
        for callback in self._callbacks:
            method = getattr(callback, name, None)
            if callable(method):
                method(*arguments)


def _checked(callback: Any, total_timesteps: int) -> Any:
    if is_sb3_callback(callback):
        return Sb3Callback(callback, total_timesteps)
    if not (callable(callback) or hasattr(callback, "on_step")):
        raise TypeError(
            "callback is a function of (locals, globals), an object with on_step(), or a list of "
            f"those; got {type(callback).__name__}"
        )
    return callback
