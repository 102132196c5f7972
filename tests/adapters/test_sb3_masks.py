"""trpo_fast.sb3.MaskableTRPO: sb3-contrib's masks, with probability 0 all the way."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.wrappers import ActionMasker
from torch import Tensor

from trpo_fast import TRPOOptimizer
from trpo_fast.adapters.sb3_policies import Acting, Actor
from trpo_fast.sb3 import TRPO, MaskableTRPO

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning"),
]
SMALL = {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2, "seed": 0, "device": "cpu"}
ACTIONS = {
    "discrete": spaces.Discrete(5),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "bits": spaces.MultiBinary(3),
}


class Masking(gymnasium.Env[Any, Any]):
    """Forbids the first of three choices and more, never the last, others half of the time.

    The reward is that of the last choices.
    """

    def __init__(self, action_space: spaces.Space[Any], nested: bool = False) -> None:
        plain = spaces.Box(-1.0, 1.0, (3,))
        self.nested = nested
        self.observation_space = spaces.Dict({"plain": plain}) if nested else plain
        self.action_space = action_space
        bits = isinstance(action_space, spaces.MultiBinary)
        sizes = [2] * action_space.n if bits else getattr(action_space, "nvec", None)
        self.sizes = [action_space.n] if sizes is None else [int(size) for size in sizes]

    def _observe(self) -> Any:
        self.blocks = [self.np_random.random(size) < 0.5 for size in self.sizes]
        for block in self.blocks:
            block[0], block[-1] = len(block) == 2 and block[0], True
        obs = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return {"plain": obs} if self.nested else obs

    def action_masks(self) -> Any:
        return np.concatenate(self.blocks)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        chosen = np.atleast_1d(action)
        assert all(block[c] for block, c in zip(self.blocks, chosen, strict=True)), action
        reward = float(np.mean(chosen == np.array(self.sizes) - 1))
        self.steps += 1
        return self._observe(), reward, False, self.steps == 20, {}


def made(env: Any, policy: str = "MlpPolicy", **keywords: Any) -> MaskableTRPO:
    return MaskableTRPO(policy, env, **{**SMALL, **keywords})


@pytest.mark.parametrize("name", ACTIONS)
def test_no_forbidden_action_is_taken_while_it_learns(name: str, tmp_path: Path) -> None:
    env = Masking(ACTIONS[name])
    model = made(env)
    model.learn(64 * 3)
    assert model.last_result is not None
    assert model.last_result.accepted
    assert model.last_result.kl <= model.target_kl
    model.save(tmp_path / "masked.zip")
    loaded = MaskableTRPO.load(tmp_path / "masked.zip", env=env)
    assert all(map(torch.equal, loaded.policy.parameters(), model.policy.parameters()))
    assert evaluate_policy(loaded, loaded.get_env(), n_eval_episodes=2, warn=False)[0] >= 0
    loaded.learn(64)


def test_it_learns_with_masks() -> None:
    env = Masking(ACTIONS["discrete"])
    model = made(env, n_steps=256, target_kl=0.05)
    before = evaluate_policy(model, env, n_eval_episodes=10, warn=False, deterministic=False)[0]
    model.learn(256 * 8)
    after = evaluate_policy(model, env, n_eval_episodes=10, warn=False, deterministic=False)[0]
    assert before < 15
    assert after > 18  # of 20


def test_the_step_is_given_the_masks_of_the_rollout() -> None:
    model = made(Masking(ACTIONS["multi-discrete"]))
    model.learn(64)
    buffer = model.rollout_buffer
    rollout = next(buffer.get(batch_size=None))
    seen: list[Tensor] = []
    model._trust_region().step = lambda **given: seen.append(given)
    model._step_policy(rollout)
    (given,) = seen
    assert given["action_mask"].dtype == torch.bool
    assert torch.equal(given["action_mask"], rollout.action_masks.bool())
    chosen = given["action_mask"].split([3, 2], 1)
    for column, block in enumerate(chosen):
        assert block.gather(1, given["actions"][:, [column]].long()).all()
    assert not chosen[0][:, 0].any()


@pytest.mark.parametrize("name", ACTIONS)
def test_the_step_is_fused_and_equals_the_generic_one(name: str) -> None:
    class Hidden(Actor):
        def forward(self, obs: Any, action_mask: Tensor | None = None) -> Any:
            return super().forward(obs.neg().neg(), action_mask)

    model = made(Masking(ACTIONS[name]))
    model.learn(64)
    rollout = next(model.rollout_buffer.get(batch_size=None))
    start, moved = model.policy, {}
    for path, kind in (("fused", Actor), ("generic", Hidden)):
        policy = copy.deepcopy(start)
        before = torch.nn.utils.parameters_to_vector(policy.parameters())
        optimizer = TRPOOptimizer(kind(policy), step_size="damped", preconditioner="none")
        model._policy_optimizer, model.policy = optimizer, policy
        assert model._step_policy(rollout).accepted
        assert optimizer.path == path
        moved[path] = torch.nn.utils.parameters_to_vector(policy.parameters()) - before
    difference = (moved["fused"] - moved["generic"]).norm()
    assert float(difference) < 1e-5 * float(moved["generic"].norm())  # float32


@pytest.mark.parametrize("name", ACTIONS)
def test_acting_is_native_and_draws_what_the_policy_draws(name: str) -> None:
    env = Masking(ACTIONS[name])
    model = made(env)
    policy = model.policy
    policy.set_training_mode(False)
    obs, masks = (
        torch.rand(7, 3),
        np.stack([(env.reset(), env.action_masks())[1] for _ in range(7)]),
    )
    act = Acting(policy, obs)
    assert act._fused is not None
    with torch.no_grad():
        torch.manual_seed(3)
        expected = policy(obs, action_masks=masks)
        torch.manual_seed(3)
        found = act(obs, action_masks=masks)
        torch.manual_seed(3)
        next(policy.parameters()).add_(0)  # a callback wrote: recognised again, the masks kept
        again = act(obs, action_masks=masks)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(again[0], expected[0])
    torch.testing.assert_close(found[1:], expected[1:], rtol=1e-5, atol=1e-6)


class Tempered(MaskableCategoricalDistribution):
    """Of other logits than the policy's outputs."""

    def proba_distribution(self, action_logits: Tensor) -> Any:
        return super().proba_distribution(5 * action_logits)


@pytest.mark.parametrize("where", ["action_dist", "get_distribution"])
def test_a_distribution_of_somebody_s_own_is_kept(where: str) -> None:
    policy = made(Masking(ACTIONS["discrete"])).policy
    obs, actions = torch.rand(5, 3), torch.arange(5)
    with torch.no_grad():
        policy.action_net.weight.mul_(30)
    plain = policy.get_distribution(obs).log_prob(actions)
    tempered = Tempered(5)
    if where == "action_dist":
        policy.action_dist = tempered
    else:
        logits = policy.action_net(policy.mlp_extractor.forward_actor(obs))
        policy.get_distribution = lambda _: tempered.proba_distribution(logits)
    expected = policy.get_distribution(obs).log_prob(actions)
    assert not torch.allclose(plain, expected, atol=0.1)
    torch.testing.assert_close(Actor(policy)(obs).log_prob(actions), expected)


def test_the_ratio_is_one_before_the_step() -> None:
    model = made(Masking(ACTIONS["multi-discrete"]), learning_rate=0.0, target_kl=1e-12)
    model.learn(64)
    rollout = next(model.rollout_buffer.get(batch_size=None))
    module = model._trust_region().module
    assert module is not None
    with torch.no_grad():
        distribution = module(rollout.observations, rollout.action_masks.bool())
    again = distribution.log_prob(rollout.actions)
    torch.testing.assert_close(again, rollout.old_log_prob, rtol=1e-4, atol=1e-5)
    forbidden = ~rollout.action_masks.bool()
    assert (distribution.logits[forbidden] == -torch.inf).all()


def test_nested_observations_and_sb3_contribs_wrapper() -> None:
    model = made(Masking(ACTIONS["discrete"], nested=True), "MultiInputPolicy")
    model.learn(64)

    class Plain(Masking):
        action_masks = None  # type: ignore[assignment]

    wrapped = ActionMasker(Plain(ACTIONS["discrete"]), lambda env: np.concatenate(env.blocks))
    made(wrapped).learn(64)


def test_values_are_fitted_as_sb3_contrib_would() -> None:
    """The critic's fit is native on sb3-contrib's buffer of masks as on the plain one."""
    from trpo_fast.adapters import sb3_critic

    model = made(Masking(ACTIONS["discrete"]))
    model.learn(64)
    movable = sb3_critic.critic_parameters(
        model.policy, next(model.rollout_buffer.get()).observations
    )
    assert sb3_critic._fit_natively(model, sb3_critic.Values(model.policy), movable) is not None


def test_masks_can_be_left_out() -> None:
    model = made("CartPole-v1")
    model.learn(64, use_masking=False)
    assert model.last_result is not None
    assert model.last_result.accepted
    assert model.rollout_buffer.action_masks.all()
    with pytest.raises(ValueError, match=r"have no action_masks\(\)"):
        model.learn(64)


def test_what_cannot_be_masked_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"ActorCriticPolicy takes no masks: use 'MlpPolicy'"):
        made(Masking(ACTIONS["discrete"]), TRPO.policy_aliases["MlpPolicy"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"have no action_masks\(\): wrap each in"):
        made("CartPole-v1").learn(64)
    model = made(Masking(ACTIONS["discrete"]))
    model.parity = True
    with pytest.raises(ValueError, match=r"parity is sb3-contrib's own TRPO, which has no masks"):
        model.learn(64)
    assert MaskablePPO.policy_aliases == MaskableTRPO.policy_aliases
