"""One environment: seeded episodes that can be replayed, and the error for one that misbehaves."""

from __future__ import annotations

import copy
import traceback
import zlib
from collections import deque
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.environments.action_masks import MASK_KEY, MaskReader
from trpo_fast.environments.gymnasium_api import described_error, reset_result, step_result
from trpo_fast.environments.nested_actions import (
    ActionNesting,
    as_given,
    in_lists,
    is_nested_space,
)
from trpo_fast.environments.observation_check import ObservationCheck

# Actions of a running episode that are kept one by one before they are packed into an array.
PACKED = 256
# Of an episode's seed: many environments keep theirs in a C int.
SEED_BITS = 31


def episode_seed(seed: int, env_index: int, episode: int) -> int:
    """The seed of one episode: 31 bits of SeedSequence((seed, env_index, episode))."""
    words = np.random.SeedSequence((seed, env_index, episode)).generate_state(1)
    return int(words[0]) >> (32 - SEED_BITS)


def restart_seed(seed: int, restarts: int) -> int:
    """The seed of a vector's resets in a run that began again so often: its own at first.

    Of 30 bits where it is made here: a vector adds the number of the environment.
    """
    if not restarts and seed < 2**30:
        return seed
    return int(np.random.SeedSequence((seed, restarts)).generate_state(1)[0]) >> 2


LARGEST_PLAIN = 1 << 16  # bytes of an array that is compared as it is
_PLAIN = (bool, int, float, str, np.generic, np.ndarray)
_SIZED = (list, tuple, dict, set, deque)


class SeededEpisodes(gym.Wrapper[Any, Any, Any, Any]):
    """Seeds every episode from (seed, index, episode number) and records its actions.

    The running episode can so be reached again, bit for bit, in a fresh environment: reset with
    its seed and repeat the actions. Infos are dropped but for the action mask, because merging
    those of many environments costs more than stepping a small one.

    Args:
        env: any environment whose episodes depend only on the seed of `reset` and the actions.
        seed: seed of the whole run, >= 0.
        index: position in the vector of environments.
        first: number of that vector's first environment, where it is a share of a larger one.

    Exceptions of the environment leave as :class:`EnvironmentFault`.
    """

    def __init__(self, env: gym.Env[Any, Any], seed: int, index: int, first: int = 0) -> None:
        super().__init__(env)
        self.seed = seed
        self.index = index
        self.number = first + index
        self.episode = -1
        self._rewarded = 0.0  # what the running episode's rewards come to, see plain_state
        # Actions of the running episode: packed ones, then the newest one by one.
        self._packed: list[npt.NDArray[Any]] = []
        self._newest: list[npt.NDArray[Any]] = []
        # Nested actions come as rows of numbers, and are nested at the environment's door.
        self.action_space = as_given(env.action_space)
        nested = is_nested_space(env.action_space)
        self._nested = ActionNesting(env.action_space).one if nested else None
        self._check = ObservationCheck(env.observation_space)
        self._masks = MaskReader(env.action_space)
        has_method = self._masks.width and env.has_wrapper_attr("action_masks")
        self._mask_method = env.get_wrapper_attr("action_masks") if has_method else None

    @property
    def has_mask_method(self) -> bool:
        """Whether the environment has an ``action_masks()`` method (sb3-contrib's convention)."""
        return callable(self._mask_method)

    def rewind(self) -> None:
        """Let the coming reset begin the first episode."""
        self.episode = -1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode, with its own seed in place of the argument."""
        del seed
        self.episode += 1
        self._packed, self._newest = [], []
        self._rewarded = 0.0
        own_seed = episode_seed(self.seed, self.number, self.episode)
        try:
            observation, info = reset_result(self.env.reset(seed=own_seed, options=options))
            return self._check(observation), self._mask_info(info)
        except Exception as error:
            raise self._fault(error, "reset()", None) from error

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment and record the action."""
        self._newest.append(np.array(action))  # a copy: an environment may change what it is given
        if len(self._newest) == PACKED:
            self._pack()
        try:
            own = action if self._nested is None else self._nested(action)
            given = step_result(self.env.step(own))
            observation, reward, terminated, truncated, info = given
            observation = self._check(observation)
            if terminated or truncated:
                # an environment may reuse its observation's memory in the coming reset
                observation = copy.deepcopy(observation)
            reward = float(reward)
            self._rewarded = 0.999 * self._rewarded + reward
            return (
                observation,
                reward,
                bool(terminated),
                bool(truncated),
                self._mask_info(info),
            )
        except Exception as error:
            raise self._fault(error, "step()", np.array(action)) from error

    def close(self) -> None:
        """Close the environment; of one that was made to tell its spaces, whatever it raises."""
        try:
            self.env.close()
        except (Exception, SystemExit) as error:
            if self.episode >= 0:
                raise self._fault(error, "close()", None) from error

    @property
    def steps(self) -> int:
        """How many steps the running episode has, one that is under way included."""
        return sum(len(part) for part in self._packed) + len(self._newest)

    def _pack(self) -> None:
        if self._newest:
            self._packed.append(np.stack(self._newest))
            self._newest = []

    def _mask_info(self, info: dict[str, Any]) -> dict[str, Any]:
        if not self._masks.width:
            return {}
        if MASK_KEY in info:
            mask = info[MASK_KEY]
        elif self._mask_method is not None:
            mask = self._mask_method()
        else:
            return {}
        # One that forbids all may come with the end of an episode.
        return {MASK_KEY: self._masks.sized(mask)}

    def _fault(
        self, error: BaseException, where: str, action: npt.NDArray[Any] | None
    ) -> EnvironmentFault:
        own = action if action is None or self._nested is None else self._nested(action)
        given = "" if action is None else f", action {in_lists(own)}"
        return EnvironmentFault(
            f"environment {self.number} raised {described_error(error)} in {where} "
            f"(episode {self.episode}, step {self.steps}{given})",
            env_index=self.index,
            step=self.steps,
            action=action,
            trace=traceback.format_exc(),
        )

    def running_episode(self) -> tuple[int, npt.NDArray[Any]]:
        """The running episode's number (-1 before the first) and its actions so far [n, ...]."""
        self._pack()
        if not self._packed:
            return self.episode, _no_actions(self.action_space)
        self._packed = [np.concatenate(self._packed)]
        return self.episode, self._packed[0].copy()

    def plain_state(self) -> dict[str, Any]:
        """The environment's attributes that are numbers or text, and the sizes of its containers.

        What an environment keeps from one episode to the next (a count, a difficulty) is lost in a
        replay; two copies in which it differs can so be told apart. So can those whose rewards come
        from elsewhere, by the sum of the running episode's, the older ones counting less.
        """
        return {"rewards": self._rewarded} | {
            f".{name}": _summary(value) if isinstance(value, _PLAIN) else len(value)
            for name, value in vars(self.env.unwrapped).items()
            if isinstance(value, (*_PLAIN, *_SIZED))
        }

    def replay(
        self, episodes: Mapping[int, tuple[int, npt.NDArray[Any]]]
    ) -> tuple[Any, dict[str, Any], bool]:
        """Enter this environment's entry of ``episodes``, by its number.

        Returns:
            The last observation and info, and whether the episode is already over, which it must
            not be.
        """
        episode, actions = episodes[self.index]
        self.episode = episode - 1
        observation, info = self.reset()
        over = False
        for action in actions:
            if over:
                break
            observation, _, terminated, truncated, info = self.step(action)
            over = terminated or truncated
        return observation, info, over


def _summary(value: Any) -> Any:
    """The value, or of a large array what tells it from another: these go to other processes."""
    if not isinstance(value, np.ndarray) or value.nbytes <= LARGEST_PLAIN or value.dtype.hasobject:
        return value
    return [str(value.dtype), list(value.shape), zlib.crc32(np.ascontiguousarray(value).data)]


def _no_actions(space: gym.Space[Any]) -> npt.NDArray[Any]:
    """The actions ``[0, ...]`` of an episode that has just begun, as ``space`` has them."""
    return np.empty((0, *(space.shape or ())), space.dtype)
