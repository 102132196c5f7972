"""Environments that begin in this process and move to workers when that pays.

Workers give the bits of a vector in this process, so when to move can be left to a clock. A step is
timed in the first steps of the run itself: no environment is made or stepped for it. The running
episodes, a few steps long by then, are replayed in the workers. The environments stay where they
were if that does not lead to the same observations, rewards and attributes, if they draw from the
program's own random numbers, of which each worker would have a copy, or if the first steps there
are no quicker, since other programs use the cores. Where that begins later, the environments come
back by the same way, and all is timed anew.
"""

from __future__ import annotations

import multiprocessing
import pickle
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from math import inf
from statistics import median
from time import perf_counter
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

from trpo_fast.base.errors import EnvironmentFault
from trpo_fast.base.spaces import Space
from trpo_fast.base.threads import own_cores
from trpo_fast.environments.action_masks import MaskSource
from trpo_fast.environments.interface import Bool, Environments, Episode, Rows, Transition
from trpo_fast.environments.sharing import shared_object
from trpo_fast.environments.vector_environment import VectorEnvironment
from trpo_fast.environments.workers import Workers, shares

# Steps that are timed, and seconds that they take at least, since another program may have the core
# for some milliseconds; their median counts.
STEPS, LEAST = 16, 0.02
# So few are enough after so many seconds.
FEWEST, ENOUGH = 3, 0.2
# Seconds that a step costs more for going to other processes and back.
HANDOVER = 4e-5
# Workers must save this share of a step: less is not worth their memory.
LEAST_SAVED = 0.2
# Seconds of steps in workers after which these must have been quicker than here; the double after
# each time that they were not.
WATCHED = 10.0
# Seconds that processes have to start and to replay a few steps.
STARTED = 20.0
DRAWS = (
    "they draw from random numbers of the whole program (random, numpy.random or torch), and not "
    "from the np_random that reset seeds"
)
# Of multiprocessing's methods the one for which no script need guard its main part.
START_METHOD = "fork"


def why_not_workers(
    source: Any, first: gym.Env[Any, Any], kwargs: Mapping[str, Any], num_envs: int, workers: int
) -> str | None:
    """Why the environments stay in this process whatever a step takes, or None.

    Args:
        source: what they are made from.
        first: one of them.
        kwargs: what their constructors are given.
        num_envs: B.
        workers: how many are asked for; 0: what the cores suggest.
    """
    if num_envs == 1:
        return "one environment"
    if own_cores() == 1 and not workers:
        return "one core"
    if first.render_mode is not None:
        return "they render, and windows and graphics contexts do not survive a fork"
    shared = shared_object(source, first, kwargs)
    if shared is not None:
        return f"they may share {shared} with this program; ask for workers if they need not"
    if multiprocessing.current_process().daemon:
        return "this process is a daemon, which may start none"
    method = multiprocessing.get_start_method(allow_none=True) or _usual_method()
    if method != START_METHOD:
        return (
            f"multiprocessing starts processes by {method} here, for which a script must be "
            "written; ask for workers if yours is"
        )
    if "jax" in sys.modules:
        return "JAX is loaded, whose threads do not survive a fork"
    if _traced():
        return "a debugger or a tracer is at work, which does not see into other processes"
    return None


def _usual_method() -> str:
    """How processes are started where the program has not chosen.

    On Linux by fork, though from Python 3.14 on multiprocessing does not unless told to, since a
    thread may hold a lock at that moment: a worker that does not begin is given up here.
    """
    linux = sys.platform == "linux"
    return START_METHOD if linux else multiprocessing.get_all_start_methods()[0]


def _traced() -> bool:
    """Whether something follows this program line by line."""
    if sys.gettrace() is not None:
        return True
    monitoring = getattr(sys, "monitoring", None)  # of Python 3.12 on
    if monitoring is None:
        return False
    return any(map(monitoring.get_tool, (monitoring.DEBUGGER_ID, monitoring.COVERAGE_ID)))


class AutomaticEnvironments:
    """See `VectorEnvironment` for each method, and this module for what it does.

    Args:
        local: the environments in this process.
        make_workers: the same in others, given the seconds that starting may take.
        workers: how many of them, 0 for what the cores suggest.
        step_timeout: as of `Workers`.
    """

    def __init__(
        self,
        local: VectorEnvironment,
        make_workers: Callable[[float], Workers],
        workers: int,
        step_timeout: float,
    ) -> None:
        self._env: Environments = local
        self._make_workers = make_workers
        _, parts = shares(local.num_envs, workers, alone=step_timeout > 0)
        self._largest_share = -(-local.num_envs // parts)
        self._seconds: list[float] = []
        self._spent = 0.0
        self._undecided = True
        self._watched = (0.0, 0)  # seconds in workers, and steps
        self._window = WATCHED
        self._local = local
        self._local_step = 0.0  # seconds, once it is known
        self.choice = ""
        self.name = local.name
        self.num_envs = local.num_envs
        self.action_space: Space = local.action_space
        self.observation_space: Space = local.observation_space
        self.observation_dtype = local.observation_dtype
        self.observation_width = local.observation_width
        self.row_format = local.row_format
        self.resumable = local.resumable

    @property
    def current(self) -> Environments:
        """What steps now."""
        return self._env

    @property
    def ended(self) -> bool:
        """Whether processes were ended, so that episodes must be entered anew before a step."""
        return self._env.ended

    @property
    def mask_source(self) -> MaskSource | None:
        """Where action masks come from."""
        return self._env.mask_source

    def step(self, actions: npt.NDArray[Any], out: Rows) -> Transition:
        """Act everywhere; what the policy acts on next goes to ``out`` [B, O]."""
        if self._window == inf and not self._undecided:
            return self._env.step(actions, out)
        before = self._drawn()
        began = perf_counter()
        transition = self._env.step(actions, out)
        seconds = perf_counter() - began
        self._stay_if_drawn(before)
        if self._undecided:
            self._time(seconds, out)
        else:
            self._watch(seconds, out)
        return transition

    def _drawn(self) -> Any:
        """How far the program's own generators are, while it counts; else None."""
        if not self._undecided or self._env is not self._local:
            return None
        states = random.getstate(), np.random.get_state()  # noqa: NPY002 (the environments' own)
        return pickle.dumps(states), torch.get_rng_state().numpy().tobytes()

    def _stay_if_drawn(self, before: Any) -> None:
        """Stay in this process if the environments have moved the program's own generators."""
        if before is not None and self._drawn() != before:
            self._undecided, self._window = False, inf
            self.choice = f"sync: {DRAWS}"

    def _time(self, seconds: float, out: Rows) -> None:
        """Decide, once enough steps were timed."""
        self._seconds.append(seconds)
        self._spent += seconds
        count, spent = len(self._seconds), self._spent
        if (count >= STEPS and spent >= LEAST) or (count >= FEWEST and spent >= ENOUGH):
            step = median(self._seconds)
            self._seconds, self._spent = [], 0.0
            if isinstance(self._env, Workers):
                self._settle(self._env, step, out)
            else:
                self._consider(step, out)

    def _watch(self, seconds: float, out: Rows) -> None:
        """Come back from workers and begin anew where they have become slower than steps here."""
        spent, steps = self._watched[0] + seconds, self._watched[1] + 1
        self._watched = (spent, steps)
        if spent < self._window:
            return
        self._watched = (0.0, 0)
        workers = self._env
        if not isinstance(workers, Workers) or spent < steps * self._local_step:
            return
        self._window *= 2
        try:
            back = self._leads_to(self._local, workers, out)
        except EnvironmentFault:  # if it is the workers', the next step tells
            back = False
        if back:
            self._env, self._undecided = self._local, True
        else:
            self._window = inf
        (workers if back else self._local).close()

    def _consider(self, step: float, out: Rows) -> None:
        """Move to workers if a step of so many seconds is worth it."""
        self._local_step = step
        saved = 1 - self._largest_share / self.num_envs - HANDOVER / step
        workers: Workers | str = f"workers would save {100 * max(saved, 0):.0f}%"
        if saved >= LEAST_SAVED:
            workers = self._moved(out)
        if isinstance(workers, str):
            self._undecided, self._window = False, inf
            self.choice = f"sync: {self._figures()}, and {workers}"
        else:
            self._env = workers

    def _settle(self, workers: Workers, step: float, out: Rows) -> None:
        """Stay with the workers if their step is quicker or nothing leads back, or else go back."""
        taken = f"{1e6 * step:.0f} us in workers"
        if step < self._local_step:
            self.choice = f"{workers.choice}, since {self._figures()} and {taken}"
        elif self._leads_to(self._local, workers, out):
            self._env, self._window = self._local, inf
            self.choice = f"sync: {self._figures()} and {taken}"
        else:
            self.choice = f"{workers.choice}, since the environments here would not come back"
        self._undecided = False
        (self._local if self._env is workers else workers).close()

    def _leads_to(
        self, where: VectorEnvironment | Workers, origin: VectorEnvironment | Workers, out: Rows
    ) -> bool:
        """Whether the running episodes of ``origin``, replayed elsewhere, lead to the same."""
        rows = np.empty_like(out)
        where.replay(origin.running_episodes(), rows)
        return _alike(rows, out) and _alike(origin.plain_states(), where.plain_states())

    def _figures(self) -> str:
        return f"a step of {self.num_envs} takes {1e6 * self._local_step:.0f} us here"

    def _moved(self, out: Rows) -> Workers | str:
        """Workers in the running episodes, or why there are none."""
        try:
            workers = self._make_workers(STARTED)
        except Exception as error:  # noqa: BLE001 (whatever it is, they step here)
            return f"workers could not be started ({type(error).__name__}: {error})"
        try:
            longest = max(len(actions) for _, actions in self._local.running_episodes())
            workers.start_timeout = STARTED + longest * self._local_step
            same = self._leads_to(workers, self._local, out)
            if self._local.mask_source is not None:
                workers.take_masks(self._local.mask_source)
            workers.start_timeout = None
        except EnvironmentFault as error:
            workers.close()
            return f"workers could not enter the running episodes ({error})"
        except BaseException:
            workers.close()
            raise
        if not same:
            workers.close()
            return "the environments do not depend on their seeds and actions alone"
        return workers

    def reset(self, out: Rows, restarts: int = 0) -> Bool | None:
        """Begin an episode everywhere; observations go to ``out`` [B, O]."""
        before = self._drawn()
        masks = self._env.reset(out, restarts)
        self._stay_if_drawn(before)
        return masks

    def reset_where(self, where: Bool, out: Rows, masks: Bool | None) -> Bool | None:
        """Abandon the running episodes of ``where`` [B] and begin new ones."""
        return self._env.reset_where(where, out, masks)

    def running_episodes(self) -> list[Episode]:
        """Number and actions so far of each running episode."""
        return self._env.running_episodes()

    def replay(self, episodes: Sequence[Episode], out: Rows) -> None:
        """Enter the episodes that `running_episodes` gave; their observations go to ``out``."""
        before = self._drawn()
        self._env.replay(episodes, out)
        self._stay_if_drawn(before)

    def close(self) -> None:
        """Release the environments."""
        self._env.close()
        if self._env is not self._local and not self._local.ended:
            self._local.close()


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are of one kind and equal, NaN being equal to itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and _bits(one) == _bits(other)
    return bool(one == other) or (one != one and other != other)


def _bits(array: npt.NDArray[Any]) -> tuple[tuple[int, ...], Any]:
    return array.shape, array.tolist() if array.dtype.hasobject else array.tobytes()
