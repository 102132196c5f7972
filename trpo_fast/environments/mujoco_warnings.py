"""MuJoCo's own warnings, each shown once instead of once an environment.

MuJoCo writes them from C to stderr and to MUJOCO_LOG.TXT in the working directory, for every
environment made. The command line shows each text once, as any other warning.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import gymnasium


def show_once(env_id: str | None) -> None:
    """Take over MuJoCo's warnings when the environment is one of its own."""
    if env_id is None or ":" in env_id:
        return
    with contextlib.suppress(gymnasium.error.Error, ImportError, AttributeError):
        if "mujoco" not in str(gymnasium.spec(env_id).entry_point):
            return
        import mujoco

        if mujoco.get_mju_user_warning() is None:
            mujoco.set_mju_user_warning(_warn)


def _warn(text: str) -> None:
    # Python shows the same warning of the same line once.
    warnings.warn(f"MuJoCo: {text}", stacklevel=2)


_MADE: set[str] = set()  # names of the environments made in this process


@contextmanager
def model_warnings_once(name: str) -> Iterator[None]:
    """Within, MuJoCo's warnings about the model of ``name`` are kept quiet, but for the first time.

    MuJoCo prints them, and appends them to a file in the working directory, for every copy.
    """
    mujoco = sys.modules.get("mujoco")
    if name not in _MADE or mujoco is None or not hasattr(mujoco, "set_mju_user_warning"):
        yield
        _MADE.add(name)
        return
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda _: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
