"""One training on several ranks: each steps a share of the environments, all learn the same.

Replicated ("strict"), every rank makes the update of all rows, with the bits of one process. Else
policy update and statistics are sums over the ranks, and the critic is, after each pass, the mean
of what each rank found on its own rows.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from trpo_fast.agent.config import Config
from trpo_fast.base.errors import EnvironmentSetupError, RankError, users_level
from trpo_fast.base.ranks import Ranks, warn_if_alone
from trpo_fast.rollouts.normalization import RunningMeanStd
from trpo_fast.rollouts.rollout import Rollout
from trpo_fast.rollouts.samplers import draws_natively

State = dict[str, Any]
# What has gone through the ranks' collectives since the last row.
RANK_COLUMNS = ("ranks/collectives", "ranks/bytes", "ranks/seconds")


class Counted(NamedTuple):
    """What a rollout adds to the figures, over all ranks, episodes in the order of one process."""

    num_valid: int
    episode_returns: list[float]
    episode_lengths: list[int]
    dropped_episodes: int


class SharedTraining:
    """The ranks of a training, and which of its environments are this rank's.

    Args:
        ranks: the processes.
        replicated: whether every rank makes the whole update.
    """

    def __init__(self, ranks: Ranks, *, replicated: bool) -> None:
        self.ranks, self.replicated = ranks, replicated
        self.first = 0  # number of this rank's first environment
        self.envs = [0] * ranks.count  # of each rank
        self._told_of: tuple[float, ...] = (ranks.collectives, ranks.bytes, ranks.seconds)

    def start(self, config: Config, env: Any) -> Config:
        """The options as all ranks have them; which environments are this rank's is then known.

        Environments that are objects count as they are; others are split.

        Raises:
            RankError: the ranks' options differ.
            EnvironmentSetupError: there are fewer environments than ranks.
        """
        config = config.replace(seed=self.ranks.from_first(lambda: config.seed))
        self.same_everywhere(config.to_json())
        if not isinstance(env, gym.Env | gym.vector.VectorEnv):
            self._split(config.num_envs)
            return config
        own = env.num_envs if isinstance(env, gym.vector.VectorEnv) else 1
        self._take([int(n) for (n,) in self.ranks.gather([own])])
        return config

    @property
    def total(self) -> int:
        """Environments of all ranks."""
        return sum(self.envs)

    @property
    def learnt_envs(self) -> int:
        """Environments of a rollout that the learner gets."""
        return self.total if self.replicated else self.own_envs

    def all_go_on(self, going: bool) -> bool:
        """Whether every rank wants to."""
        return all(flag for (flag,) in self.ranks.gather([going]))

    def described(self) -> str:
        """The ranks in a line, for the user."""
        ranks = self.ranks
        mode = "each makes the whole update" if self.replicated else "updates are sums over them"
        envs = sorted(set(self.envs))
        return (
            f"{ranks.count} ranks by {dist.get_backend(ranks.group)}, "
            f"{' or '.join(map(str, envs))} environments and {torch.get_num_threads()} threads "
            f"each; {mode}"
        )

    def warn_of_rounding(self, policy: nn.Module) -> None:
        """Say so where replicated updates will not have the bits of one process."""
        if self.replicated and self.writes and not draws_natively(policy):
            warnings.warn(
                "deterministic_ranks: torch draws this policy's actions, not native code, and what "
                "it draws depends in its last bits, or altogether where the policy draws for "
                "itself, on how many environments a rank steps. The ranks agree bit for bit with "
                "one another, but not with one process.",
                stacklevel=users_level(),
            )

    def figures(self) -> dict[str, float]:
        """What went through collectives since the last call: their number, bytes, seconds."""
        now = (self.ranks.collectives, self.ranks.bytes, self.ranks.seconds)
        found = {n: a - b for n, a, b in zip(RANK_COLUMNS, now, self._told_of, strict=True)}
        self._told_of = now
        return found

    @property
    def writes(self) -> bool:
        """Whether files and display are this rank's."""
        return self.ranks.rank == 0

    def _split(self, num_envs: int) -> None:
        """Take this rank's share of so many environments.

        Raises:
            EnvironmentSetupError: there are fewer than ranks.
        """
        count = self.ranks.count
        if num_envs < count:
            raise EnvironmentSetupError(
                f"num_envs={num_envs} environments are fewer than the {count} ranks: each steps "
                f"its share of them, so give num_envs={count} or more"
            )
        self._take([num_envs // count + (rank < num_envs % count) for rank in range(count)])

    def _take(self, envs: list[int]) -> None:
        """So many environments are on each rank."""
        self.envs = envs
        self.first = sum(envs[: self.ranks.rank])

    def same_everywhere(self, what: Mapping[str, Any]) -> None:
        """Raise RankError where these values are not the same on every rank."""
        found = self.ranks.gather_objects(dict(what))
        for rank, other in enumerate(found):
            differ = [k for k in found[0] if repr(other.get(k)) != repr(found[0][k])]
            if differ:
                listed = ", ".join(f"{k}: {found[0][k]!r} and {other.get(k)!r}" for k in differ)
                raise RankError(
                    f"rank 0 and rank {rank} were started with different options ({listed}); "
                    "start every rank with the same command"
                )

    def collect(self, collect: Callable[[], Rollout]) -> tuple[Rollout, Counted]:
        """The rollout to learn from, and what all ranks' together add to the figures.

        Raises:
            RankError: another rank failed in its rollout; this one's own error where it did.
        """
        failed: BaseException | None = None
        rollout: Rollout | None = None
        try:
            rollout = collect()
        except BaseException as error:  # noqa: BLE001 (raised by end_together)
            failed = error
        told = None if rollout is None else self._told(rollout)
        found = self.ranks.gather_objects(told)
        if rollout is None or any(part is None for part in found):
            self.ranks.end_together(failed)
        counted = _counted(found)
        if self.replicated:
            rollout = _joined([part["rollout"] for part in found], self.envs, counted)
        return rollout, counted

    def _told(self, rollout: Rollout) -> dict[str, Any]:
        """What the others must know of a rollout."""
        ended = (rollout.terminated | rollout.truncated) & rollout.valid
        steps, envs = (index.tolist() for index in torch.nonzero(ended, as_tuple=True))
        episodes = zip(
            steps,
            [self.first + env for env in envs],
            rollout.episode_returns,
            rollout.episode_lengths,
            strict=True,
        )
        told: dict[str, Any] = {
            "num_valid": rollout.num_valid,
            "dropped": rollout.dropped_episodes,
            "episodes": list(episodes),
        }
        if self.replicated:
            told["rollout"] = {
                f.name: getattr(rollout, f.name) for f in dataclasses.fields(Rollout)
            }
        return told

    def merge(self, *statistics: RunningMeanStd) -> None:
        """Make each that of all ranks' rows: count-weighted moments in float64, in rank order."""
        own = np.concatenate([np.append(s.count, [s.mean, s.var]) for s in statistics])
        rows = np.array(self.ranks.gather(own.tolist()))
        at = 0
        for found in statistics:
            shape, width = found.mean.shape, found.mean.size
            found.mean, found.var, found.count = np.zeros(shape), np.ones(shape), 0.0
            for row in rows[:, at : at + 1 + 2 * width]:
                other = RunningMeanStd(shape)
                other.count = float(row[0])
                other.mean = row[1 : 1 + width].reshape(shape)
                other.var = row[1 + width :].reshape(shape)
                found.merge(other)
            at += 1 + 2 * width

    def whole(self, state: State) -> State:
        """On rank 0 the state of the training, of every rank's own; elsewhere this rank's own.

        Every rank calls it.
        """
        parts = self.ranks.gather_to_first((state["collector"], _kept(state)))
        if parts is None:
            return state
        whole = {**state, "collector": _joined_collectors([part[0] for part in parts], self.envs)}
        if not self.replicated:
            kept = [part[1] for part in parts]
            joined = {name: _beside([part[name] for part in kept]) for name in kept[0]}
            whole = _with_kept(whole, joined)
        return whole

    def own(self, state: State) -> State:
        """This rank's part of a training's whole state, from any number of ranks."""
        collector = state["collector"]
        if len(collector.get("observations", ())) != self.total:
            return state  # of other environments: none of it is gone on with
        own = {**state, "collector": _own_collector(collector, self.first, self.own_envs)}
        if self.replicated:
            return own
        here = slice(self.first, self.first + self.own_envs)
        return _with_kept(own, {name: rows[here] for name, rows in _kept(state).items()})

    @property
    def own_envs(self) -> int:
        """Environments of this rank."""
        return self.envs[self.ranks.rank]


def shared_by(process_group: Any, config: Config) -> SharedTraining | None:
    """The training of a process group's ranks; None without one."""
    if process_group is None:
        warn_if_alone()
        return None
    return SharedTraining(Ranks.of(process_group), replicated=config.deterministic_ranks)


def _kept(state: State) -> State:
    """What the learner keeps of each environment: the reward scaler's returns, the critic's memory.

    Without what this agent does not keep.
    """
    learner = state["learner"]
    scaler = learner["statistics"].get("returns")
    returns = {} if scaler is None else {"returns": scaler["returns"]}
    return {**returns, **learner.get("memory", {})}


def _with_kept(state: State, kept: State) -> State:
    """The state with other rows of what ``_kept`` gives."""
    learner = dict(state["learner"])
    if "returns" in kept:
        scaler = {**learner["statistics"]["returns"], "returns": kept["returns"]}
        learner["statistics"] = {**learner["statistics"], "returns": scaler}
    if learner.get("memory"):
        learner["memory"] = {name: kept[name] for name in learner["memory"]}
    return {**state, "learner": learner}


def _beside(parts: list[Any]) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else np.concatenate(parts)


def _counted(found: list[dict[str, Any]]) -> Counted:
    episodes = sorted(episode for part in found for episode in part["episodes"])
    return Counted(
        sum(part["num_valid"] for part in found),
        [episode[2] for episode in episodes],
        [episode[3] for episode in episodes],
        sum(part["dropped"] for part in found),
    )


def _joined(parts: list[dict[str, Any]], envs: list[int], counted: Counted) -> Rollout:
    """The rollout of all environments, as one process would have recorded it."""

    def beside(name: str, dim: int = 1) -> Tensor:
        return torch.cat([part[name] for part in parts], dim)

    steps = torch.cat([part["final_index"][0] for part in parts])
    first = np.cumsum([0, *envs])
    places = torch.cat(
        [part["final_index"][1] + int(at) for part, at in zip(parts, first, strict=False)]
    )
    order = torch.from_numpy(np.lexsort((places.numpy(), steps.numpy())))
    names = ("observations", "actions", "log_probs", "rewards")
    flags = ("terminated", "truncated", "valid", "starts")
    return Rollout(
        **{name: beside(name) for name in (*names, *flags)},
        final_index=(steps[order], places[order]),
        final_observations=beside("final_observations", 0)[order],
        last_observations=beside("last_observations", 0),
        action_masks=None if parts[0]["action_masks"] is None else beside("action_masks"),
        memory=None if parts[0]["memory"] is None else beside("memory", 0),
        episode_returns=counted.episode_returns,
        episode_lengths=counted.episode_lengths,
        dropped_episodes=counted.dropped_episodes,
    )


def _joined_collectors(parts: list[State], envs: list[int]) -> State:
    """The collector's state of all environments: one row an environment, actions in their order."""
    return {
        name: np.concatenate([part[name] for part in parts])
        if _is_by_environment(name, value, envs[0])
        else value
        for name, value in parts[0].items()
    }


def _own_collector(state: State, first: int, count: int) -> State:
    total = len(state["observations"])
    own = {
        name: value[first : first + count] if _is_by_environment(name, value, total) else value
        for name, value in state.items()
    }
    if "actions" in state:
        ends = np.cumsum([0, *state["action_counts"]])
        own["actions"] = np.asarray(state["actions"])[ends[first] : ends[first + count]]
    return own


def _is_by_environment(name: str, value: Any, envs: int) -> bool:
    return name == "actions" or (np.ndim(value) > 0 and len(value) == envs)
