"""TRPO from environment to trained policy: `TRPO(env).learn(steps)`.

All that decides what comes next is in one state, taken after each update. Checkpoints, interrupts
and faults all go back to such a state, never to the middle of an update.
"""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trpo_fast.agent import state as agent_state
from trpo_fast.agent.actor import Actor
from trpo_fast.agent.callbacks import Callback, CallbackRunner
from trpo_fast.agent.config import OPTIONS, Config
from trpo_fast.agent.construction import asked_for, make_training
from trpo_fast.agent.evaluation import Evaluation
from trpo_fast.agent.export import ExportedPolicy, export_policy
from trpo_fast.agent.iteration import Row, enter_environments, iterate
from trpo_fast.agent.learner import Learner
from trpo_fast.agent.loading import checkpoint_path, load_agent
from trpo_fast.agent.making import Collector
from trpo_fast.agent.run_on_disk import RunOnDisk
from trpo_fast.agent.scoring import Scoring
from trpo_fast.agent.shared_training import SharedTraining
from trpo_fast.base.output import remark, say
from trpo_fast.base.time_budget import Clock
from trpo_fast.environments.tensor_flattening import first_leaf
from trpo_fast.environments.wrapping import wrapped
from trpo_fast.runs.checkpoint import save_checkpoint
from trpo_fast.runs.directory import RunDirectory
from trpo_fast.runs.files import given_path
from trpo_fast.runs.interrupts import interrupt_guard
from trpo_fast.runs.progress import ProgressDisplay
from trpo_fast.runs.recorder import RunRecorder


class TRPO:
    """Trust Region Policy Optimization (Schulman et al. 2015) with GAE (Schulman et al. 2016).

    Args:
        env: a gymnasium id, a function that makes an Env, an Env, or a vector environment; with
            vectorization="tensor" an object that steps in torch tensors, a function that makes
            it, or "module:factory".
        policy: module whose forward(obs) gives a torch Distribution; or "mlp", "cnn",
            "multi_input", "recurrent", or "auto", as without one: by the observation space. A
            module with `observation = "structured"` is given the space's nesting, others flattened
            rows.
        value_function: module with forward(obs) -> [N]; one like the policy without.
        run_dir: directory for config, logs, checkpoints and the learning curve; without one,
            nothing is written.
        process_group: a torch.distributed group; each of its ranks makes the agent alike, steps a
            share of the environments, and makes the same updates. Rank 0 alone writes.
        options: every field of `trpo_fast.agent.config.Config`, by keyword.

    Raises ValueError for an option, environment or space that cannot work, with what to do.
    """

    def __init__(
        self,
        env: Any,
        *misplaced: Any,
        policy: nn.Module | str | None = "auto",
        value_function: nn.Module | None = None,
        run_dir: str | Path | None = None,
        process_group: Any = None,
        _dtype: torch.dtype | None = None,  # of the networks of a checkpoint
        **options: Any,
    ) -> None:
        if misplaced:
            raise TypeError(
                f"TRPO takes the environment alone by position, got {env!r} and {misplaced[0]!r}: "
                "write TRPO(env), and policy= for a name or a module of your own"
            )
        config, module = asked_for(options, policy)
        source = wrapped(env, config.wrapper) if config.wrapper else env
        self.training = make_training(
            source,
            config,
            env_id=env if isinstance(env, str) else None,
            policy=module,
            value_function=value_function,
            process_group=process_group,
            dtype=_dtype,
        )
        self.env = self.training.collector.env
        self.observation_space = self.env.observation_space
        self.action_space = self.env.action_space
        self.actor = Actor(
            self.policy, self.observation_space, self.action_space, self.learner.normalizer
        )
        self._scoring = Scoring(source, self.training, self.actor)
        directory = None if run_dir is None or not self.writes else RunDirectory(run_dir)
        self.run = RunOnDisk(directory)
        # Of the last rollout, for callbacks: rewards, ends of episodes, valid rows; [T, B] each.
        self.last_steps: tuple[npt.NDArray[Any], ...] = ()
        # What callbacks recorded, for the next row.
        self.callback_figures: Row = {}
        # Seconds of the last `learn` call by phase, see time_budget.py.
        self.time_budget: Mapping[str, float] = {}

    @property
    def shared(self) -> SharedTraining | None:
        """The ranks that train this agent together; None where this process is alone."""
        return self.training.shared

    @property
    def writes(self) -> bool:
        """Whether files and display are this process's; of several ranks, they are rank 0's."""
        return self.shared is None or self.shared.writes

    @property
    def config(self) -> Config:
        """The options, with the number of environments and the seed as they are."""
        return self.training.config

    @property
    def seed(self) -> int:
        """The seed of everything random, drawn when none was given."""
        return int(self.config.seed or 0)

    @property
    def env_id(self) -> str | None:
        """The id the environment was made from; None for functions and objects."""
        return self.training.env_id

    @property
    def vectorization(self) -> str:
        """How the environments are stepped and, once it is known, why."""
        return self.env.choice or self.config.vectorization

    @property
    def learner(self) -> Learner:
        """What learns from a rollout; networks, optimizers, running statistics."""
        return self.training.learner

    @property
    def collector(self) -> Collector:
        """The collector, which steps the environments."""
        return self.training.collector

    @property
    def rng(self) -> np.random.Generator:
        """The source of every random number outside the environments."""
        return self.training.rng

    @property
    def progress(self) -> agent_state.Progress:
        """How far the training is."""
        return self.training.progress

    @property
    def policy(self) -> nn.Module:
        """The policy, on normalised observations."""
        return self.learner.policy

    @property
    def value_function(self) -> nn.Module:
        """The value function, on normalised observations, in units of the scaled rewards."""
        return self.learner.value_function

    @property
    def optimizer(self) -> Any:
        """The TRPOOptimizer, options in `param_groups[0]`, figures in `last_result`."""
        return self.learner.optimizer

    @property
    def num_timesteps(self) -> int:
        """Real transitions learnt from so far."""
        return self.progress.num_timesteps

    def learn(
        self, total_timesteps: int, callback: Callback | None = None, progress_bar: bool = True
    ) -> Self:
        """Train for `total_timesteps` more steps, in whole rollouts, and return the agent.

        Args:
            total_timesteps: real transitions, over all environments.
            callback: called after each update, False stops; see `CallbackRunner`.
            progress_bar: a bar on a terminal, plain lines elsewhere; False for silence.

        After an interrupt (Ctrl-C) or an error the agent is back at the end of its last whole
        update, which then is the run directory's newest checkpoint. Raises EnvironmentFault for
        an environment that raised or gave NaN.
        """
        # 1e6 is how many people write it.
        steps: object = total_timesteps
        number = isinstance(steps, numbers.Real) and float(steps).is_integer()
        if not number or total_timesteps < 0:
            raise ValueError(
                f"total_timesteps is a whole number of steps, at least 0, got {total_timesteps!r}"
            )
        target = self.num_timesteps + int(total_timesteps)
        self._scoring.require_possible()
        callbacks = CallbackRunner(callback, self, target)
        progress_bar = progress_bar and self.writes
        boundary = agent_state.state_of(self.training)
        whole = agent_state.whole(self.training, boundary)
        with (
            interrupt_guard() as guard,
            self.run.recording(self.training, whole) as recorder,
            ProgressDisplay(
                target,
                self.num_timesteps,
                enabled=progress_bar,
                max_kl=self.optimizer.param_groups[0]["max_kl"],
            ) as display,
        ):
            try:
                enter_environments(self.training)
                report = remark if progress_bar else None
                said = self._tell_choice(recorder, progress_bar, "")
                callbacks.start(locals(), globals())
                clock = Clock(self.progress.time_elapsed, self.num_timesteps)
                self.time_budget = clock.total
                going = True
                while going and self.num_timesteps < target:
                    row, is_best = self._iterate(clock, report)
                    with guard.shielded():
                        boundary = agent_state.state_of(self.training)
                        whole = agent_state.whole(self.training, boundary)
                        if recorder is not None:
                            recorder.record(row, whole, best=is_best)
                        said = self._tell_choice(recorder, progress_bar, said)
                    display.update(self.num_timesteps, row)
                    going = callbacks.step(locals(), globals())
                    if self.shared is not None and callback is not None:
                        going = self.shared.all_go_on(going)
                callbacks.end()
                if recorder is not None:
                    with guard.shielded():
                        recorder.finish(whole, self.num_timesteps)
            except BaseException as error:
                with guard.shielded():
                    with guard.shielded(against_all=True):
                        agent_state.load_into(self.training, boundary)
                    self.run.save_after(error, whole, self.num_timesteps)
                raise
        return self

    def _tell_choice(self, recorder: RunRecorder | None, shown: bool, told: str) -> str:
        """Tell how the environments are stepped when that is new; what was told."""
        choice = self.env.choice
        if choice != told:
            if shown:
                say(f"environments: {choice}")
            if recorder is not None:
                recorder.describe(agent_state.config_document(self.training))
        return choice

    def _iterate(self, clock: Clock, report: Callable[[str], None] | None) -> tuple[Row, bool]:
        """One iteration: its row for the log, and whether it is the best so far."""
        found = iterate(
            self.training,
            clock,
            lambda: self._scoring.run(self.config.eval_episodes, report=report),
        )
        row = {**self.callback_figures, **found.row}
        self.callback_figures = {}
        rollout = found.rollout
        ended = rollout.terminated | rollout.truncated
        steps = (rollout.rewards, ended, rollout.valid)
        self.last_steps = tuple(each.numpy(force=True) for each in steps)
        return row, found.is_best

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
        *,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """Actions for env.step from raw observations, one or a batch; and the next `state`.

        Of a Tuple or Dict action space they are nested as it is, and so may be `action_masks`.
        Arrays give arrays; tensors, where the agent learnt with vectorization="tensor", tensors.

        The signature is Stable-Baselines3's; its evaluate_policy runs on it. `state` is what the
        last call returned, None at first; `episode_start` tells where an episode begins, whose
        state is forgotten. Policies without a memory return `state` as it is. Sampling
        (`deterministic=False`) draws from torch's global generator. Raises ValueError for an
        observation that does not fit the space, or holds NaN or infinity.
        """
        if self.config.vectorization == "tensor" and isinstance(first_leaf(observation), Tensor):
            return self.actor.act_tensors(
                observation, deterministic=deterministic, masks=action_masks
            ), state
        if self.actor.is_single(observation):
            fresh = self.actor.remembers and episode_start is not None and np.any(episode_start)
            actions, states = self.actor.act_each(
                [observation],
                [action_masks],
                [None if fresh else state],
                deterministic=deterministic,
            )
            return actions[0], states[0]
        return self.actor.act(
            observation,
            deterministic=deterministic,
            masks=action_masks,
            state=state,
            episode_start=episode_start,
        )

    def evaluate(
        self,
        episodes: int = 10,
        *,
        env: Any = None,
        progress_bar: bool = True,
        done: Callable[[Evaluation], None] | None = None,
    ) -> tuple[float, float]:
        """Mean and standard deviation of the return over whole episodes, acting by the mode.

        A Beta acts by its mean. The episodes run in environments of their own and change nothing in
        the training; the same policy and seed give the same numbers. `env` is an id or a function
        that makes an Env, needed only when the agent was given an environment that cannot be made
        again. With `eval_envs=0` and no `env` they are the training's own, and its running
        episodes are entered again before the next rollout.

        A line tells every ten seconds how far it is; an episode of more than `eval_max_steps`
        is stopped, with a warning. `done` gets all figures before the environments are closed,
        which is all that is left to do. Raises EnvironmentFault for an environment that raised, or
        gave NaN (with on_fault="drop" such an episode is left out).
        """
        report = remark if progress_bar else None
        result = self._scoring.run(episodes, env, report, done)
        return result.mean, result.std

    def record(self, episodes: int, directory: str | Path) -> tuple[float, float]:
        """`evaluate`, with a video of each episode written to `directory`.

        Raises MissingExtraError without the packages that write videos, EnvironmentSetupError
        for an environment that cannot be rendered.
        """
        place = given_path(directory, "the videos' directory").absolute()
        result = self._scoring.record(episodes, place, remark)
        return result.mean, result.std

    def save(self, path: str | Path) -> Path:
        """Write a checkpoint (one safetensors file) from which `load` goes on bit for bit.

        A name without a suffix gets `.safetensors`. Of several ranks every one calls it, and rank 0
        writes. Raises OSError when the disk refuses.
        """
        path = checkpoint_path(path)
        agent_state.require_portable(self.training)
        state = agent_state.whole(self.training, agent_state.state_of(self.training))
        return save_checkpoint(path, state) if self.writes else path

    def export(self, path: str | Path) -> Path:
        """Write the policy to a file that runs without this package: `.pt2` or `.onnx`.

        It takes raw observations [n, ...], one input for each part of a Dict or Tuple space, and
        gives the actions [n, ...] of `predict(deterministic=True)`, one result for each part of
        their space, without action masks: normalisation and the scaling to the action space are
        inside. A policy with a memory takes and gives that as well. Raises MissingExtraError
        without the packages that write ONNX (extra `export`), ValueError for another suffix or a
        policy whose forward depends on more than shapes.
        """
        policy = ExportedPolicy(
            self.policy, self.observation_space, self.action_space, self.learner.normalizer
        )
        return export_policy(policy, path)

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: Any = None,
        *,
        policy: nn.Module | None = None,
        value_function: nn.Module | None = None,
        run_dir: str | Path | None = None,
        predict_only: bool = False,
        process_group: Any = None,
        **changes: Any,
    ) -> Self:
        """The agent that `save`, or a run, left in a checkpoint file.

        Args:
            path: the file.
            env: the environment; without one, the id in the checkpoint is made again.
            policy: the module, when the agent had one of the user's: only weights are in a file.
            value_function: likewise.
            run_dir: go on writing there; the run directory the file lies in may be named again.
                Once `learn` goes on from an older checkpoint of it, the rows of later updates are
                dropped, and newer checkpoints stay as `abandoned-...`, which no resume takes.
            predict_only: make no environment, so that none need be installed or passed: the agent
                can predict, from the spaces in the file.
            process_group: as in the constructor; the number of ranks may be another than before.
            changes: options that are to differ from the saved ones.

        Reading never runs code. Raises CheckpointError for a file that is damaged, or of another
        environment, shape or architecture: the differences are listed.
        """
        agent: Self = load_agent(
            cls,
            path,
            env,
            {"policy": policy, "value_function": value_function},
            changes,
            run_dir=run_dir,
            predict_only=predict_only,
            process_group=process_group,
        )
        return agent

    def __reduce__(self) -> Any:
        raise TypeError(
            "an agent holds running environments, so it is neither pickled nor copied: "
            "agent.save(path) and TRPO.load(path, predict_only=True) take it to another process"
        )

    def close(self) -> None:
        """Close the environments (and their processes). The agent can still predict."""
        self.env.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _signature() -> inspect.Signature:
    """The constructor's real parameters, every option of Config among them, for help()."""
    own = inspect.signature(TRPO.__init__).parameters
    kept = ("env", "policy", "value_function", "run_dir", "process_group")
    keep = [own[name] for name in kept]
    options = inspect.signature(Config).parameters
    more = (options[name] for name in OPTIONS if name not in own)
    return inspect.Signature([*keep, *more])


TRPO.__signature__ = _signature()  # type: ignore[attr-defined]
