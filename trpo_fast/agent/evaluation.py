"""Whole episodes of a policy, apart from training, and guarded as it is.

Episodes are seeded by their number, so a score depends neither on how many environments run side
by side nor on what training did with its random numbers.
"""

from __future__ import annotations

import numbers
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from trpo_fast.agent.config import Config
from trpo_fast.base.errors import (
    BadObservationError,
    EnvironmentFault,
    EnvironmentSetupError,
    users_level,
)
from trpo_fast.base.trees import is_nested
from trpo_fast.environments import seeded_episodes
from trpo_fast.environments.action_masks import MaskReader
from trpo_fast.environments.gymnasium_api import described_error, reset_result, step_result
from trpo_fast.environments.nested_actions import in_lists
from trpo_fast.environments.observation_check import ObservationCheck
from trpo_fast.environments.processes import closed, warn_of_closing
from trpo_fast.environments.watch import NOBODY, SOMEBODY, Watch

EnvFactory = Callable[[], gymnasium.Env[Any, Any]]
# (raw observations of n environments, their action masks or None) -> n actions for env.step; see
# `run_episodes` for one with states.
Act = Callable[..., Any]

REPORT_SECONDS = 10.0
LARGEST = float(np.finfo(np.float32).max)  # reward
# Keeps evaluation episodes apart from training's, which are keyed (seed, environment, episode).
EVALUATION_KEY = 0xE7A1


@dataclass(frozen=True)
class Evaluation:
    """Returns and lengths of the episodes, in order of their number.

    Attributes:
        cut_short: How many of them were stopped at the step limit, their returns as they were.
        dropped: How many gave NaN or infinity and are left out.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    cut_short: int = 0
    dropped: int = 0

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns (population)."""
        return float(np.std(self.returns))

    @property
    def mean_length(self) -> float:
        """Mean length in steps."""
        return float(np.mean(self.lengths))


def run_episodes(
    act: Act,
    make_env: EnvFactory,
    episodes: int,
    *,
    seed: int,
    parallel: int = Config.eval_envs,
    max_steps: int = Config.eval_max_steps,
    on_fault: str = "stop",
    report: Callable[[str], None] | None = None,
    done: Callable[[Evaluation], None] | None = None,
    stateful: bool = False,
) -> Evaluation:
    """Play so many episodes and report their returns.

    Every environment plays a fixed share of the episodes: taking whichever finish first would
    favour short ones.

    Args:
        act: the policy.
        make_env: called once for each environment.
        episodes: how many.
        seed: of the run; each episode's is made from it.
        parallel: most environments at once.
        max_steps: an episode that is longer is stopped, counted as it is, and warned of.
        on_fault: "stop": NaN or infinity from an environment raises. "drop": the episode is left
            out, with a warning.
        report: gets a line every ten seconds.
        done: gets the result before the environments are closed, which they may be bad at.
        stateful: `act` is given the environments' states too, None where an episode begins, and
            returns actions and next states.

    Raises:
        ValueError: `episodes` is below 1.
        EnvironmentFault: an environment raised, returned something else than its space says, or
            (on_fault="stop") NaN or infinity.
    """
    check_episodes(episodes)
    numbered = range(episodes)
    stage = _Stage()
    watch = Watch(stage, "the evaluation", advice="Ctrl-C may end it.")
    try:
        for share in range(min(episodes, parallel)):
            waiting = numbered[share :: min(episodes, parallel)]
            stage.players.append(_Player(stage, make_env(), share, seed, waiting, max_steps))
        _warn_of_fresh_statistics(stage.players[0].env)
        for player in stage.players:
            player.begin()
        _play(act if stateful else _stateful(act), stage, on_fault, report)
        played = [episode for player in stage.players for episode in player.done]
        result = result_of(played, max_steps)
        if done is not None:
            done(result)
        return result
    finally:
        stage.asked(SOMEBODY)
        told = [closed(player.env.close) for player in stage.players]
        watch.end()
        warn_of_closing("the evaluation's environments", told)


def check_episodes(episodes: object) -> None:
    """ValueError unless it is a number of episodes."""
    if not isinstance(episodes, numbers.Integral) or episodes < 1:
        raise ValueError(f"an evaluation needs a whole number >= 1 of episodes, got {episodes!r}")


def _stateful(act: Act) -> Act:
    return lambda observations, masks, states: (act(observations, masks), states)


def _play(act: Act, stage: _Stage, on_fault: str, report: Callable[[str], None] | None) -> None:
    players = stage.players
    total = sum(len(player.waiting) + 1 for player in players)
    due = time.monotonic() + REPORT_SECONDS
    while playing := [player for player in players if player.number is not None]:
        stage.asked(NOBODY)
        try:
            actions, states = act(
                [p.observation for p in playing],
                [p.mask for p in playing],
                [p.state for p in playing],
            )
        except BadObservationError as error:
            player = playing[error.env]
            player.give_up(player.fault(str(error), error), on_fault)
            continue
        for player, action, state in zip(playing, actions, states, strict=True):
            player.state = state
            bad = player.step(action)
            if bad is not None:
                player.give_up(bad, on_fault)
        if report is not None and time.monotonic() >= due:
            due = time.monotonic() + REPORT_SECONDS
            over = sum(len(player.done) for player in players)
            steps = max(player.length for player in players)
            report(f"evaluating: {over} of {total} episodes, the longest running at step {steps}")


@dataclass(frozen=True)
class Episode:
    """One that is over."""

    number: int
    total: float
    length: int
    cut: bool = False
    dropped: bool = False


class _Stage:
    """The environments of an evaluation, and which of them is at work, for a `Watch`."""

    def __init__(self) -> None:
        self.players: list[_Player] = []
        self.calls, self.under_way = 0, [NOBODY]

    def asked(self, env: int) -> None:
        """Environment ``env`` is asked for something, or NOBODY."""
        self.calls += 1
        self.under_way[0] = env

    def steps_of(self, env: int) -> int:
        """How many steps the running episode of environment ``env`` has."""
        return self.players[env].length


class _Player:
    """One environment and its share of the episodes; whatever goes wrong is named."""

    def __init__(
        self,
        stage: _Stage,
        env: gymnasium.Env[Any, Any],
        index: int,
        seed: int,
        numbers: Sequence[int],
        max_steps: int,
    ) -> None:
        self.env, self.waiting, self.done = env, list(numbers), list[Episode]()
        self.number: int | None = None  # of the running episode
        self.length, self.observation = 0, None
        self.state: Any = None  # of the policy, in this episode
        self.mask: npt.NDArray[np.bool_] | None = None
        self._stage = stage
        self._index, self._seed, self._max_steps = index, seed, max_steps
        self._total = 0.0
        self._check = ObservationCheck(env.observation_space)
        self._masks = MaskReader(env.action_space)
        has_method = env.has_wrapper_attr("action_masks")
        self._method = env.get_wrapper_attr("action_masks") if has_method else None

    def begin(self) -> None:
        """Reset for the next episode, if there is one."""
        self.number = self.waiting.pop(0) if self.waiting else None
        if self.number is None:
            return
        self._total, self.length, self.state = 0.0, 0, None
        self._stage.asked(self._index)
        try:
            shown, info = reset_result(self.env.reset(seed=episode_seed(self._seed, self.number)))
            self._show(shown, info)
        except EnvironmentSetupError:
            raise  # in words already: a recording that cannot be made
        except Exception as error:
            raise self._raised(error, "reset()") from error

    def step(self, action: Any) -> EnvironmentFault | None:
        """Act; what is wrong with the reward, if anything."""
        self.length += 1
        self._stage.asked(self._index)
        try:
            shown, reward, terminated, truncated, info = step_result(self.env.step(action))
            reward = float(reward)
            over = bool(terminated) or bool(truncated)
            if not over:
                self._show(shown, info)
        except EnvironmentSetupError:
            raise
        except Exception as error:
            raise self._raised(error, "step()", action) from error
        if not abs(reward) <= LARGEST:  # as in training; NaN is not, either
            return self.fault(f"the environment returned the reward {reward}", action=action)
        self._total += reward
        if over or self.length >= self._max_steps:
            self._end(cut=not over)
        return None

    def _end(self, *, cut: bool = False, dropped: bool = False) -> None:
        assert self.number is not None  # noqa: S101
        self.done.append(Episode(self.number, self._total, self.length, cut, dropped))
        self.begin()

    def give_up(self, fault: EnvironmentFault, on_fault: str) -> None:
        """Drop the running episode where that is asked for; raise the fault otherwise."""
        if on_fault != "drop":
            raise fault
        warnings.warn(f"{fault} The episode is left out.", RuntimeWarning, stacklevel=users_level())
        self._end(dropped=True)

    def _show(self, observation: Any, info: dict[str, Any]) -> None:
        self.observation = self._check(observation)
        self.mask = self._masks.find(observation, info, self._method)

    def _raised(self, error: Exception, where: str, action: Any = None) -> EnvironmentFault:
        text = f"the environment raised {described_error(error)} in {where}"
        return self.fault(text, error, action)

    def fault(
        self, text: str, error: Exception | None = None, action: Any = None
    ) -> EnvironmentFault:
        """What to raise about the running episode."""
        given = "" if action is None else f" (action {in_lists(action)})"
        fault = EnvironmentFault(
            f"evaluation episode {self.number}, step {self.length}: {text}{given}.",
            env_index=self._index,
            step=self.length,
            action=action if action is None or is_nested(action) else np.array(action),
            trace="" if error is None else "".join(traceback.format_exception(error)),
        )
        fault.__cause__ = error
        return fault


def result_of(episodes: list[Episode], max_steps: int) -> Evaluation:
    """What the episodes come to; EnvironmentFault where all were dropped."""
    episodes = sorted(episodes, key=lambda episode: episode.number)
    kept = [episode for episode in episodes if not episode.dropped]
    if not kept:
        raise EnvironmentFault("every episode of the evaluation was dropped: all gave NaN.")
    cut = sum(episode.cut for episode in kept)
    if cut:
        warnings.warn(
            f"{cut} of {len(kept)} evaluation episodes were stopped after {max_steps} steps and "
            "count with the return they had (eval_max_steps; gymnasium.wrappers.TimeLimit ends "
            "episodes in training too)",
            stacklevel=users_level(),
        )
    returns = tuple(episode.total for episode in kept)
    lengths = tuple(episode.length for episode in kept)
    return Evaluation(returns, lengths, cut, len(episodes) - len(kept))


def _warn_of_fresh_statistics(env: gymnasium.Env[Any, Any]) -> None:
    """Warn of normalising wrappers of gymnasium: they begin anew in an evaluation."""
    while isinstance(env, gymnasium.Wrapper):
        own = [name for name in ("obs_rms", "return_rms") if name in vars(env)]
        if own:
            warnings.warn(
                f"{type(env).__name__} within the environment keeps running statistics "
                f"({own[0]}): those of an evaluation's environments begin anew, so the policy is "
                "shown, or scored in, other numbers than in training. Leave the wrapper out: "
                "normalize_observations and normalize_rewards keep theirs in the agent.",
                RuntimeWarning,
                stacklevel=users_level(),
            )
        env = env.env


def episode_seed(seed: int, episode: int) -> int:
    """The seed that evaluation episode `episode` is reset with."""
    return seeded_episodes.episode_seed(seed, EVALUATION_KEY, episode)
