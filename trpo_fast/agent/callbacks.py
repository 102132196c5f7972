"""Callbacks of `TRPO.learn`, in the two forms that Stable-Baselines3 takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LocalsGlobals = dict[str, Any]
Callback = Callable[[LocalsGlobals, LocalsGlobals], Any] | Any


class CallbackRunner:
    """Calls a function `f(locals, globals)`, or an object with `on_step()`, once an update.

    Returning False (exactly) stops the training after the update. Objects may also have
    `init_callback(agent)`, `on_training_start(locals, globals)` and `on_training_end()`; those of
    Stable-Baselines3 fit. Raises TypeError for anything else.
    """

    def __init__(self, callback: Callback | None, agent: Any) -> None:
        if not (callback is None or callable(callback) or hasattr(callback, "on_step")):
            raise TypeError(
                "callback is a function of (locals, globals) or an object with on_step(), "
                f"got {type(callback).__name__}"
            )
        self._callback = callback
        self._call("init_callback", agent)

    def start(self, local: LocalsGlobals, global_: LocalsGlobals) -> None:
        """Called once, before the first update."""
        self._call("on_training_start", local, global_)

    def step(self, local: LocalsGlobals, global_: LocalsGlobals) -> bool:
        """After an update; False when the training is to stop."""
        if self._callback is None:
            return True
        if hasattr(self._callback, "on_step"):
            return self._callback.on_step() is not False
        return self._callback(local, global_) is not False

    def end(self) -> None:
        """After the last update, when the training was not cut short by an error."""
        self._call("on_training_end")

    def _call(self, name: str, *arguments: Any) -> None:
        method = getattr(self._callback, name, None)
        if callable(method):
            method(*arguments)
