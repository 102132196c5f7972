"""The process of a worker: it steps its share of the environments whenever its bell rings."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trpo_fast.base.errors import EnvironmentFault, EnvironmentSetupError
from trpo_fast.base.spaces import Space
from trpo_fast.environments.action_masks import MaskSource
from trpo_fast.environments.board import Bell, Board, Gone
from trpo_fast.environments.gymnasium_vectors import LocalEnvironments, created
from trpo_fast.environments.interface import Bool, Episode
from trpo_fast.environments.processes import close_for, end_with_trainer
from trpo_fast.environments.row_format import RowFormat
from trpo_fast.environments.seeded_episodes import SeededEpisodes
from trpo_fast.environments.vector_environment import VectorEnvironment
from trpo_fast.environments.watch import NOBODY

# What is asked of a worker: a step, or a method of its share by the pipe.
STEP, CALL, END = 1, 2, 3
# What it answers: a step in which no episode ended, one in which some did, or a word by the pipe.
QUIET, LOUD, SPOKEN = 1, 2, 3
# Places in its row of the board's words. The trainer writes the first line, the worker the second.
ASKED, REQUEST = 0, 1
ANSWERED, ANSWER, UNDER_WAY = 8, 9, 10


@dataclass(frozen=True)
class Source:
    """How to make the environments of a share, and what they must be like."""

    name: str
    seed: int
    factories: Sequence[Callable[[], SeededEpisodes]]  # of the share alone
    first: int  # number of its first environment
    observation_space: Space
    action_space: Space
    rows_of: Callable[[Space], RowFormat]  # makes the format of their observations

    @property
    def rows(self) -> slice:
        """Its rows of a board."""
        return slice(self.first, self.first + len(self.factories))


class Share:
    """Some of the environments of a board, stepped in turn in this process.

    Args:
        board: where actions are read and everything else is written.
        source: of the environments.
        under_way: ``under_way[0]`` is kept at the number of the environment that steps.
        own: whether it is the trainer's, whom nobody watches but itself.

    Raises:
        EnvironmentFault: an environment raised in its constructor.
        EnvironmentSetupError: the environments differ in their spaces.
    """

    def __init__(self, board: Board, source: Source, under_way: Any, *, own: bool = False) -> None:
        made = [created(source.first + i, make) for i, make in enumerate(source.factories)]
        for env in made:
            if (env.observation_space, env.action_space) != (
                source.observation_space,
                source.action_space,
            ):
                raise EnvironmentSetupError(
                    f"environment {env.index} of {source.name} has other spaces than the first: "
                    f"{env.observation_space} and {env.action_space}, not "
                    f"{source.observation_space} and {source.action_space}."
                )
        vector = LocalEnvironments(
            [partial(_itself, env) for env in made],
            under_way,
            source.first,
            watched=source.name if own else "",
        )
        self._env = VectorEnvironment(
            vector,
            name=source.name,
            seed=source.seed,
            remake=lambda: vector,
            first=source.first,
            rows=source.rows_of,
        )
        rows = source.rows
        self._first = source.first
        self._board = board
        self._actions, self._observations = board.actions[rows], board.observations[rows]
        self._rewards, self._steps = board.rewards[rows], board.steps[rows]
        self._terminated, self._truncated = board.terminated[rows], board.truncated[rows]
        self._finals, self._masks = board.finals[rows], board.masks[rows]
        self._was_loud = True

    def step(self) -> bool:
        """Act as the board says and write what follows; whether an episode ended."""
        # a copy, since an environment may keep the action it was given
        done = self._env.step(self._actions.copy(), self._observations)
        self._rewards[:] = done.rewards
        self._steps += 1
        if done.action_masks is not None:
            self._masks[:] = done.action_masks
        if not done.quiet or self._was_loud:
            self._terminated[:] = done.terminated
            self._truncated[:] = done.truncated
            self._steps[done.ended] = 0
            self._was_loud = not done.quiet
        if len(done.final_envs):
            self._finals[done.final_envs] = done.final_observations
        return not done.quiet

    def reset(self) -> MaskSource | None:
        """Begin an episode everywhere; where action masks come from."""
        self._steps[:] = 0
        self._write_masks(self._env.reset(self._observations))
        return self._env.mask_source

    def take_masks(self, source: MaskSource) -> None:
        """Write action masks from here on; see `VectorEnvironment.take_masks`."""
        self._masks[:] = True
        self._env.take_masks(source)

    def reset_where(self, where: Bool) -> None:
        """Begin new episodes in those of ``where`` [B of the share]."""
        masks = self._masks.copy() if self._env.mask_source else None
        self._steps[where] = 0
        self._write_masks(self._env.reset_where(where, self._observations, masks))

    def running_episodes(self) -> list[Episode]:
        """See `VectorEnvironment.running_episodes`."""
        return self._env.running_episodes()

    def plain_states(self) -> list[dict[str, Any]]:
        """See `VectorEnvironment.plain_states`."""
        return self._env.plain_states()

    def replay(self, episodes: Sequence[Episode]) -> MaskSource | None:
        """Enter these episodes; where action masks come from."""
        self._steps[:] = [len(actions) for _, actions in episodes]
        self._env.replay(episodes, self._observations)
        return self._env.mask_source

    def _write_masks(self, masks: npt.NDArray[np.bool_] | None) -> None:
        if masks is not None:
            self._masks[:] = masks

    def close(self) -> None:
        """Close the environments.

        Raises:
            EnvironmentFault: one of them raised; all were asked.
        """
        self._env.vector.close()


def _itself(env: SeededEpisodes) -> SeededEpisodes:
    return env


def serve(
    number: int,
    board: Board,
    source: Source,
    bells: tuple[Bell, Bell],
    pipe: Connection,
    inherited: Sequence[Connection],
    look: float,
    in_main: bool,
) -> None:
    """The life of worker ``number``, until it is told to end or its trainer does.

    Args:
        number: its row of the board's words.
        board: shared with the trainer.
        source: of its environments.
        bells: the one it waits for and the one it rings.
        pipe: for whatever is not a step.
        inherited: the trainer's ends of pipes, which a forked process has too.
        look: seconds to look at a bell before sleeping.
        in_main: whether the trainer's main thread made this process.
    """
    for end in inherited:
        end.close()
    # Ctrl-C reaches the whole process group: the trainer decides what it means. An inherited
    # handler for SIGTERM would keep `terminate` from working.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_trainer(pipe, by_signal=in_main)
    # Threads of torch do not survive a fork, and the cores have workers of their own.
    torch.set_num_threads(1)
    words = board.words[number]
    asked, answered = bells[0].attach(words, ASKED), bells[1].attach(words, ANSWERED)
    asked.listen(pipe)
    try:
        _Worker(words.data, asked, answered, pipe, look).run(board, source)
    except (Gone, BrokenPipeError, EOFError):
        os._exit(1)


class _Worker:
    def __init__(
        self, words: memoryview, asked: Bell, answered: Bell, pipe: Connection, look: float
    ) -> None:
        self._words = words
        self._asked = asked
        self._answered = answered
        self._pipe = pipe
        self._look = look

    def run(self, board: Board, source: Source) -> None:
        under_way = self._words[UNDER_WAY : UNDER_WAY + 1]
        try:
            share = Share(board, source, under_way)
        except Exception as error:  # noqa: BLE001
            self._speak(_sendable(error, source))
            return
        self._speak(None)
        with np.errstate(over="ignore"):  # as in a rollout of this process
            while self._answer(share, source):
                pass
        self._pipe.send("")  # it was heard; the environments may take their time
        close_for(self._pipe, share.close)

    def _answer(self, share: Share, source: Source) -> bool:
        """Wait for a request and do it; False for the last one."""
        self._asked.wait(self._look)
        request = self._words[REQUEST]
        if request == END:
            return False
        try:
            if request == STEP:
                outcome = LOUD if share.step() else QUIET
                self._words[UNDER_WAY] = NOBODY
                self._words[ANSWER] = outcome
                self._answered.ring()
            else:
                method, arguments = self._pipe.recv()
                self._speak(getattr(share, method)(*arguments))
        except (BrokenPipeError, EOFError):
            raise
        except Exception as error:  # noqa: BLE001
            self._speak(_sendable(error, source))
        return True

    def _speak(self, answer: Any) -> None:
        """Ring first: a long answer does not fit in the pipe before somebody reads."""
        self._words[UNDER_WAY] = NOBODY
        self._words[ANSWER] = SPOKEN
        self._answered.ring()
        self._pipe.send(answer)


def _sendable(error: Exception, source: Source) -> Exception:
    """An exception that arrives whole: one of ours."""
    if isinstance(error, EnvironmentFault):
        return error
    if isinstance(error, EnvironmentSetupError):
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 (our own)
        except Exception:  # noqa: BLE001
            return EnvironmentSetupError(str(error))
        return error
    rows = source.rows
    return EnvironmentFault(
        f"{environments(rows.start, rows.stop)} of {source.name} raised {type(error).__name__}: "
        f"{error}",
        env_index=rows.start if rows.stop - rows.start == 1 else None,
        trace=traceback.format_exc(),
    )


def environments(first: int, stop: int) -> str:
    """`environment 3`, or `environments 3 to 5`."""
    return f"environment {first}" if stop - first == 1 else f"environments {first} to {stop - 1}"
