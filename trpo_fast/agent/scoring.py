"""An agent's evaluations: in environments of their own, or in the training's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from trpo_fast.agent import evaluation_factories
from trpo_fast.agent.actor import Actor
from trpo_fast.agent.evaluation import EnvFactory, Evaluation, check_episodes, run_episodes
from trpo_fast.agent.own_evaluation import run_in
from trpo_fast.agent.state import Training
from trpo_fast.agent.tensor_evaluation import TensorFactory, run_tensor_episodes
from trpo_fast.base.errors import EnvironmentSetupError

Report = Callable[[str], None]
Done = Callable[[Evaluation], None]


class Scoring:
    """Whole episodes by the deterministic actions of the policy as it is.

    Args:
        source: what the training's environments were made from.
        training: whose options and environments these are.
        actor: the policy.
    """

    def __init__(self, source: Any, training: Training, actor: Actor) -> None:
        self._source, self._training, self._actor = source, training, actor

    @property
    def in_own(self) -> bool:
        """Whether it is the training's environments that evaluations are played in."""
        return not self._training.config.eval_envs

    def require_possible(self) -> None:
        """EnvironmentSetupError where `eval_every` could not be done."""
        if self._training.config.eval_every and not self.in_own:
            evaluation_factories.require_another(self._factory(self._source))

    def run(
        self,
        episodes: int,
        env: Any = None,
        report: Report | None = None,
        done: Done | None = None,
    ) -> Evaluation:
        """Play so many episodes; see `run_episodes`.

        Args:
            episodes: how many.
            env: what to make environments from in place of the source.
            report: gets a line every ten seconds.
            done: gets the result before the environments are closed.
        """
        if self._in_tensors:
            return self._run_in_tensors(episodes, env, report, done)
        if env is not None or not self.in_own:
            make_env = self._factory(self._source if env is None else env)
            return self._play(episodes, make_env, report=report, done=done)
        act = partial(self._actor.act_on, True)
        training = self._training
        own: Any = training.collector.lend()
        result = run_in(own, act, episodes, training.config, report)
        if done is not None:
            done(result)
        return result

    def _run_in_tensors(
        self, episodes: int, env: Any, report: Report | None, done: Done | None
    ) -> Evaluation:
        """`run`, where all environments step at once."""
        check_episodes(episodes)
        training, made = self._training, None
        if env is not None or not self.in_own:
            factory = self._factory(env)
            used = factory(min(episodes, training.config.eval_envs or episodes))
            made = None if factory.lent else used
        else:
            used = training.collector.lend()
        try:
            result = run_tensor_episodes(self._actor, used, episodes, training.config, report)
            if done is not None:
                done(result)
        finally:
            if made is not None:
                made.close()
        return result

    def record(self, episodes: int, directory: Path, report: Report | None = None) -> Evaluation:
        """`run`, one environment at a time, with a video of each episode in ``directory``."""
        if self._in_tensors:
            raise EnvironmentSetupError("no videos are recorded of tensor environments")
        make_env = evaluation_factories.recording_factory(
            self._source, self._training.config.env_kwargs, directory
        )
        return self._play(episodes, make_env, parallel=1, report=report)

    @property
    def _in_tensors(self) -> bool:
        return self._training.config.vectorization == "tensor"

    def _factory(self, source: Any) -> Any:
        config = self._training.config
        if self._in_tensors:
            return TensorFactory(self._source, None if source is self._source else source, config)
        return evaluation_factories.environment_factory(
            source, config.env_kwargs, config.vectorization
        )

    def _play(
        self,
        episodes: int,
        make_env: EnvFactory,
        parallel: int | None = None,
        report: Report | None = None,
        done: Done | None = None,
    ) -> Evaluation:
        config = self._training.config
        act: Any = partial(self._actor.act_each, deterministic=True)
        return run_episodes(
            act,
            make_env,
            episodes,
            seed=int(config.seed or 0),
            parallel=parallel or max(1, config.eval_envs),
            max_steps=config.eval_max_steps,
            on_fault=config.on_fault,
            report=report,
            done=done,
            stateful=True,
        )
