"""One environment: seeded episodes that can be replayed, and the error for one that misbehaves."""

from __future__ import annotations

import copy
import math
import select
import signal
import traceback
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.async_vector_env import AsyncState, _async_worker
from gymnasium.vector.utils import concatenate, iterate

__all__ = [
    "EnvironmentFault",
    "EnvironmentSetupError",
    "SeededEpisodes",
    "blamed_environment",
    "episode_seed",
    "restart_seed",
]


# Actions of a running episode that are kept one by one before they are packed into an array.
PACKED = 256


class EnvironmentSetupError(ValueError):
    """An environment that cannot be made or served as asked; the text says what to do instead."""


class EnvironmentFault(RuntimeError):  # noqa: N818
    """An environment raised, returned NaN, or lost its process.

    Attributes:
        env_index: which environment of the vector; None when that cannot be known.
        step: the step within its episode, from 1; 0 for a reset; None when unknown.
        action: what it was given, as the environment takes it; None for a reset.
        traceback: text of the original traceback, from a worker process too; "" without one.
    """

    def __init__(
        self,
        message: str | EnvironmentFault,
        *,
        env_index: int | None = None,
        step: int | None = None,
        action: npt.NDArray[Any] | None = None,
        trace: str = "",
    ) -> None:
        super().__init__(str(message))
        self.env_index = env_index
        self.step = step
        self.action = action
        self.traceback = trace
        if isinstance(message, EnvironmentFault):
            # gymnasium re-raises a worker's exception as type(exception)(exception)
            self.__dict__.update(message.__dict__)


def episode_seed(seed: int, env_index: int, episode: int) -> int:
    """The seed of one episode: 32 bits of SeedSequence((seed, env_index, episode))."""
    return int(np.random.SeedSequence((seed, env_index, episode)).generate_state(1)[0])


def restart_seed(seed: int, restarts: int) -> int:
    """The seed of a vector's resets in a run that began again so often: its own at first."""
    if not restarts:
        return seed
    return int(np.random.SeedSequence((seed, restarts)).generate_state(1)[0]) >> 1


class SeededEpisodes(gym.Wrapper[Any, Any, Any, Any]):
    """Seeds every episode from (seed, index, episode number) and records its actions.

    The running episode can so be reached again, bit for bit, in a fresh environment: reset with
    its seed and repeat the actions. Infos are dropped but for the action mask, because merging
    those of many environments costs more than stepping a small one.

    Args:
        env: any environment whose episodes depend only on the seed of `reset` and the actions.
        seed: seed of the whole run, >= 0.
        index: position in the vector of environments.

    Exceptions of the environment leave as :class:`EnvironmentFault`.
    """

    def __init__(self, env: gym.Env[Any, Any], seed: int, index: int) -> None:
        super().__init__(env)
        self.seed = seed
        self.index = index
        self.episode = -1
        # Actions of the running episode: packed ones, then the newest one by one.
        self._packed: list[npt.NDArray[Any]] = []
        self._newest: list[npt.NDArray[Any]] = []
        space = env.observation_space
        self._size = math.prod(space.shape) if isinstance(space, gym.spaces.Box) else None
        self._mask_method = (
            env.get_wrapper_attr("action_masks") if env.has_wrapper_attr("action_masks") else None
        )

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
        own_seed = episode_seed(self.seed, self.index, self.episode)
        try:
            observation, info = self.env.reset(seed=own_seed, options=options)
            self._check_size(observation)
            return observation, self._mask_info(info)
        except Exception as error:
            raise self._fault(error, "reset()", None) from error

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment and record the action."""
        self._newest.append(np.array(action))  # a copy: an environment may change what it is given
        if len(self._newest) == PACKED:
            self._pack()
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            self._check_size(observation)
            if terminated or truncated:
                # an environment may reuse its observation's memory in the coming reset
                observation = copy.deepcopy(observation)
            return (
                observation,
                float(reward),
                bool(terminated),
                bool(truncated),
                self._mask_info(info),
            )
        except Exception as error:
            raise self._fault(error, "step()", np.array(action)) from error

    def _check_size(self, observation: Any) -> None:
        """A single number would fill the whole row of a batch without a word."""
        if self._size is None:
            return
        # The attribute is several times as fast as the function, which every step would pay for.
        found = observation.size if isinstance(observation, np.ndarray) else np.size(observation)
        if found != self._size:
            raise ValueError(
                f"the observation has shape {np.shape(observation)}, its space says "
                f"{self.env.observation_space.shape}"
            )

    def _steps(self) -> int:
        return sum(len(part) for part in self._packed) + len(self._newest)

    def _pack(self) -> None:
        if self._newest:
            self._packed.append(np.stack(self._newest))
            self._newest = []

    def _mask_info(self, info: dict[str, Any]) -> dict[str, Any]:
        if "action_mask" in info:
            return {"action_mask": np.asarray(info["action_mask"], bool).ravel()}
        if self._mask_method is not None:
            return {"action_mask": np.asarray(self._mask_method(), bool).ravel()}
        return {}

    def _fault(
        self, error: Exception, where: str, action: npt.NDArray[Any] | None
    ) -> EnvironmentFault:
        given = "" if action is None else f", action {action.tolist()}"
        return EnvironmentFault(
            f"environment {self.index} raised {type(error).__name__}: {error} in {where} "
            f"(episode {self.episode}, step {self._steps()}{given})",
            env_index=self.index,
            step=self._steps(),
            action=action,
            trace=traceback.format_exc(),
        )

    def running_episode(self) -> tuple[int, npt.NDArray[Any]]:
        """The running episode's number (-1 before the first) and its actions so far [n, ...]."""
        self._pack()
        if not self._packed:
            return self.episode, _no_actions(self.env.action_space)
        self._packed = [np.concatenate(self._packed)]
        return self.episode, self._packed[0].copy()

    def replay(
        self, episodes: Sequence[tuple[int, npt.NDArray[Any]]]
    ) -> tuple[Any, dict[str, Any], bool]:
        """Enter this environment's entry of ``episodes``, one per environment of the vector.

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


def _no_actions(space: gym.Space[Any]) -> npt.NDArray[Any]:
    """The actions ``[0, ...]`` of an episode that has just begun, as ``space`` has them."""
    return np.empty((0, *(space.shape or ())), space.dtype)


class LocalEnvironments(SyncVectorEnv):
    """gymnasium's vector in this process; a step does what ours needs of it and no more.

    Always SAME_STEP and without copies: what a step returns is valid until the next one.
    """

    def __init__(self, factories: Sequence[Callable[[], SeededEpisodes]]) -> None:
        super().__init__(factories, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
        self._one_array = isinstance(self.single_observation_space, gym.spaces.Box)
        # A reset of some environments batches all, those too that were replayed and never reset.
        rows = iterate(self.observation_space, self._observations)
        self._env_obs = [copy.deepcopy(row) for row in rows]

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step each environment and begin the next episode of each that ended."""
        infos: dict[str, Any] = {}
        batch: Any = self._observations if self._one_array else self._env_obs
        rewards, terminations, truncations = self._rewards, self._terminations, self._truncations
        for i, (env, action) in enumerate(
            zip(self.envs, iterate(self.action_space, actions), strict=True)
        ):
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


class WorkerEnvironments(AsyncVectorEnv):
    """gymnasium's vector of processes, with :func:`guarded_worker` and quiet error reports.

    gymnasium announces each worker's traceback in a warning; here the exception carries it.
    """

    def __init__(self, factories: Sequence[Callable[[], SeededEpisodes]], mode: AutoresetMode):
        super().__init__(factories, copy=False, autoreset_mode=mode, worker=guarded_worker)

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        failed = sum(1 for success in successes if not success)
        if not failed:
            return
        reports = [self.error_queue.get() for _ in range(failed)]
        self._state = AsyncState.DEFAULT
        index, kind, value, trace = min(reports, key=lambda report: report[0])
        if isinstance(value, EnvironmentFault):
            raise value
        raise EnvironmentFault(
            f"the process of environment {index} raised {kind.__name__}: {value}",
            env_index=index,
            trace=trace,
        )


def guarded_worker(
    index: int, env_fn: Callable[[], Any], pipe: Any, parent_pipe: Any, *rest: Any
) -> None:
    """The process of one environment: gymnasium's worker, made safe at its edges.

    Ctrl-C reaches the whole process group: the parent decides what it means, so workers ignore
    it. A handler for SIGTERM inherited through `fork` would keep `terminate()` from working. An
    exception in the constructor is reported like one in `step`, not as a closed pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        env = env_fn()
    except Exception as error:  # noqa: BLE001
        fault = EnvironmentFault(
            f"environment {index} raised {type(error).__name__}: {error} while being created",
            env_index=index,
            trace=traceback.format_exc(),
        )
        error_queue = rest[1]
        error_queue.put((index, EnvironmentFault, fault, fault.traceback))
        pipe.recv()
        pipe.send((None, False))
        return
    _async_worker(index, lambda: env, pipe, parent_pipe, *rest)


def blamed_environment(vector: Any, error: Exception) -> int | None:
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
            return int(local["i"])
        step = step.tb_next
    return None


def _is_hung_up(pipe: Any) -> bool:
    """Whether the process at the other end has ended.

    A process that has ended leaves its pipe before anybody can see it ended.
    """
    poller = select.poll()
    poller.register(pipe, 0)  # what is always told: that the other end is closed
    return bool(poller.poll(0))
