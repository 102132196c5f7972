"""B environments in W processes and in this one, each stepping its share in turn.

Steps go through shared memory (board.py) and give the bits of a vector in this process, since a
share is such a vector. gymnasium's AsyncVectorEnv, with whatever worker, has a process for each
environment and a pickle each way; what fits of it, functions that cross to other processes by
cloudpickle, is used.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from trpo_fast.base.errors import EnvironmentFault, EnvironmentSetupError
from trpo_fast.base.spaces import Space, logit_blocks
from trpo_fast.base.threads import own_cores
from trpo_fast.environments.action_masks import MaskSource
from trpo_fast.environments.board import LOOK, Board, Shape
from trpo_fast.environments.flattening import ObservationFlattener
from trpo_fast.environments.interface import Bool, Episode, Rows, Transition
from trpo_fast.environments.nested_actions import own_space
from trpo_fast.environments.processes import closed, dismiss, end, start_method, warn_of_closing
from trpo_fast.environments.row_format import RowFormat
from trpo_fast.environments.seeded_episodes import SeededEpisodes
from trpo_fast.environments.silence import Silence
from trpo_fast.environments.vector_masks import without_mask
from trpo_fast.environments.watch import NOBODY
from trpo_fast.environments.worker_handle import Worker
from trpo_fast.environments.worker_process import END, LOUD, STEP, Share, Source


class Workers:
    """B environments in W processes and in this one; see `VectorEnvironment` for each method.

    Args:
        factories: B functions that make them.
        observation_space, action_space: of one environment.
        name: what to call them in messages.
        seed: of their episodes.
        workers: W; 0 for one a core beside this process, which steps a share itself.
        step_timeout: seconds after which a step or a reset of an environment is taken to hang;
            0: never. With it this process steps none, so that it can tell.
        start_timeout: seconds that the processes have to start, and for an answer until it is set
            to None; None: as long as it takes.
        rows: makes the format of the observations from their space.
        method: of multiprocessing, that starts them; "" for the program's.

    Raises:
        EnvironmentSetupError: the processes cannot be started.
        EnvironmentFault: an environment raised in its constructor.
    """

    resumable = True

    def __init__(
        self,
        factories: Sequence[Callable[[], SeededEpisodes]],
        observation_space: Space,
        action_space: Space,
        *,
        name: str,
        seed: int,
        workers: int = 0,
        step_timeout: float = 0.0,
        start_timeout: float | None = None,
        rows: Callable[[Space], RowFormat] = ObservationFlattener,
        method: str = "",
    ) -> None:
        self.name = name
        self._method = method or start_method()
        self.num_envs = len(factories)
        self.action_space, self._given = own_space(action_space), action_space
        self.observation_space = without_mask(observation_space, self.action_space)
        self.row_format = rows(self.observation_space)
        self.observation_width = self.row_format.width
        self.observation_dtype = self.row_format.dtype
        self.mask_source: MaskSource | None = None
        self.step_timeout = step_timeout
        self.start_timeout = start_timeout
        self.num_workers, parts = shares(self.num_envs, workers, alone=step_timeout > 0)
        self._sources = [
            Source(
                name,
                seed,
                [factories[i] for i in part],
                int(part[0]),
                observation_space,
                action_space,
                type(self.row_format),
            )
            for part in np.array_split(np.arange(self.num_envs), parts)
        ]
        self._workers: list[Worker] = []
        self._own: Share | None = None
        self._nowhere = np.zeros(self.num_envs, bool)
        self._no_finals = np.empty((0, self.observation_width), self.observation_dtype)
        self._unanswered = False
        self._silence = Silence()
        self._begin()

    @property
    def choice(self) -> str:
        """How the environments are stepped, in words."""
        count = f"{self.num_workers} process{'es' if self.num_workers > 1 else ''}"
        own = len(self._sources) > self.num_workers
        return f"workers: {count}{' and this one' if own else ''} on {own_cores()} cores"

    @property
    def ended(self) -> bool:
        """Whether episodes must be entered anew before a step.

        The processes were ended, or are those of the program that this one was forked from.
        """
        return not self._workers or self._maker != os.getpid()

    @property
    def processes(self) -> list[Any]:
        """The workers' processes."""
        return [worker.process for worker in self._workers]

    # Beginning and end

    def _begin(self) -> None:
        """Start everything afresh."""
        self._maker = os.getpid()
        board = self._board = Board(
            Shape(
                self.num_envs,
                self.num_workers,
                self.observation_width,
                np.dtype(self.observation_dtype).name,
                sum(logit_blocks(self.action_space)),
                tuple(self._given.shape or ()),
                np.dtype(self._given.dtype).name,
            )
        )
        # With fewer cores than processes, looking would keep somebody else from stepping.
        look = LOOK if len(self._sources) <= own_cores() else 0.0
        context = multiprocessing.get_context(self._method)
        try:
            for number, source in enumerate(self._sources[: self.num_workers]):
                worker = Worker(number, board, source, look, self._silence)
                self._workers.append(worker)
                worker.start(context)
            for source in self._sources[self.num_workers :]:
                self._own = Share(board, source, [NOBODY], own=True)
            for worker in self._workers:
                worker.hear(self.start_timeout, "while it was starting")
        except EnvironmentFault as fault:
            self._end()
            if not fault.traceback:  # it died or hung, as nobody's environment's doing
                raise self._not_started(fault) from None
            # the frames of the traceback keep the half-made board alive
            raise fault.with_traceback(None) from None
        except (OSError, RuntimeError, AttributeError, TypeError, AssertionError) as error:
            self._end()
            raise self._not_started(error) from error
        except BaseException:
            self._end()
            raise
        board.forget_file()

    def _not_started(self, error: Exception) -> EnvironmentSetupError:
        return EnvironmentSetupError(
            f"the processes of {self.name} could not be started: {type(error).__name__}: {error}"
        )

    def _revive(self) -> None:
        """Begin anew where a fault ended the processes, or an interrupt left answers unread."""
        if self._unanswered or self.ended:
            self._end()
            self._begin()

    def close(self) -> None:
        """Release the environments; processes end even if one of them is stuck.

        What an environment raises in close(), or that it does not return, is a warning.
        """
        workers, own, told = self._workers, self._own, list[str]()
        if not (self.ended or self._unanswered):
            self._unanswered = True  # whatever interrupts it, these are not asked again
            for worker in workers:
                worker.ask(END)
            told = dismiss(
                [worker.process for worker in workers],
                [worker.pipe for worker in workers],
                [worker.who for worker in workers],
            )
            if own is not None:
                self._own = None
                told.append(closed(own.close))
        self._end()
        warn_of_closing(self.name, told)

    def _end(self) -> None:
        """End the processes, all at once, whatever they are at; those of another are its own."""
        if self._maker != os.getpid():
            self._workers, self._own, self._unanswered = [], None, False
            return
        self._unanswered = True  # an interrupt from here on leaves what cannot be asked
        end([worker.process for worker in self._workers if worker.process is not None])
        for worker in self._workers:
            worker.close()
        self._workers = []
        self._unanswered = False
        self._board.forget_file()
        own, self._own = self._own, None
        if own is not None:
            with contextlib.suppress(Exception):  # what ended them is told, or they were to end
                own.close()

    # Asking and hearing

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        """A time in which workers owe answers; what breaks it off leaves them unread."""
        self._unanswered = True
        yield
        self._unanswered = False

    def _call(
        self, method: str, arguments: Sequence[tuple[Any, ...] | None], steps: int = 1
    ) -> list[Any]:
        """A method of each share, and what it returned.

        Args:
            method: of `Share`.
            arguments: a share's; None: this one is not asked.
            steps: how many of each environment it may take.
        """
        asked = [w for w, given in zip(self._workers, arguments, strict=False) if given is not None]
        own = arguments[-1] if len(arguments) > self.num_workers else None
        fault, found = None, []
        with self._answers():
            for worker in asked:
                worker.call(method, *(arguments[worker.number] or ()))
            if self._own is not None and own is not None:
                try:
                    found = [getattr(self._own, method)(*own)]
                except EnvironmentFault as error:
                    fault = error
            heard = [self._hear(w, self._limit(w, steps), f"in {method}()") for w in asked]
            self._raise_own(fault)
        return [*heard, *found]

    def _call_all(self, method: str) -> list[Any]:
        return self._call(method, [()] * len(self._sources))

    def _hear(self, worker: Worker, limit: float | None, when: str = "") -> Any:
        """The answer of one worker; the processes end where it is a fault."""
        try:
            return worker.hear(limit, when)
        except (EnvironmentFault, EnvironmentSetupError):
            self._end()
            raise

    def _raise_own(self, fault: EnvironmentFault | None) -> None:
        """A fault of this process's share, after those of the workers, whose come first."""
        if fault is not None:
            self._end()
            raise fault

    def _limit(self, worker: Worker, steps: int) -> float | None:
        """Seconds that a worker has for a method that steps each environment so often."""
        if not self.step_timeout:
            return self.start_timeout
        return self.step_timeout * steps * len(worker.source.factories)

    # What a rollout needs

    def reset(self, out: Rows, restarts: int = 0) -> Bool | None:
        """Begin an episode everywhere; observations go to ``out`` [B, O]."""
        del restarts  # these are replayable, and begin with their first episodes
        self._revive()
        self._agree_on_masks(self._call_all("reset"))
        return self._shown(out)

    def step(self, actions: npt.NDArray[Any], out: Rows) -> Transition:
        """Act everywhere; what the policy acts on next goes to ``out`` [B, O]."""
        board, workers = self._board, self._workers
        if not workers or actions.shape != board.actions.shape:
            raise self._no_step(actions)
        board.actions[...] = actions
        self._unanswered = True
        for worker in workers:
            worker.ask(STEP)
        loud, fault = False, None
        if self._own is not None:
            try:
                loud = self._own.step()
            except EnvironmentFault as error:
                fault = error
        limit = self.step_timeout or self.start_timeout
        for worker in workers:
            loud |= self._hear(worker, limit) == LOUD
        self._raise_own(fault)
        self._unanswered = False
        masks = self._shown(out)
        return self._loud(masks) if loud else self._quiet(masks)

    def _no_step(self, actions: npt.NDArray[Any]) -> Exception:
        if not self._workers:
            return EnvironmentFault(f"the processes of {self.name} have ended: reset begins anew.")
        return ValueError(
            f"actions must have shape {self._board.actions.shape}, got {actions.shape}."
        )

    def _quiet(self, masks: Bool | None) -> Transition:
        none = self._nowhere
        return Transition(
            self._board.rewards.copy(),
            none,
            none,
            none,
            quiet=True,
            resetting=none,
            fresh=none,
            final_envs=np.empty(0, np.int64),
            final_observations=self._no_finals,
            action_masks=masks,
        )

    def _loud(self, masks: Bool | None) -> Transition:
        board = self._board
        terminated, truncated = board.terminated.copy(), board.truncated.copy()
        ended = terminated | truncated
        finals = np.flatnonzero(truncated & ~terminated)
        return Transition(
            board.rewards.copy(),
            terminated,
            truncated,
            ended,
            quiet=False,
            resetting=self._nowhere,
            fresh=ended,
            final_envs=finals,
            final_observations=board.finals[finals],
            action_masks=masks,
        )

    def _shown(self, out: Rows) -> Bool | None:
        out[...] = self._board.observations
        return None if self.mask_source is None else self._board.masks.copy()

    def reset_where(self, where: Bool, out: Rows, masks: Bool | None) -> Bool | None:
        """Abandon the running episodes of ``where`` [B] and begin new ones."""
        parts = [where[source.rows] for source in self._sources]
        self._call("reset_where", [(part,) if part.any() else None for part in parts])
        out[where] = self._board.observations[where]
        if masks is None or self.mask_source is None:
            return None
        return np.where(where[:, None], self._board.masks, masks)

    def take_masks(self, source: MaskSource) -> None:
        """See `VectorEnvironment.take_masks`."""
        self.mask_source = self.mask_source or source
        self._agree_on_masks([None] * len(self._sources))

    def _agree_on_masks(self, sources: Sequence[MaskSource | None]) -> None:
        """Where one environment gives action masks, those of the others allow everything."""
        found = next((source for source in (self.mask_source, *sources) if source), None)
        if found is not None:
            self.mask_source = found
            self._call("take_masks", [None if source else (found,) for source in sources])

    def running_episodes(self) -> list[Episode]:
        """Number and actions so far of each running episode."""
        if self._unanswered or self.ended:
            raise EnvironmentFault(f"the processes of {self.name} were ended or interrupted.")
        return list(chain(*self._call_all("running_episodes")))

    def plain_states(self) -> list[dict[str, Any]]:
        """`SeededEpisodes.plain_state` of each environment."""
        return list(chain(*self._call_all("plain_states")))

    def replay(self, episodes: Sequence[Episode], out: Rows) -> None:
        """Enter the episodes that `running_episodes` gave; their observations go to ``out``."""
        self._revive()
        parts = [episodes[source.rows] for source in self._sources]
        longest = max(sum(len(actions) for _, actions in part) for part in parts)
        self._agree_on_masks(self._call("replay", [(part,) for part in parts], 1 + longest))
        self._shown(out)


def shares(num_envs: int, wanted: int, *, alone: bool) -> tuple[int, int]:
    """How ``num_envs`` environments are divided; ``alone`` where the trainer steps none itself.

    Returns:
        W, and the number of shares: one more, the last and smallest, where the trainer has one.
    """
    count = max(1, min(wanted or own_cores() - (not alone), num_envs))
    return count, count + (count < num_envs and not alone)
