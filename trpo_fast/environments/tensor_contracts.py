"""What tensor environments return, in the forms that libraries have, read into one.

* gymnasium's vector interface with torch tensors (ManiSkill; Brax and MJX behind
  ``gymnasium.wrappers.vector.JaxToTorch``), and objects that only have its ``reset`` and ``step``;
* the older one of four values, ``(obs, reward, done, info)``, whose info tells truncations
  (``truncation`` in Brax's, ``TimeLimit.truncated`` in gym's);
* rsl_rl's ``VecEnv`` (Isaac Lab, mjlab, MuJoCo Playground): ``get_observations()``, observations
  in groups, ``dones``, ``extras["time_outs"]``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from trpo_fast.base.errors import EnvironmentSetupError
from trpo_fast.base.spaces import Space

# Where the last observations of episodes that a step ended are looked for in its info, in order.
FINAL_KEYS = ("final_obs", "final_observation", "terminal_observation")
# Where an info tells which of the episodes that are done were cut short.
TIMEOUT_KEYS = ("time_outs", "truncation", "TimeLimit.truncated")
# rsl_rl's observation groups that its policy is shown, by its newer and its older name.
POLICY_GROUPS = ("actor", "policy")
STEP_FORMS = (
    "(obs, reward, terminated, truncated, info), or (obs, reward, done, info) whose info tells "
    f"truncations as {', '.join(TIMEOUT_KEYS)}"
)


class ContractError(ValueError):
    """What came back has none of the forms above; the text says what it was."""


class TensorStep(NamedTuple):
    """What a step returned; None for what there is none of."""

    observations: Any
    rewards: Any
    terminated: Any  # or done, where timeouts are told apart
    truncated: Any
    timeouts: bool  # whether `terminated` holds every end, and `truncated` some of them
    final_observations: Any
    info: Mapping[str, Any]


class TensorContract:
    """An environment that speaks gymnasium's vector interface in tensors.

    Args:
        env: the object; its spaces are in `single_observation_space` and `single_action_space`.

    Raises:
        EnvironmentSetupError: it lacks something without which it cannot be stepped.
    """

    name = "gymnasium's vector interface"

    def __init__(self, env: Any) -> None:
        self.env = env
        self._begin = self._first(env)
        for name, method in (("reset", self._begin), ("step", getattr(env, "step", None))):
            if not callable(method):
                raise EnvironmentSetupError(
                    f"{type(env).__name__} has no {name}(): a tensor environment has reset() -> "
                    f"obs and step(actions) -> {STEP_FORMS}"
                )
        self.num_envs = _whole(env, "num_envs")
        self._seeded = _takes(self._begin, "seed")

    @staticmethod
    def _first(env: Any) -> Any:
        """What begins all episodes."""
        return getattr(env, "reset", None)

    @property
    def autoreset_mode(self) -> AutoresetMode:
        """What follows an episode's end; SAME_STEP where the environment does not say."""
        metadata = getattr(self.env, "metadata", None) or {}
        mode = metadata.get("autoreset_mode", AutoresetMode.SAME_STEP)
        mode = mode if isinstance(mode, AutoresetMode) else AutoresetMode(mode)
        if mode is AutoresetMode.DISABLED:
            raise EnvironmentSetupError(
                f"{type(self.env).__name__} leaves resets to its caller (AutoresetMode.DISABLED); "
                "a tensor environment resets the episodes that ended by itself, in the same step "
                "or in the next"
            )
        return mode

    @property
    def action_space(self) -> Space:
        """Of one environment."""
        found = getattr(self.env, "single_action_space", None)
        if found is None:
            raise EnvironmentSetupError(
                f"{type(self.env).__name__} has no single_action_space: set it to the gymnasium "
                "space of one environment's action"
            )
        return found  # type: ignore[no-any-return]

    def observation_space(self, observations: Any) -> Space:
        """Of one environment; without one, Boxes of what ``observations`` [B, ...] hold."""
        found = getattr(self.env, "single_observation_space", None)
        return _space_of(observations) if found is None else found

    def reset(self, seed: int) -> Any:
        """Begin an episode everywhere; the observations."""
        returned = self._begin(seed=seed) if self._seeded else self._begin()
        info = returned[1] if isinstance(returned, tuple) and len(returned) == 2 else None
        return returned[0] if isinstance(info, Mapping) else returned

    def step(self, actions: Any) -> TensorStep:
        """Act everywhere. ContractError where what came back has none of the forms."""
        returned = self.env.step(actions)
        if isinstance(returned, tuple) and len(returned) == 5:
            obs, rewards, terminated, truncated, info = returned
            info = _info(info)
            return TensorStep(obs, rewards, terminated, truncated, False, _final(info), info)
        if isinstance(returned, tuple) and len(returned) == 4:
            obs, rewards, done, info = returned
            info = _info(info)
            return TensorStep(obs, rewards, done, _timeouts(info), True, _final(info), info)
        what = f"{len(returned)} values" if isinstance(returned, tuple) else type(returned).__name__
        raise ContractError(f"step() returned {what}, not {STEP_FORMS}")


class RslContract(TensorContract):
    """rsl_rl's ``VecEnv``, of any version: observations in groups or as one tensor."""

    name = "rsl_rl's VecEnv"

    @staticmethod
    def _first(env: Any) -> Any:
        # Its abstract class has no reset: an environment may have begun when it was made.
        return getattr(env, "reset", env.get_observations)

    @property
    def action_space(self) -> Space:
        """A Box without bounds: the environment clips as it was configured to."""
        own = getattr(self.env, "single_action_space", None)
        if own is not None:
            return own  # type: ignore[no-any-return]
        return spaces.Box(-np.inf, np.inf, (_whole(self.env, "num_actions"),), np.float32)

    def observation_space(self, observations: Any) -> Space:
        """Of the policy's group: the environment's own space has all of them."""
        return _space_of(observations)

    def reset(self, seed: int) -> Any:
        """Begin an episode everywhere; the policy's group."""
        return _policy_group(super().reset(seed))

    def step(self, actions: Any) -> TensorStep:
        """Act everywhere."""
        found = super().step(actions)
        final = found.final_observations
        return found._replace(
            observations=_policy_group(found.observations),
            final_observations=None if final is None else _policy_group(final),
        )


def contract_of(env: Any) -> TensorContract:
    """The contract that the environment speaks. EnvironmentSetupError for none."""
    rsl = callable(getattr(env, "get_observations", None)) and hasattr(env, "num_actions")
    return RslContract(env) if rsl else TensorContract(env)


def _policy_group(observations: Any) -> Any:
    if isinstance(observations, Mapping):
        for group in POLICY_GROUPS:
            if group in observations.keys():  # noqa: SIM118 (a TensorDict refuses `in`)
                return observations[group]
        raise ContractError(
            f"the observations have the groups {sorted(map(str, observations.keys()))}, and none "
            f"is called {' or '.join(POLICY_GROUPS)}"
        )
    return observations


def _space_of(observations: Any) -> Space:
    """Boxes without bounds of tensors [B, ...], in the nesting that they have."""
    if isinstance(observations, Mapping):
        return spaces.Dict({key: _space_of(part) for key, part in observations.items()})
    if isinstance(observations, tuple | list):
        return spaces.Tuple([_space_of(part) for part in observations])
    dtype = str(getattr(observations, "dtype", None)).removeprefix("torch.")
    wide = np.float64 if dtype == "float64" else np.float32
    return spaces.Box(-np.inf, np.inf, tuple(getattr(observations, "shape", ()))[1:], wide)


def _info(info: Any) -> Mapping[str, Any]:
    if not isinstance(info, Mapping):
        raise ContractError(f"step() returned a {type(info).__name__} for info, not a dict")
    return info


def _final(info: Mapping[str, Any]) -> Any:
    return next((info[key] for key in FINAL_KEYS if info.get(key) is not None), None)


def _timeouts(info: Mapping[str, Any]) -> Any:
    return next((info[key] for key in TIMEOUT_KEYS if info.get(key) is not None), None)


def _whole(env: Any, name: str) -> int:
    found = getattr(env, name, None)
    try:
        count = int(found)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise EnvironmentSetupError(
            f"{type(env).__name__}.{name} is {found!r}; a tensor environment says there how many "
            f"{'numbers an action has' if name == 'num_actions' else 'environments it steps'}"
        )
    return count


def _takes(function: Any, name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)
