"""gymnasium's vector of environments in this process, and whom of any vector to blame."""

from __future__ import annotations

import copy
import select
import traceback
from collections.abc import Callable, Iterator, MutableSequence, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, cast

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, iterate

from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.environments.observation_check import ObservationCheck
from trpo_fast.environments.processes import closed
from trpo_fast.environments.seeded_episodes import SeededEpisodes
from trpo_fast.environments.watch import NOBODY, SOMEBODY, Watch


class LocalEnvironments(SyncVectorEnv):
    """gymnasium's vector in this process; a step does what ours needs of it and no more.

    Always SAME_STEP and without copies: what a step returns is valid until the next one.

    Args:
        factories: of the environments.
        under_way: ``under_way[0]`` is kept at the number of the one that steps, for whom it
            concerns when this process does not come back.
        first: number of the first.
        watched: what to call them in messages, where steps that hang are to be told of here.
        step_timeout: seconds after which one is taken to hang; 0: never.
    """

    def __init__(
        self,
        factories: Sequence[Callable[[], SeededEpisodes]],
        under_way: MutableSequence[int] | memoryview | None = None,
        first: int = 0,
        *,
        watched: str = "",
        step_timeout: float = 0.0,
    ) -> None:
        super().__init__(factories, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
        self.under_way: Any = [NOBODY] if under_way is None else under_way
        self.calls = 0
        self._watch: Watch | None = None
        self._watched, self._step_timeout = watched, step_timeout
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
        under_way, first = self.under_way, self._first
        self._look()
        try:
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
        except (Exception, KeyboardInterrupt):  # what ends the process leaves its name there
            under_way[0] = NOBODY
            raise
        under_way[0] = NOBODY
        if not self._one_array:
            batch = concatenate(self.single_observation_space, batch, self._observations)
            self._observations = batch
        return batch, rewards.copy(), terminations.copy(), truncations.copy(), infos

    def reset(self, **given: Any) -> Any:
        """Begin an episode in all or some environments."""
        with self._all_under_way():
            return super().reset(**given)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of each environment."""
        with self._all_under_way():
            return super().call(name, *args, **kwargs)

    def _look(self) -> None:
        """Let it be seen that environments are asked."""
        self.calls += 1
        if self._watched and self._watch is None:
            self._watch = Watch(self, self._watched, self._step_timeout)

    @contextmanager
    def _all_under_way(self) -> Iterator[None]:
        if not self._watched:
            yield
            return
        self._look()
        self.under_way[0] = SOMEBODY
        try:
            yield
        finally:
            self.under_way[0] = NOBODY

    def steps_of(self, env: int) -> int:
        """How many steps the running episode of environment ``env`` has."""
        return cast("SeededEpisodes", self.envs[env - self._first]).steps

    def close_extras(self, **_: Any) -> None:
        """Close every environment; EnvironmentFault with what some of them raised."""
        self.closed = True
        if self._watch is not None:
            self._watch.end()
            self._watch = None
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
