"""The errors and warnings of our own that more than one package raises."""

from __future__ import annotations

import sys
import warnings
from types import FrameType
from typing import Any

import numpy.typing as npt

_said: set[str] = set()
# Packages whose lines a user has not written.
NOT_THE_USERS = {"trpo_fast", "torch", "contextlib"}


class FallbackWarning(UserWarning):
    """Slower code serves than the one that was built for the case; the text says why."""


def users_level() -> int:
    """`stacklevel` of a warning that is to name the user's line.

    That of the nearest frame, from the caller's on, which is neither of this package nor of torch,
    whose optimizers wrap `step`.
    """
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and _package(frame) in NOT_THE_USERS:
        frame = frame.f_back
        level += 1
    return level


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def say_once(message: str, category: type[Warning] = FallbackWarning) -> None:
    """Warn, of a fallback where nothing else is said, once a process for each text."""
    if message not in _said:
        _said.add(message)
        warnings.warn(message, category, stacklevel=users_level())


class UserError(ValueError):
    """A mistake that its text tells how to mend: the command line shows that and no traceback."""


class EnvironmentSetupError(UserError):
    """An environment that cannot be made or served as asked; the text says what to do instead."""


class UnsupportedSpaceError(EnvironmentSetupError):
    """A space that no policy here can serve; the text lists those that one can."""


class UnknownEnvironmentError(EnvironmentSetupError):
    """No environment of that name is registered; the text offers the nearest ones."""


class MissingExtraError(EnvironmentSetupError, ImportError):
    """A package that the environment needs is not installed; the text gives the command."""


class RankError(RuntimeError):
    """A rank that differs from the others, failed, or is gone; the text says what to do."""


class EnvironmentFault(RuntimeError):  # noqa: N818
    """An environment raised, returned NaN, or lost its process.

    Attributes:
        env_index: which environment of the vector; None when that cannot be known.
        step: the step within its episode, from 1; 0 for a reset; None when unknown.
        action: what it was given, as the environment takes it; None for a reset.
        traceback: text of the original traceback, from a worker process too; "" without one.
    """

    def __init__(
        self,
        message: str | EnvironmentFault,
        *,
        env_index: int | None = None,
        step: int | None = None,
        action: npt.NDArray[Any] | None = None,
        trace: str = "",
    ) -> None:
        super().__init__(str(message))
        self.env_index = env_index
        self.step = step
        self.action = action
        self.traceback = trace
        if isinstance(message, EnvironmentFault):
            # gymnasium re-raises a worker's exception as type(exception)(exception)
            self.__dict__.update(message.__dict__)


class BadObservationError(ValueError):
    """An observation that is not finite; `env` is its place in the batch."""

    def __init__(self, env: int, what: str) -> None:
        super().__init__(
            f"the observation of environment {env} holds {what}: no action can be chosen from it. "
            "Check the environment."
        )
        self.env = env
