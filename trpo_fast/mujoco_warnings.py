"""MuJoCo's own warnings, each shown once instead of once an environment.

MuJoCo writes them from C to stderr and to MUJOCO_LOG.TXT in the working directory, for every
environment made. The command line shows each text once, as any other warning.
"""

from __future__ import annotations

import contextlib
import warnings

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
