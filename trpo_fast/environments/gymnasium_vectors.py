"""gymnasium's vector of environments in this process, and whom of any vector to blame."""

from __future__ import annotations

import copy
import select
import traceback
from collections.abc import Callable, MutableSequence, Sequence
from types import TracebackType
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, iterate

from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.environments.observation_check import ObservationCheck
from trpo_fast.environments.processes import closed
from trpo_fast.environments.seeded_episodes import SeededEpisodes


class LocalEnvironments(SyncVectorEnv):
    """gymnasium's vector in this process; a step does what ours needs of it and no more.

    Always SAME_STEP and without copies: what a step returns is valid until the next one.

    Args:
        factories: of the environments.
        under_way: ``under_way[0]`` is kept at the number of the one that steps, for whom it
            concerns when this process does not come back.
        first: number of the first.
    """

    def __init__(
        self,
        factories: Sequence[Callable[[], SeededEpisodes]],
        under_way: MutableSequence[int] | memoryview | None = None,
        first: int = 0,
    ) -> None:
        super().__init__(factories, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
        self._under_way: Any = [0] if under_way is None else under_way
        self._first = first
        self._one_array = isinstance(self.single_observation_space, gym.spaces.Box)
        # A reset of some environments batches all, those too that were replayed and never reset.
        rows = iterate(self.observation_space, self._observations)
        self._env_obs = [copy.deepcopy(row) for row in rows]

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step each environment and begin the next episode of each that ended."""
        infos: dict[str, Any] = {}
        batch: Any = self._observations if self._one_array else self._env_obs
        rewards, terminations, truncations = self._rewards, self._terminations, self._truncations
        under_way, first = self._under_way, self._first
        for i, (env, action) in enumerate(
            zip(self.envs, iterate(self.action_space, actions), strict=True)
        ):
            under_way[0] = first + i
            observation, rewards[i], terminated, truncated, info = env.step(action)
            terminations[i], truncations[i] = terminated, truncated
            if terminated or truncated:
                final = {"final_obs": observation, "final_info": info}
                infos = self._add_info(infos, final, i)
                observation, info = env.reset()
            if info:
                infos = self._add_info(infos, info, i)
            batch[i] = observation
        if not self._one_array:
            batch = concatenate(self.single_observation_space, batch, self._observations)
            self._observations = batch
        return batch, rewards.copy(), terminations.copy(), truncations.copy(), infos

    def close_extras(self, **_: Any) -> None:
        """Close every environment; EnvironmentFault with what some of them raised."""
        self.closed = True
        told = [text for text in (closed(env.close) for env in self.envs) if text]
        if told:
            raise EnvironmentFault("; ".join(told))


def created(index: int, make: Callable[[], SeededEpisodes]) -> SeededEpisodes:
    """Environment ``index``; EnvironmentFault where its constructor raises."""
    try:
        return make()
    except Exception as error:
        raise EnvironmentFault(
            f"environment {index} raised {type(error).__name__}: {error} while being created",
            env_index=index,
            trace=traceback.format_exc(),
        ) from error


def blamed_environment(vector: Any, error: BaseException) -> int | None:
    """Which environment of a vector not made here raised."""
    if isinstance(vector, AsyncVectorEnv):
        pipes: list[Any] = vector.parent_pipes
        for env, pipe in enumerate(pipes):
            if pipe is None or _is_hung_up(pipe):  # gymnasium puts None for a worker that raised
                return env
        return None
    step: TracebackType | None = error.__traceback__
    while step is not None:
        local = step.tb_frame.f_locals
        if isinstance(local.get("self"), SyncVectorEnv) and isinstance(local.get("i"), int):
            # After the loop over environments `i` is the last one, whoever's observation it is.
            stacking = _is_stacking(step.tb_next)
            return _misshapen(local["self"]) if stacking else int(local["i"])
        step = step.tb_next
    return None


def _is_stacking(step: TracebackType | None) -> bool:
    """Whether these frames put observations together, rather than call an environment."""
    while step is not None and step.tb_frame.f_globals.get("__name__") == "functools":
        step = step.tb_next
    return step is not None and step.tb_frame.f_globals.get("__name__") == concatenate.__module__


def _misshapen(vector: SyncVectorEnv) -> int | None:
    """The first environment whose observation is not what the space says."""
    check = ObservationCheck(vector.single_observation_space)
    for env, observation in enumerate(getattr(vector, "_env_obs", ())):
        try:
            check(observation)
        except ValueError:
            return env
    return None


def _is_hung_up(pipe: Any) -> bool:
    """Whether the process at the other end has ended.

    A process that has ended leaves its pipe before anybody can see it ended.
    """
    poller = select.poll()
    poller.register(pipe, 0)  # what is always told: that the other end is closed
    return bool(poller.poll(0))
