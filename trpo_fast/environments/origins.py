"""Where an environment that cannot be made comes from: another package, or a newer version."""

from __future__ import annotations

import re
from importlib.util import find_spec

import gymnasium as gym

# Ids, the package that registers them, and its module. Of the packages' own documentation.
_PACKAGES = (
    (r"ALE/|.*(NoFrameskip|Deterministic)-v[04]$", "ale-py", "ale_py"),
    (r"(MiniGrid|BabyAI)-", "minigrid", "minigrid"),
    (
        r"(Fetch|Hand|AntMaze|PointMaze|FrankaKitchen|Adroit)",
        "gymnasium-robotics",
        "gymnasium_robotics",
    ),
    (r"MiniWorld-", "miniworld", "miniworld"),
    (
        r"(highway|merge|roundabout|parking|intersection|racetrack)(-fast)?-v",
        "highway-env",
        "highway_env",
    ),
    (r"Panda(Reach|Push|Slide|Stack|Flip|PickAndPlace)", "panda-gym", "panda_gym"),
    (r"dm_control/", "shimmy[dm-control]", "shimmy"),
    (r"PyFlyt/", "PyFlyt", "PyFlyt.gym_envs"),
    (r"Meta-World/", "metaworld", "metaworld"),
)


def registering_package(name: str) -> str | None:
    """How to get the package that registers an id, in words; None for an unknown one."""
    for pattern, package, module in _PACKAGES:
        if re.match(pattern, name):
            install = "" if is_importable(module) else f"pip install '{package}', then "
            return (
                f" The package {package} registers it: {install}import {module} first, or give the "
                f"id with its module, '{module}:{name}'."
            )
    return None


def newest_version(name: str) -> str | None:
    """The newest registered version of an id, where that is a newer one."""
    base, _, version = name.rpartition("-v")
    if not base or not version.isdecimal():
        return None
    versions = [
        int(rest)
        for key in gym.registry
        if (rest := key.removeprefix(f"{base}-v")) != key and rest.isdecimal()
    ]
    newest = max(versions, default=-1)
    return f"{base}-v{newest}" if newest > int(version) else None


def is_importable(module: str) -> bool:
    """Whether a module is installed; of a dotted name its package."""
    try:
        return find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False
