"""gymnasium's vector of processes, one an environment, made safe at its edges."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from multiprocessing import parent_process
from typing import Any

from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState, _async_worker

from trpo_fast.base.errors import EnvironmentFault, EnvironmentSetupError
from trpo_fast.environments import silence
from trpo_fast.environments.gymnasium_vectors import blamed_environment, created
from trpo_fast.environments.processes import (
    close_for,
    death,
    dismiss,
    end,
    end_with_trainer,
    keep_from_forks,
    made_in_main_thread,
)
from trpo_fast.environments.seeded_episodes import SeededEpisodes
from trpo_fast.environments.silence import Silence

REPORT_SECONDS = 30.0
_LIMITED = {AsyncState.WAITING_STEP: "step()", AsyncState.WAITING_RESET: "reset()"}


class ProcessEnvironments(AsyncVectorEnv):
    """gymnasium's vector of processes, with :func:`guarded_worker` and quiet error reports.

    gymnasium announces each worker's traceback in a warning; here the exception carries it.

    Args:
        factories: of the environments.
        mode: what follows an episode's end.
        name: what to call them in messages.
        step_timeout: seconds after which a step or a reset is taken to hang; 0: never.

    Raises:
        EnvironmentSetupError: a process died before it had made its environment.
        EnvironmentFault: an environment raised in its constructor.
    """

    def __init__(
        self,
        factories: Sequence[Callable[[], SeededEpisodes]],
        mode: AutoresetMode,
        name: str,
        step_timeout: float,
    ) -> None:
        self._name, self._step_timeout, self._silence = name, step_timeout, Silence()
        self._maker = os.getpid()
        worker = partial(guarded_worker, made_in_main_thread())
        try:
            super().__init__(factories, copy=False, autoreset_mode=mode, worker=worker)
        except BaseException as error:
            lost = blamed_environment(self, error) if hasattr(self, "processes") else None
            why = "" if lost is None else death(self.processes[lost])
            end_processes(self)
            if isinstance(error, (EOFError, ConnectionError)) and lost is not None:
                raise EnvironmentSetupError(
                    f"the processes of {name} could not be started: environment {lost}: {why}"
                ) from None
            raise
        keep_from_forks(self.processes)

    def __del__(self) -> None:
        """End the processes of a vector that was not closed, but in a fork of their program."""
        if self._maker == os.getpid():
            super().__del__()

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        failed = sum(1 for success in successes if not success)
        if not failed:
            return
        reports = [self._report() for _ in range(failed)]
        self._state = AsyncState.DEFAULT
        index, kind, value, trace = min(reports, key=lambda report: report[0])
        if isinstance(value, EnvironmentFault):
            raise value
        raise EnvironmentFault(
            f"the process of environment {index} raised {kind.__name__}: {value}",
            env_index=index,
            trace=trace,
        )

    def _report(self) -> Any:
        """What a process put into the queue before it said that it failed."""
        try:
            return self.error_queue.get(timeout=REPORT_SECONDS)
        except queue.Empty:  # it died while it wrote
            text = f"a process of {self._name} failed, and did not say of what"
            return self.num_envs, EnvironmentFault, EnvironmentFault(text), ""

    def _poll_pipe_envs(self, timeout: float | None = None) -> bool:
        """Wait until every process has answered; gymnasium would wait in silence."""
        if timeout is not None:
            return bool(super()._poll_pipe_envs(timeout))
        self._assert_is_running()
        began, where = time.monotonic(), _LIMITED.get(self._state, "")
        limit = self._step_timeout if where else 0.0
        for env, pipe in enumerate(self.parent_pipes):
            poller = select.poll()
            poller.register(pipe, select.POLLIN)
            self._await(env, poller, began, limit, f" in {where}" if where else "")
        return True

    def _await(self, env: int, poller: Any, began: float, limit: float, where: str) -> None:
        """Wait for one answer; EnvironmentFault where it is not there in time."""
        who = f"environment {env} of {self._name}"
        while True:
            left = silence.SILENCE
            if limit:
                left = min(left, max(0.0, began + limit - time.monotonic()))
            if poller.poll(1e3 * left):
                return
            if limit and time.monotonic() >= began + limit:
                raise EnvironmentFault(
                    f"{who}: its process did not answer within {limit:g} s{where}", env_index=env
                )
            self._silence.since(began, who, where)

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """End the processes, after their environments' close() where they can be asked.

        Raises:
            EnvironmentFault: close() raised, or did not return. The processes have ended then.
        """
        del timeout
        told: list[str] = []
        if not terminate and self._state is AsyncState.DEFAULT:
            for pipe in self.parent_pipes:
                with contextlib.suppress(OSError):  # its process is gone
                    pipe.send(("close", None))
            names = [f"environment {env}" for env in range(self.num_envs)]
            told = dismiss(self.processes, self.parent_pipes, names)
        end_processes(self)
        if told:
            raise EnvironmentFault("; ".join(told))


def end_processes(vector: AsyncVectorEnv) -> None:
    """End the processes of any vector of gymnasium's, whatever they are at."""
    end(getattr(vector, "processes", ()))
    for pipe in getattr(vector, "parent_pipes", ()):
        if pipe is not None:
            pipe.close()
    vector.closed = True


def guarded_worker(
    in_main: bool, index: int, env_fn: Callable[[], Any], pipe: Any, parent_pipe: Any, *rest: Any
) -> None:
    """The process of one environment: gymnasium's worker, made safe at its edges.

    Ctrl-C reaches the whole process group: the parent decides what it means, so workers ignore
    it. A handler for SIGTERM inherited through `fork` would keep `terminate()` from working. An
    exception in the constructor is reported like one in `step`, not as a closed pipe. The process
    ends with its parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    trainer = parent_process()
    assert trainer is not None  # noqa: S101 (this is the process of a worker)
    end_with_trainer(trainer.sentinel, by_signal=in_main)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone, or has given it up
        try:
            env = created(index, env_fn)
        except EnvironmentFault as fault:
            error_queue = rest[1]
            error_queue.put((index, EnvironmentFault, fault, fault.traceback))
            pipe.recv()
            pipe.send((None, False))
            return
        env.close = partial(close_for, pipe, env.close)  # type: ignore[method-assign]
        _async_worker(index, lambda: env, pipe, parent_pipe, *rest)
