"""What learns from a rollout: policy, value function, their optimisers, running statistics.

One update: value the rollout in one batch, estimate advantages, take one trust-region step, fit
the critic, and only then let the new observation statistics apply.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Beta, Distribution, Normal

from trpo_fast.agent.advantages import normalize_advantages
from trpo_fast.agent.config import Config, ConfigError
from trpo_fast.agent.critic import Critic, shared_parameters, state_values
from trpo_fast.agent.policies import make_networks, warn_of_distant_bounds
from trpo_fast.agent.recurrence import RecurrentCritic, RecurrentLearning
from trpo_fast.agent.region import region_share, scaled_region
from trpo_fast.agent.shared_critic import explained_by_all, fit_critic, minibatch_rows
from trpo_fast.agent.shared_training import SharedTraining
from trpo_fast.base.errors import users_level
from trpo_fast.base.modes import made_on_cpu
from trpo_fast.base.spaces import action_dimensions
from trpo_fast.base.threads import SMALL_ARRAY, one_thread, one_thread_if_small
from trpo_fast.base.time_budget import TimeBudget
from trpo_fast.base.trees import first_leaf, tree_rows
from trpo_fast.environments.packing import ObservationPacker
from trpo_fast.environments.row_format import RowFormat
from trpo_fast.networks.joint import JointDistribution
from trpo_fast.networks.recurrent import is_recurrent
from trpo_fast.optimizer.optimizer import TRPOOptimizer
from trpo_fast.optimizer.state import number
from trpo_fast.rollouts.gae import compute_gae
from trpo_fast.rollouts.normalization import ObservationNormalizer, ReturnScaler
from trpo_fast.rollouts.observations import Shown, StructuredObservations, as_networks_see
from trpo_fast.rollouts.rollout import Rollout, bootstrap_values
from trpo_fast.update.options import TABLE, SharedOptions
from trpo_fast.update.result import FIGURES, TrustRegionResult

# What `Learner.update` gives for the log, in the order of the columns.
COLUMNS = (
    *(f"train/{name}" for name in FIGURES),
    "train/max_kl",
    "train/is_line_search_success",
    "train/kl_divergence_loss",
    "train/policy_objective",
    "train/entropy",
    "train/std",
    "train/value_loss",
    "train/explained_variance",
    "train/unscaled_advantages",
    "train/skipped_critic_rows",
)
# Rows on which the entropy is estimated for the log.
ENTROPY_ROWS = 256


# What is made in inference mode could never be stepped outside it.
_trainable = torch.inference_mode(mode=False)


class Learner:
    """Everything an update reads and changes, and nothing about environments or files.

    Args:
        config: the options; `seed` must be set.
        observation_space: of one observation.
        action_space: of one action.
        row_format: of the rows that observations come in.
        policy: module whose forward(obs) gives a distribution; one by `config.policy` without.
        value_function: module with forward(obs) -> [N]; one like the policy without.
        dtype: of the networks made here; torch's default without one.
        device: where they go; the options' without one.
        num_envs: of a rollout; all of `config` without it.
        shared: the ranks among which its rows are shared out; None where every row is here.
    """

    @_trainable
    def __init__(
        self,
        config: Config,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        row_format: RowFormat,
        *,
        policy: nn.Module | None = None,
        value_function: nn.Module | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        num_envs: int | None = None,
        shared: SharedTraining | None = None,
    ) -> None:
        for name, module in (("policy", policy), ("value_function", value_function)):
            if not isinstance(module, nn.Module | None):
                raise TypeError(f"{name} is a {type(module).__name__}, expected an nn.Module")
        self.config = config
        self.shared = shared
        self.device = device or _device(config.device)
        if config.backend in ("cpu", "cuda") and config.backend != self.device.type:
            raise ConfigError(
                f"backend={config.backend!r} does not serve networks on {str(self.device)!r}; "
                f"use backend='auto', or device={config.backend!r}"
            )
        with _mistakes_are_the_users(), made_on_cpu(dtype):
            policy, value_function = make_networks(
                config,
                observation_space,
                action_space,
                row_format,
                policy=policy,
                value_function=value_function,
            )
            warn_of_distant_bounds(policy, action_space)
            self.policy = policy.to(self.device)
            self.value_function = value_function.to(self.device)
            options = {f.name: getattr(config, f.name) for f in dataclasses.fields(SharedOptions)}
            if config.max_kl_per == "dimension":
                options["max_kl"] *= action_dimensions(action_space)
            group = None if shared is None else shared.ranks
            self.optimizer = TRPOOptimizer(self.policy, process_group=group, **options)
            self.normalizer = _shown(config, row_format)
            kind = RecurrentCritic if is_recurrent(self.value_function) else Critic
            self.critic = kind(
                self.value_function,
                learning_rate=config.critic_lr,
                epochs=config.critic_epochs,
                batch_size=minibatch_rows(config.critic_batch_size, shared),
                leave=shared_parameters(
                    self.policy,
                    self.value_function,
                    self._blank(row_format),
                    said=config.share_encoder,
                ),
            )
        self.recurrence: RecurrentLearning | None = None
        if is_recurrent(self.policy):
            self.recurrence = RecurrentLearning(
                self.policy, self.value_function, num_envs or config.num_envs
            )
        self.return_scaler: ReturnScaler | None = None
        if config.normalize_rewards:
            self.return_scaler = ReturnScaler(config.gamma, num_envs or config.num_envs)
        self.counters = {"train/unscaled_advantages": 0, "train/skipped_critic_rows": 0}

    def _blank(self, row_format: RowFormat) -> Any:
        """A batch of one observation of zeros, as the networks see it."""
        if isinstance(self.normalizer, StructuredObservations):
            return self.normalizer.blank(self.device)
        dtype = next((p.dtype for p in self.value_function.parameters()), None)
        return torch.zeros(1, row_format.width, dtype=dtype, device=self.device)

    @_trainable
    def update(
        self, rollout: Rollout, rng: np.random.Generator, budget: TimeBudget | None = None
    ) -> dict[str, Any]:
        """Learn from a rollout of the current policy; the figures for the log.

        `rng` shuffles the critic's rows; the same state of it gives the same bits. The times of
        the phases are counted in `budget`.
        """
        budget = budget or TimeBudget()
        with budget.phase("inference"):
            shown = self.as_shown(rollout)
            values, last_values, final_values = self._bootstrap(shown)
        rewards = rollout.rewards
        if self.return_scaler is not None:
            rewards = self.return_scaler(rewards)
        with budget.phase("gae"):

            def estimated(lam: float) -> tuple[Any, Any]:
                return compute_gae(
                    rewards,
                    values,
                    rollout.terminated,
                    rollout.truncated,
                    last_values,
                    final_values=final_values,
                    gamma=self.config.gamma,
                    lam=lam,
                )

            lam, value_lam = self.config.lam, self.config.value_lam
            advantages, returns = estimated(lam)
            fitted = returns
            if value_lam is not None and value_lam != lam:
                fitted = estimated(value_lam)[1]
        with one_thread(rollout.observations.numel() <= SMALL_ARRAY):
            observations = shown.select(shown.observations)
            masks = None if rollout.action_masks is None else rollout.select(rollout.action_masks)
            # The rollout's own log-probabilities are those of the current policy: None computes
            # them as the step itself does, so that the ratio is 1 to the last bit.
            scaled = self._scaled(rollout.select(advantages), values)
            scaled = scaled.to(self.device, values.dtype)
            actions = rollout.select(rollout.actions).to(self.device)
            before = shown.select(values)
            own = targets = shown.select(returns.to(values.dtype))
            if fitted is not returns:
                targets = shown.select(fitted.to(values.dtype))
            # Of the step's own advantages: how much of the region it has depends on that.
            explained = explained_by_all(before, own, self.shared)
        shrinks = self.config.shrink_max_kl
        share = region_share(self.optimizer, explained) if shrinks else 1.0
        with budget.phase("update"), scaled_region(self.optimizer, share):
            if self.recurrence is not None:
                self.recurrence.step(self.optimizer, rollout, observations, actions, scaled, masks)
            else:
                self.optimizer.step(
                    obs=observations,
                    actions=actions,
                    advantages=scaled,
                    old_log_prob=None,
                    action_mask=masks,
                )
        with budget.phase("critic"):
            if self.recurrence is not None:
                self.recurrence.prepare(self.critic)
            fit = fit_critic(self.critic, observations, targets, rng, self.shared)
        if fit.skipped_rows:
            text = "the critic skipped rows that were not finite, or gave such gradients"
            self._count("train/skipped_critic_rows", fit.skipped_rows, text)
        self._learn_statistics(rollout)
        return {
            **self._step_figures(),
            "train/max_kl": share * self.optimizer.param_groups[0]["max_kl"],
            **self._policy_figures(observations, masks),
            "train/value_loss": fit.loss,
            "train/explained_variance": explained,
            **self.counters,
        }

    def as_shown(self, rollout: Rollout) -> Rollout:
        """The rollout with every observation as the networks see it, on their device."""

        def shown(observations: Tensor) -> Any:
            return as_networks_see(observations.to(self.device), self.normalizer)

        with one_thread(rollout.observations.numel() <= SMALL_ARRAY):
            return dataclasses.replace(
                rollout,
                observations=shown(rollout.observations),
                final_observations=shown(rollout.final_observations),
                last_observations=shown(rollout.last_observations),
            )

    def _bootstrap(self, shown: Rollout) -> tuple[Tensor, Tensor, Tensor]:
        device = shown.rewards.device  # the CPU's, or its own where the rollout stayed on one

        def values(observations: Any) -> Tensor:
            return self._values(observations, device)

        if self.recurrence is None:
            return bootstrap_values(shown, values)
        self.recurrence.begin(shown)
        if self.recurrence.memory is None:
            return bootstrap_values(shown, values)
        return self.recurrence.bootstrap(shown)

    def _values(self, observations: Any, device: str | torch.device = "cpu") -> Tensor:
        """V of observations [N, ...] as the networks see them, there."""
        return state_values(self.value_function, observations).to(device)

    def _scaled(self, advantages: Tensor, values: Tensor) -> Tensor:
        if not self.config.normalize_advantages:
            return advantages
        scaled, ok = normalize_advantages(advantages, values, self.shared)
        if not ok:
            text = "the batch's advantages are all equal: they are not scaled"
            self._count("train/unscaled_advantages", 1, text)
        return scaled

    def _learn_statistics(self, rollout: Rollout) -> None:
        """What this rollout showed applies from the next one on."""
        if self.normalizer is not None:
            self.normalizer.observe(rollout.observations, rollout.valid)
        if self.return_scaler is not None:
            ended = rollout.terminated | rollout.truncated
            # Episodes that were left unfinished, for an evaluation say, ended in no row.
            self.return_scaler.begin_anew(rollout.starts[0])
            self.return_scaler.observe(rollout.rewards, ended, rollout.valid)
        found = [n for n in (self.normalizer, self.return_scaler) if n is not None]
        pending = [n.pending for n in found if n.pending is not None]
        if self.shared is not None and pending:
            self.shared.merge(*pending)
        for normalizer in found:
            normalizer.commit()

    def _count(self, name: str, amount: int, text: str) -> None:
        """Count something that was survived, and warn of its first time."""
        if not self.counters[name]:
            warnings.warn(f"{text} (warned of once, counted as {name})", stacklevel=users_level())
        self.counters[name] += amount

    def _step_figures(self) -> dict[str, Any]:
        result = cast("TrustRegionResult", self.optimizer.last_result)
        return {
            **{f"train/{name}": value for name, value in result.figures().items()},
            "train/is_line_search_success": result.accepted,
            "train/kl_divergence_loss": result.kl,
            "train/policy_objective": -result.loss_after,
        }

    def _distribution(self, observations: Any, masks: Tensor | None) -> Distribution:
        """The policy's of some of the rows, or of whole sequences."""
        if self.recurrence is not None:
            return self.recurrence.distribution(observations, masks)
        stride = max(len(first_leaf(observations)) // ENTROPY_ROWS, 1)
        keywords = {} if masks is None else {"action_mask": masks[::stride]}
        rows = tree_rows(observations, slice(None, None, stride))
        return cast("Distribution", self.policy(rows, **keywords))

    def _policy_figures(self, observations: Any, masks: Tensor | None) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        with torch.no_grad(), one_thread_if_small(self.policy, ENTROPY_ROWS):
            distribution = self._distribution(observations, masks)
            try:
                figures["train/entropy"] = float(distribution.entropy().mean())
            except NotImplementedError:
                figures["train/entropy"] = None
            log_std = getattr(self.policy, "log_std", None)
            stds = [log_std.exp()] if isinstance(log_std, Tensor) else _deviations(distribution)
            if stds:
                figures["train/std"] = float(torch.cat([std.flatten() for std in stds]).mean())
        return figures

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on, as copies: tensors, arrays, plain values."""
        normalizers = {"observations": self.normalizer, "returns": self.return_scaler}
        return {
            "policy": _copies(self.policy),
            "value_function": _copies(self.value_function),
            "optimizer": self._options(),
            "curvature": self._curvature(),
            "critic": _cloned(self.critic.state_dict()),
            "statistics": {k: n.state_dict() for k, n in normalizers.items() if n is not None},
            "counters": dict(self.counters),
            "memory": {} if self.recurrence is None else self.recurrence.state(),
        }

    def _options(self) -> dict[str, Any]:
        """The policy optimizer's as plain values; what schedulers keep beside them is theirs."""
        group = self.optimizer.param_groups[0]
        found = {**group, "lr": number("lr", group["lr"])}
        return {name: row.checked(found[name]) for name, row in TABLE.items() if name in found}

    def _curvature(self) -> dict[str, Any]:
        """The preconditioner's statistics, by the parameters' numbers in the optimizer."""
        kept = self.optimizer.state_dict()["state"]
        return _cloned({str(index): entry for index, entry in kept.items()})

    @_trainable
    def load_state_dict(self, state: Mapping[str, Any], *, keep: frozenset[str]) -> None:
        """Restore what `state_dict` gave; optimizer options named in `keep` stay as they are.

        Raises ValueError, KeyError or RuntimeError when the state is not of this architecture.
        """
        self.policy.load_state_dict(state["policy"])
        self.value_function.load_state_dict(state["value_function"])
        group = self.optimizer.param_groups[0]
        known = TABLE.keys() & group.keys() - keep
        group.update({k: v for k, v in state["optimizer"].items() if k in known})
        kept = {int(index): dict(entry) for index, entry in state.get("curvature", {}).items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": kept})
        self.critic.load_state_dict(_cloned(state["critic"]))
        if self.normalizer is not None:
            self.normalizer.load_state_dict(state["statistics"]["observations"])
        scaler = self.return_scaler
        if scaler is not None:
            self._load_returns(scaler, state["statistics"]["returns"])
        self.counters.update({k: int(v) for k, v in state["counters"].items()})
        if self.recurrence is not None:
            self.recurrence.load(state["memory"])

    def _load_returns(self, scaler: ReturnScaler, saved: Mapping[str, Any]) -> None:
        current = scaler.state_dict()
        if np.shape(saved["returns"]) != np.shape(current["returns"]):
            # Another number of environments: their episodes start anew, the statistics stay.
            saved = {**saved, "returns": np.zeros_like(current["returns"])}
        scaler.load_state_dict(saved)


def _shown(config: Config, rows: RowFormat) -> Shown | None:
    """What makes of rows what networks see; None where that is the rows themselves."""
    clip = config.observation_clip
    if isinstance(rows, ObservationPacker):
        return StructuredObservations(rows, clip, normalize=config.normalize_observations)
    return ObservationNormalizer((rows.width,), clip) if config.normalize_observations else None


@contextlib.contextmanager
def _mistakes_are_the_users() -> Iterator[None]:
    """What the networks and the optimizer refuse was asked for by an option."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _device(name: str) -> torch.device:
    """The torch device; "auto" is the CPU, since a rollout's batches are small."""
    try:
        device = torch.device("cpu" if name == "auto" else name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f'device is "auto", "cpu" or "cuda", got {name!r}')
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r}: torch finds no CUDA device here; use device='cpu'")
    return device


def _copies(module: nn.Module) -> dict[str, Any]:
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in module.state_dict().items()
    }


def _cloned(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: {k: v.clone() if isinstance(v, Tensor) else v for k, v in entry.items()}
        for key, entry in state.items()
    }


def _deviations(distribution: Distribution) -> list[Tensor]:
    """Standard deviations of Box actions, a Beta's in units of half the range as a Gaussian's."""
    if isinstance(distribution, JointDistribution):
        return [std for part in distribution.leaves for std in _deviations(part)]
    base = getattr(distribution, "base_dist", distribution)
    if isinstance(base, Beta):
        return [2 * base.stddev]
    return [base.stddev] if isinstance(base, Normal) else []
