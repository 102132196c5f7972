"""What `reset` and `step` return, told apart from what older interfaces of gym returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OLD = (
    "that is the interface of gym before 0.26; wrap the environment, for example in "
    "shimmy.GymV21CompatibilityV0, or return what gymnasium.Env documents"
)


def reset_result(returned: Any) -> tuple[Any, dict[str, Any]]:
    """``(observation, info)``; ValueError for anything else."""
    if isinstance(returned, tuple) and len(returned) == 2 and _is_info(returned[1]):
        observation, info = returned
        return observation, dict(info)
    what = _described(returned)
    raise ValueError(f"reset() returned {what}, not (observation, info): {OLD}")


def step_result(returned: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
    """``(observation, reward, terminated, truncated, info)``; ValueError for anything else."""
    if isinstance(returned, tuple) and len(returned) == 5 and _is_info(returned[4]):
        return returned
    what = _described(returned)
    raise ValueError(
        f"step() returned {what}, not (observation, reward, terminated, truncated, info): {OLD}"
    )


def described_error(error: BaseException) -> str:
    """An environment's exception in words, with what it means where `reset` takes no seed."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, TypeError) and "unexpected keyword argument" in text and "reset" in text:
        return f"{text} ({OLD}: reset(*, seed=None, options=None))"
    return text


def refuse_whole_results(observation: Any) -> None:
    """ValueError for what reset() or step() returned, given where its observation belongs."""
    if not isinstance(observation, tuple) or not observation:
        return
    name = {2: "reset", 5: "step"}.get(len(observation))
    if name is not None and _is_info(observation[-1]):
        raise ValueError(
            f"this is all that {name}() returns, a tuple of {len(observation)}: its first entry "
            "is the observation"
        )


def _is_info(value: Any) -> bool:
    return type(value) is dict or isinstance(value, Mapping)  # the first is quicker by far


def _described(returned: Any) -> str:
    if isinstance(returned, tuple):
        return f"a tuple of {len(returned)}"
    return f"a {type(returned).__name__}"
