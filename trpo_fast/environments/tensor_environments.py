"""B environments that are stepped in torch tensors, on one device."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor

from trpo_fast.base.errors import (
    EnvironmentFault,
    EnvironmentSetupError,
    UnsupportedSpaceError,
)
from trpo_fast.base.spaces import check_action_space, logit_blocks
from trpo_fast.environments.action_masks import MASK_KEY, MaskSource
from trpo_fast.environments.flattening import ObservationFlattener
from trpo_fast.environments.nested_actions import is_nested_space
from trpo_fast.environments.processes import closed, warn_of_closing
from trpo_fast.environments.seeded_episodes import restart_seed
from trpo_fast.environments.tensor_contracts import (
    ContractError,
    TensorContract,
    TensorStep,
    contract_of,
)
from trpo_fast.environments.tensor_flattening import TensorFlattener, check_tensor, first_leaf
from trpo_fast.environments.vector_masks import without_mask

NO_MASKS = (
    "action masks are not read from tensor environments; leave them out, or step it in NumPy "
    "(vectorization='sync')"
)


class TensorTransition(NamedTuple):
    """One step of B environments; the next observations go where the caller says."""

    rewards: Tensor  # [B], of the environment's dtype
    terminated: Tensor  # [B] bool
    truncated: Tensor  # [B] bool
    final_observations: Any  # as the environment gave them, or None


class TensorEnvironments:
    """B environments behind one object, stepped in tensors that never leave its device.

    Whatever it raises, or returns that its contract does not allow, is an EnvironmentFault that
    says what. What its tensors hold is not looked at: that would be a synchronisation a step.

    Args:
        env: the object; see ``tensor_contracts.py`` for what it may be.
        name: what to call it in messages.
        seed: of the first reset, where it takes one.

    Attributes:
        device: where its tensors are.
        num_envs: B.
        action_space: of one environment.
        observation_space: of one environment.
        row_format: of flattened observations, in NumPy.
        resets_late: whether the step after an episode's end does nothing but reset (NEXT_STEP).

    Raises:
        EnvironmentSetupError: it lacks a part of the contract, or no policy can serve a space.
        EnvironmentFault: its first reset raised.
    """

    resumable = False
    mask_source: MaskSource | None = None

    def __init__(self, env: Any, *, name: str, seed: int) -> None:
        self.env = env
        self.name = name
        self.seed = seed
        self.ended = False
        self.restarts = 0
        self._contract: TensorContract = contract_of(env)
        self.num_envs = self._contract.num_envs
        self.resets_late = self._contract.autoreset_mode is AutoresetMode.NEXT_STEP
        self.action_space: spaces.Space[Any] = self._contract.action_space
        check_action_space(self.action_space)
        if is_nested_space(self.action_space):
            raise UnsupportedSpaceError(
                f"tensor environments take one tensor of actions, {self.action_space} has parts: "
                "step it with another vectorization"
            )
        # Only what it shows tells the device, and the space where it declares none.
        self._first: Any = self._guard(self._contract.reset, restart_seed(seed, 0))
        self.device = _device_of(env, self._first, name)
        self.observation_space = self._guard(self._contract.observation_space, self._first)
        self._choices = bool(logit_blocks(self.action_space))
        if without_mask(self.observation_space, self.action_space) is not self.observation_space:
            raise EnvironmentSetupError(f"{name} shows {MASK_KEY!r}: {NO_MASKS}")
        if self._choices and callable(getattr(env, "action_masks", None)):
            raise EnvironmentSetupError(f"{name} has action_masks(): {NO_MASKS}")
        self.row_format = ObservationFlattener(self.observation_space)
        self._flatten = TensorFlattener(self.observation_space, self.device)

    @property
    def observation_width(self) -> int:
        """O, the width of a flattened observation."""
        return self._flatten.width

    @property
    def observation_dtype(self) -> type[np.generic]:
        """Of flattened observations: float32, or float64 where a space is wider."""
        return self.row_format.dtype

    @property
    def choice(self) -> str:
        """How they are stepped, and what became of the episodes of before, in words."""
        anew = "; new episodes were begun, since its own cannot be replayed"
        return (
            f"{self.num_envs} in tensors on {self.device}, by {self._contract.name}"
            f"{anew if self.restarts else ''}"
        )

    def rows(self, *leading: int) -> Tensor:
        """An empty tensor [*leading, O] for observations."""
        return torch.empty(
            (*leading, self.observation_width), dtype=self._flatten.dtype, device=self.device
        )

    def reset(self, out: Tensor, restarts: int = 0) -> None:
        """Begin an episode everywhere; observations go to ``out`` [B, O].

        Args:
            out: receives the observations.
            restarts: how often the run began again: each time with other episodes.
        """
        if self.ended:
            raise EnvironmentSetupError(
                f"{self.name} was closed, and one that was given whole cannot be made again here: "
                "save the agent, and load it with a new one (env=)"
            )
        self.restarts = restarts
        first, self._first = self._first, None
        if first is None or restarts:
            first = self._guard(self._contract.reset, restart_seed(self.seed, restarts))
        self._write(first, out)

    def step(self, actions: Tensor, out: Tensor) -> TensorTransition:
        """Act everywhere; what the policy acts on next goes to ``out`` [B, O].

        Raises:
            EnvironmentFault: the environment raised, or gave what its contract does not allow.
        """
        found: TensorStep = self._guard(self._contract.step, actions)
        if self._choices and MASK_KEY in found.info:
            raise EnvironmentFault(f"{self.name} gives info[{MASK_KEY!r}]: {NO_MASKS}")
        self._write(found.observations, out)
        rewards = self._column("the reward", found.rewards)
        ends = self._flags("done" if found.timeouts else "terminated", found.terminated)
        if found.truncated is None:
            return TensorTransition(rewards, ends, torch.zeros_like(ends), None)
        truncated = self._flags("truncated", found.truncated)
        if found.timeouts:
            truncated = truncated & ends
            ends = ends & ~truncated
        return TensorTransition(rewards, ends, truncated, found.final_observations)

    def write_final(self, observations: Any, out: Tensor) -> None:
        """Write the last observations of the episodes that ended to ``out`` [B, O]."""
        self._write(observations, out, "final ")

    def _write(self, observations: Any, out: Tensor, which: str = "") -> None:
        try:
            self._flatten(observations, out)
        except ValueError as error:
            text = str(error).replace("the observation", f"the {which}observation", 1)
            raise EnvironmentFault(f"{self.name}: {text}") from error

    def _flags(self, what: str, value: Any) -> Tensor:
        found = self._column(what, value)
        return found if found.dtype is torch.bool else found != 0

    def _column(self, what: str, value: Any) -> Tensor:
        try:
            check_tensor(what, value, self.device)
        except ValueError as error:
            raise EnvironmentFault(f"{self.name}: {error}") from error
        if value.shape != (self.num_envs,):
            raise EnvironmentFault(
                f"{self.name}: {what} has shape {tuple(value.shape)}, expected "
                f"({self.num_envs},): one number an environment"
            )
        return value  # type: ignore[no-any-return]

    def _guard(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call the environment; whatever it raises leaves as EnvironmentFault."""
        try:
            return call(*args)
        except (EnvironmentFault, EnvironmentSetupError):
            raise
        except ContractError as error:
            raise EnvironmentFault(f"{self.name}: {error}") from error
        except Exception as error:
            text = f"{self.name} raised {type(error).__name__}: {error}"
            trace = "".join(traceback.format_exception(error))
            raise EnvironmentFault(text, trace=trace) from error

    def close(self) -> None:
        """Release the environment, where it can be; what that raises is a warning."""
        self.ended = True
        close = getattr(self.env, "close", None)
        if callable(close):
            warn_of_closing(self.name, [closed(close)])


def _device_of(env: Any, observations: Any, name: str) -> torch.device:
    """Where the environment says it is, else where its first observation is."""
    told = getattr(env, "device", None)
    leaf = first_leaf(observations)
    if not isinstance(leaf, Tensor):
        raise EnvironmentFault(
            f"{name}: the observation holds a {type(leaf).__name__}, not a torch.Tensor; "
            "vectorization='sync' steps environments that are written in NumPy"
        )
    if isinstance(told, str | torch.device):
        # "cuda" is one of several: the tensors say which.
        return torch.empty(0, device=told).device
    return leaf.device
