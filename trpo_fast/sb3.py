"""TRPO for Stable-Baselines3: ``from trpo_fast.sb3 import TRPO`` is the one changed line.

The class is ``sb3_contrib.TRPO`` with another ``train`` and ``collect_rollouts``. Departures from
sb3-contrib, which ``parity`` or ``kl_definition`` take back: the KL is that of the joint action and
not its mean over the dimensions; it is KL(old, new); conjugate gradients start at 0 and not
at random noise; dropout and batch normalisation are in eval mode for the step.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, ClassVar, Self

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from trpo_fast.adapters.common import stepped
from trpo_fast.base.install import install_line
from trpo_fast.base.trees import tree_rows
from trpo_fast.optimizer.optimizer import TRPOOptimizer
from trpo_fast.rollouts.gae import compute_gae
from trpo_fast.update.result import TrustRegionResult

try:
    import sb3_contrib
    from sb3_contrib import MaskablePPO
    from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
    from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
    from stable_baselines3.common.buffers import RolloutBuffer
    from stable_baselines3.common.distributions import BernoulliDistribution
    from stable_baselines3.common.utils import explained_variance, obs_as_tensor

    from trpo_fast.adapters.sb3_critic import critic_parameters, fit_values
    from trpo_fast.adapters.sb3_policies import BY_DIMENSION, Acting, Actor
except ImportError as error:
    raise ImportError(
        f"trpo_fast.sb3 needs Stable-Baselines3 and sb3-contrib: {install_line('sb3')}"
    ) from error

# Of ours, what a saved model does not hold.
CACHED = ("_policy_optimizer",)
# sb3-contrib's names, which its users know, and what a step can be made of.
IN_RANGE: dict[str, tuple[Callable[[float], bool], str]] = {
    "target_kl": (lambda x: 0 < x < inf, "a finite number > 0"),
    "cg_damping": (lambda x: 0 <= x < inf, "a finite number >= 0"),
    "cg_max_steps": (lambda x: 1 <= x < inf, "a whole number >= 1"),
    "line_search_max_iter": (lambda x: 1 <= x < inf, "a whole number >= 1"),
    "line_search_shrinking_factor": (lambda x: 0 < x < 1, "a number between 0 and 1"),
}


class TRPO(sb3_contrib.TRPO):  # type: ignore[misc]
    """``sb3_contrib.TRPO`` with the fused update, critic fit, advantages and inference.

    Constructor, attributes, callbacks, loggers and saved files are those of ``sb3_contrib.TRPO``:
    either loads what the other saved. What is not recognised as a perceptron (images, dict
    observations with extractors, gSDE) takes the generic path, or sb3-contrib's own code.

    ``load`` runs pickled code, as Stable-Baselines3's format does: load files of people you trust.

    Attributes:
        parity: True delegates everything to sb3-contrib: its result, bit for bit, at its speed.
        kl_definition: "joint" (default): ``target_kl`` bounds the KL(old, new) of the joint action.
            "sb3": as sb3-contrib has it, KL(new, old) averaged over the action's dimensions, with
            its damping: for A dimensions a region A times as large. Hyperparameters tuned for
            sb3-contrib with Box or MultiBinary actions mean this.
        last_result: The last policy update's ``TrustRegionResult``, or None.
    """

    parity: bool = False
    kl_definition: str = "joint"
    last_result: TrustRegionResult | None = None
    _policy_optimizer: TRPOOptimizer | None = None
    _last_obs: Any
    _last_episode_starts: Any

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *CACHED, "last_result"]

    def train(self) -> None:
        """Update policy and value function from the rollout buffer.

        Raises:
            ValueError: ``kl_definition`` is neither "joint" nor "sb3"; an option of the step is
                out of its range. Nothing has changed then.
        """
        if self.parity:
            super().train()
            return
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        rollout = next(self.rollout_buffer.get(batch_size=None))
        result = self.last_result = self._step_policy(rollout)
        value_loss = fit_values(self, critic_parameters(self.policy, rollout.observations))
        self._n_updates += 1

        buffer = self.rollout_buffer
        kl = result.kl / self._kl_terms()
        explained = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
        self.logger.record("train/policy_objective", -result.loss_after)
        self.logger.record("train/value_loss", value_loss)
        self.logger.record("train/kl_divergence_loss", kl)
        self.logger.record("train/explained_variance", explained)
        self.logger.record("train/is_line_search_success", float(result.accepted))
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", self.policy.log_std.exp().mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _step_policy(self, rollout: Any) -> TrustRegionResult:
        """One trust-region step on every ``sub_sampling_factor``-th row of the shuffled rollout."""
        rows = slice(None, None, max(self.sub_sampling_factor, 1))
        actions, advantages = rollout.actions[rows], rollout.advantages[rows]
        old_log_prob = rollout.old_log_prob[rows]
        masks = getattr(rollout, "action_masks", None)
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        if self.policy.squash_output:  # the base Gaussian has the same ratio and the same KL
            bijector = self.policy.action_dist.bijector
            actions = bijector.inverse(actions)
            old_log_prob = old_log_prob + bijector.log_prob_correction(actions).sum(1)
        if self.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        return stepped(
            self._trust_region(),
            self._options(),
            obs=tree_rows(rollout.observations, rows),
            actions=actions,
            advantages=advantages,
            old_log_prob=old_log_prob,
            action_mask=None if masks is None else masks[rows].bool(),
        )

    def _trust_region(self) -> TRPOOptimizer:
        cached = self._policy_optimizer
        known = cached.module if cached is not None else None
        if cached is None or not isinstance(known, Actor) or known.policy is not self.policy:
            cached = TRPOOptimizer(Actor(self.policy), step_size="damped")
            self._policy_optimizer = cached
        return cached

    def _options(self) -> dict[str, Any]:
        terms = self._kl_terms()
        for name, (fits, wanted) in IN_RANGE.items():
            if not fits(getattr(self, name)):
                raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)}")
        return {
            "max_kl": float(self.target_kl) * terms,
            "damping": float(self.cg_damping) * terms,
            "cg_iters": int(self.cg_max_steps),
            "backtrack_coeff": float(self.line_search_shrinking_factor),
            "max_backtracks": int(self.line_search_max_iter) - 1,
            "kl_direction": "old_new" if self.kl_definition == "joint" else "new_old",
        }

    def _kl_terms(self) -> int:
        """How many times sb3-contrib's KL goes into that of the joint action."""
        if self.kl_definition not in ("joint", "sb3"):
            raise ValueError(f"kl_definition is {self.kl_definition!r}, expected 'joint' or 'sb3'")
        kind = self.policy.action_dist
        if self.kl_definition == "joint" or not isinstance(kind, BY_DIMENSION):
            return 1
        return int(kind.action_dims if isinstance(kind, BernoulliDistribution) else kind.action_dim)

    def collect_rollouts(
        self, env: Any, callback: Any, rollout_buffer: Any, n_rollout_steps: int
    ) -> bool:
        """Fill the buffer with ``n_rollout_steps`` steps of every environment.

        The loop and its local names are those of ``OnPolicyAlgorithm``, because callbacks read
        them; inference and advantages are ours where the policy and the buffer are SB3's own.
        """
        if self.parity or self.use_sde:
            return bool(super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps))
        self.policy.set_training_mode(False)
        act = Acting(self.policy, obs_as_tensor(self._last_obs, self.device))
        n_steps = 0
        rollout_buffer.reset()
        callback.on_rollout_start()
        while n_steps < n_rollout_steps:
            masks = self._masks(env)
            with torch.no_grad():
                obs_tensor = obs_as_tensor(self._last_obs, self.device)
                sampled, values, log_probs = act(obs_tensor, **masks)
            actions = sampled.cpu().numpy()
            clipped_actions = actions
            if isinstance(self.action_space, spaces.Box):
                clipped_actions = np.clip(actions, self.action_space.low, self.action_space.high)
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            n_steps += 1
            if isinstance(self.action_space, spaces.Discrete):
                actions = actions.reshape(-1, 1)
            self._bootstrap(rewards, dones, infos)
            starts = self._last_episode_starts
            rollout_buffer.add(self._last_obs, actions, rewards, starts, values, log_probs, **masks)
            self._last_obs = new_obs
            self._last_episode_starts = dones
        with torch.no_grad():
            values = self.policy.predict_values(obs_as_tensor(new_obs, self.device))
        _compute_advantages(rollout_buffer, values, dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _masks(self, env: Any) -> dict[str, Any]:
        """What policy and buffer are given of masks, by name."""
        del env
        return {}

    @torch.no_grad()
    def _bootstrap(self, rewards: Any, dones: Any, infos: list[dict[str, Any]]) -> None:
        """Add the discounted value of the final observation where an episode was truncated."""
        for index in np.flatnonzero(dones):
            info = infos[index]
            final = info.get("terminal_observation")
            if final is not None and info.get("TimeLimit.truncated", False):
                value = self.policy.predict_values(self.policy.obs_to_tensor(final)[0])[0]
                rewards[index] += self.gamma * float(value)


class MaskableTRPO(TRPO):
    """``TRPO`` with action masks, as ``sb3_contrib.MaskablePPO`` has them.

    The environment tells what is allowed by a method ``action_masks()``, or by sb3-contrib's
    ``ActionMasker`` around it: a bool for each choice, of MultiDiscrete actions side by side, of
    MultiBinary ones two a bit (off, on). A forbidden action has probability 0 in the ratio, the KL
    and the Fisher matrix too.

    Policies are "MlpPolicy", "CnnPolicy", "MultiInputPolicy", or a subclass of sb3-contrib's
    ``MaskableActorCriticPolicy``. ``evaluate_policy`` is that of
    ``sb3_contrib.common.maskable.evaluation``.

    Raises:
        ValueError: another policy, or ``parity`` (sb3-contrib has no TRPO with masks).
    """

    policy_aliases: ClassVar[dict[str, Any]] = MaskablePPO.policy_aliases
    rollout_buffer_class: Any
    _uses_masks = True

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        if not issubclass(self.policy_class, MaskableActorCriticPolicy):
            raise ValueError(  # noqa: TRY004 (as sb3-contrib does)
                f"{self.policy_class.__name__} takes no masks: use 'MlpPolicy', 'CnnPolicy', "
                "'MultiInputPolicy' or a subclass of sb3-contrib's MaskableActorCriticPolicy"
            )
        spaces_ = self.observation_space, self.action_space
        self.policy = self.policy_class(*spaces_, self.lr_schedule, **self.policy_kwargs)
        self.policy = self.policy.to(self.device)
        if self.rollout_buffer_class is None:
            nested = isinstance(self.observation_space, spaces.Dict)
            self.rollout_buffer_class = (
                MaskableDictRolloutBuffer if nested else MaskableRolloutBuffer
            )
        self.rollout_buffer = self.rollout_buffer_class(
            self.n_steps,
            *spaces_,
            self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
            **self.rollout_buffer_kwargs,
        )

    def learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        log_interval: int = 1,
        tb_log_name: str = "MaskableTRPO",
        reset_num_timesteps: bool = True,
        use_masking: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """As of ``MaskablePPO``; without ``use_masking`` every action is allowed."""
        self._uses_masks = use_masking
        learnt: Self = super().learn(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )
        return learnt

    def _masks(self, env: Any) -> dict[str, Any]:
        return {"action_masks": get_action_masks(env)} if self._uses_masks else {}

    def collect_rollouts(self, env: Any, *arguments: Any, **keywords: Any) -> bool:
        """As of ``TRPO``; ValueError where the environments tell no masks."""
        if self.parity:
            raise ValueError("parity is sb3-contrib's own TRPO, which has no masks: leave it False")
        if self._uses_masks and not is_masking_supported(env):
            raise ValueError(
                "the environments have no action_masks(): wrap each in "
                "sb3_contrib.common.wrappers.ActionMasker(env, mask_fn), or use TRPO without masks"
            )
        return super().collect_rollouts(env, *arguments, **keywords)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """Actions, of those that ``action_masks`` allows; see ``MaskablePPO.predict``."""
        found: tuple[Any, Any] = self.policy.predict(
            observation, state, episode_start, deterministic, action_masks=action_masks
        )
        return found


def _compute_advantages(buffer: Any, last_values: Tensor, dones: Any) -> None:
    """Fill the buffer's advantages and returns."""
    own = type(buffer).compute_returns_and_advantage
    if own is not RolloutBuffer.compute_returns_and_advantage:
        buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)
        return
    done = np.concatenate([buffer.episode_starts[1:], np.asarray(dones)[None]]).astype(bool)
    # A truncated episode's last reward already holds its bootstrap.
    buffer.advantages, buffer.returns = compute_gae(
        buffer.rewards,
        buffer.values,
        done,
        np.zeros_like(done),
        last_values.cpu().numpy().astype(np.float32).flatten(),
        gamma=buffer.gamma,
        lam=buffer.gae_lambda,
    )
