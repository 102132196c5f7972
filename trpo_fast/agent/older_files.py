"""What files of earlier versions say, in the words of this one.

Each file holds every option that its version had, so that one which is missing came later: where
its default is not what was done before, it is set to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Options that came later, with what was done before they did.
BEFORE = {
    "max_kl_per": "action",
    "step_size": "damped",
    "shrink_max_kl": False,
    "scale_actions": False,
}


def current_options(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The options in a file as this version calls them."""
    found = {**BEFORE, **saved}
    if isinstance(found.get("squash"), bool):
        found["distribution"] = _distribution(found.pop("squash"))
    if found.get("critic_method") == "adam":
        del found["critic_method"]  # the other one is gone, and refused
    return found


def current_description(saved: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its agent (`agent_state.description`)."""
    found = {"scale_actions": False, **saved}
    if isinstance(found.get("squash"), bool):
        found["distribution"] = _distribution(found.pop("squash"))
    return found


def _distribution(squash: bool) -> str:
    return "squashed" if squash else "gaussian"
