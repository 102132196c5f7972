"""Drawing where there is no display.

gymnasium's MuJoCo tries GLFW first, which fails without a display in a way that keeps it from
trying the others. It reads MUJOCO_GL when the first frame is drawn.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym

_VARIABLE = "MUJOCO_GL"
# What draws without a display, and the library that it needs.
_RENDERERS = (("egl", "EGL"), ("osmesa", "OSMesa"))
NONE_FOUND = (
    "there is no display, and neither of the libraries that draw without one: install EGL (Debian: "
    "libegl1 libegl-mesa0 libgl1-mesa-dri) or OSMesa (libosmesa6), start under xvfb-run, or say by "
    "MUJOCO_GL what there is"
)


def draw_without_display(env: gym.Env[Any, Any], say: Callable[[str], None]) -> str | None:
    """Choose how MuJoCo draws where that is not said and there is no display.

    Args:
        env: one that has drawn nothing yet.
        say: gets a line that tells the choice.

    Returns why nothing can be drawn, in words; None where that is not known, or not MuJoCo's.
    """
    if not hasattr(env.unwrapped, "mujoco_renderer") or not sys.platform.startswith("linux"):
        return None
    if any(os.environ.get(name) for name in (_VARIABLE, "DISPLAY", "WAYLAND_DISPLAY")):
        return None
    for renderer, library in _RENDERERS:
        if _is_installed(library):
            os.environ[_VARIABLE] = renderer
            say(f"no display: MuJoCo draws by {renderer} ({_VARIABLE} says otherwise)")
            return None
    return NONE_FOUND


def _is_installed(library: str) -> bool:
    if ctypes.util.find_library(library) is not None:
        return True
    try:  # where the dynamic linker alone knows of it, as in a conda environment
        ctypes.CDLL(f"lib{library}.so")
    except OSError:
        return False
    return True
