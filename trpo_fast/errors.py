"""Warnings of our own, each said once."""

from __future__ import annotations

import warnings

_said: set[str] = set()


class FallbackWarning(UserWarning):
    """Slower code serves than the one that was built for the case; the text says why."""


def say_once(message: str, stacklevel: int = 5) -> None:
    """Warn of a fallback, once a process for each text."""
    if message not in _said:
        _said.add(message)
        warnings.warn(message, FallbackWarning, stacklevel=stacklevel + 1)
