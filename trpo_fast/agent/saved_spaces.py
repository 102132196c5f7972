"""Spaces as JSON, so that a checkpoint says what its agent is shown without an environment.

And the place of the environments in an agent that has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from trpo_fast.agent.portable import from_json, to_json
from trpo_fast.base.errors import EnvironmentSetupError
from trpo_fast.base.spaces import Space

MAX_WIDTH = 2**24  # of what a file may make us allocate


def space_to_json(space: Space) -> Any:
    """A space that the agent serves as JSON; None for any other."""
    if isinstance(space, spaces.Box):
        low, high = (
            bound.flat[0] if bound.size and (bound == bound.flat[0]).all() else bound
            for bound in (space.low, space.high)
        )
        parts: dict[str, Any] = {"low": low, "high": high, "shape": list(space.shape)}
        return {"Box": to_json({**parts, "dtype": np.dtype(space.dtype).str}, "Box")}
    if isinstance(space, spaces.Discrete):
        return {"Discrete": [int(space.n), int(space.start)]}
    if isinstance(space, spaces.MultiDiscrete):
        return {"MultiDiscrete": to_json([space.nvec, np.asarray(space.start)], "MultiDiscrete")}
    if isinstance(space, spaces.MultiBinary):
        return {"MultiBinary": to_json(space.n, "MultiBinary")}
    if isinstance(space, spaces.Dict):
        return {"Dict": [[key, space_to_json(part)] for key, part in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return {"Tuple": [space_to_json(part) for part in space.spaces]}
    return None


def space_from_json(node: Any) -> Space:
    """The space that :func:`space_to_json` wrote. Raises ValueError for anything else."""
    try:
        ((kind, body),) = node.items()
        space = _space(kind, body)
    except (LookupError, AttributeError, TypeError, AssertionError, OverflowError, ValueError) as e:
        raise ValueError(f"{str(node)[:80]} stands for no space: {e!r}") from None
    return space


def _space(kind: str, body: Any) -> Space:
    if kind == "Box":
        found = from_json(body)
        shape = _shape(found["shape"])
        return spaces.Box(found["low"], found["high"], shape, np.dtype(found["dtype"]).type)
    if kind == "Discrete":
        n, start = body
        return spaces.Discrete(_shape([n])[0], start=int(start))
    if kind == "MultiDiscrete":
        nvec, start = from_json(body)
        _shape([int(np.sum(nvec))])
        return spaces.MultiDiscrete(nvec, dtype=nvec.dtype.type, start=start)
    if kind == "MultiBinary":
        n = from_json(body)
        _shape(n if isinstance(n, tuple) else [n])
        return spaces.MultiBinary(n)
    if kind == "Dict":
        # a list, since it would sort the keys of a mapping
        return spaces.Dict([(key, space_from_json(part)) for key, part in body])
    if kind == "Tuple":
        return spaces.Tuple([space_from_json(part) for part in body])
    raise ValueError(f"{kind!r} is no kind of space here")


def _shape(numbers: Any) -> tuple[int, ...]:
    shape = tuple(int(number) for number in numbers)
    if math.prod(shape) > MAX_WIDTH or any(number < 0 for number in shape):
        raise ValueError(f"a space of shape {shape} is none that an agent here was trained on")
    return shape


class NoEnvironments(VectorEnv[Any, Any, Any]):
    """What an agent that can only predict has for environments: their spaces.

    Args:
        saved: the checkpoint's ``spaces``.
        num_envs: of the run.

    Raises:
        ValueError: the spaces are none, or missing.
    """

    def __init__(self, saved: Any, num_envs: int) -> None:
        if not isinstance(saved, Mapping) or set(saved) != {"observation", "action"}:
            raise ValueError("it was saved by a version that kept no spaces: pass env=")
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.num_envs = num_envs
        self.single_observation_space = space_from_json(saved["observation"])
        self.single_action_space = space_from_json(saved["action"])
        self.observation_space = batch_space(self.single_observation_space, 1)
        self.action_space = batch_space(self.single_action_space, 1)

    def reset(self, **_: Any) -> Any:
        """Refuse, in words."""
        raise EnvironmentSetupError(
            "this agent was loaded with predict_only=True and has no environments: load it without "
            "that, or with env=, to go on learning"
        )

    step = reset  # type: ignore[assignment]
