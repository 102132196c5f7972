"""trpo_fast.sb3.TRPO: what sb3-contrib's own tests ask of its TRPO, and its results."""

from __future__ import annotations

import copy
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import sb3_contrib
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.envs import (
    FakeImageEnv,
    IdentityEnv,
    IdentityEnvBox,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
    SimpleMultiObsEnv,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor, nn

from trpo_fast.adapters.sb3_policies import Acting
from trpo_fast.sb3 import TRPO

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning"),
]
Theirs = sb3_contrib.TRPO
SMALL = {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2, "seed": 0, "device": "cpu"}


def policy_of(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.policy.named_parameters()}


def made(kind: Any, env: Any, policy: str = "MlpPolicy", **keywords: Any) -> Any:
    return kind(policy, env, **{**SMALL, **keywords})


class Chooser(gymnasium.Env[Any, Any]):
    """Rewards actions near the sign of the observation; episodes of 20 steps."""

    observation_space = spaces.Box(-1.0, 1.0, (3,))

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.action_space = action_space

    def _observe(self) -> np.ndarray[Any, Any]:
        self.obs = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return self.obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        reward = float(np.mean((np.asarray(action) > 0) == (self.obs > 0)[: np.size(action)]))
        return self._observe(), reward, self.steps == 20, False, {}


ENVS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "box": ("MlpPolicy", lambda: "Pendulum-v1", {}),
    "discrete": ("MlpPolicy", lambda: "CartPole-v1", {}),
    "multi-discrete": ("MlpPolicy", lambda: Chooser(spaces.MultiDiscrete([2, 3])), {}),
    "multi-binary": ("MlpPolicy", lambda: Chooser(spaces.MultiBinary(3)), {}),
    "multi-discrete observations": ("MlpPolicy", lambda: IdentityEnvMultiDiscrete(3), {}),
    "discrete observations": ("MlpPolicy", lambda: IdentityEnv(4), {}),
    "gsde": ("MlpPolicy", lambda: "Pendulum-v1", {"use_sde": True, "sde_sample_freq": 4}),
    "gsde, squashed": (
        "MlpPolicy",
        lambda: "Pendulum-v1",
        {"use_sde": True, "policy_kwargs": {"squash_output": True}},
    ),
    "sub-sampling": ("MlpPolicy", lambda: "Pendulum-v1", {"sub_sampling_factor": 4}),
    "advantages as they are": ("MlpPolicy", lambda: "CartPole-v1", {"normalize_advantage": False}),
    "separate extractors": (
        "MlpPolicy",
        lambda: "Pendulum-v1",
        {"policy_kwargs": {"share_features_extractor": False, "net_arch": [8]}},
    ),
    "relu": (
        "MlpPolicy",
        lambda: "Pendulum-v1",
        {"policy_kwargs": {"activation_fn": nn.ReLU, "net_arch": {"pi": [16], "vf": [8, 8]}}},
    ),
    "cnn": (
        "CnnPolicy",
        lambda: FakeImageEnv(screen_height=40, screen_width=40, n_channels=1),
        {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 16}}},
    ),
    "dict": ("MultiInputPolicy", lambda: SimpleMultiObsEnv(random_start=False), {}),
}
GENERIC = {
    *("cnn", "dict", "gsde", "gsde, squashed"),
    *("discrete observations", "multi-discrete observations"),
}
every_env = pytest.mark.parametrize("name", ENVS)


@every_env
def test_learns_saves_loads_and_goes_on(name: str, tmp_path: Path) -> None:
    policy, env, keywords = ENVS[name]
    model = made(TRPO, env(), policy, **keywords)
    before = policy_of(model)
    model.learn(128)
    assert model.num_timesteps == 128
    assert model.last_result is not None
    assert model.last_result.accepted
    assert model.last_result.kl <= model.target_kl
    after = policy_of(model)
    assert any(not torch.equal(after[key], before[key]) for key in after)
    path = "generic" if name in GENERIC else "fused"
    assert model._policy_optimizer.path == path, model._policy_optimizer.path_reason
    model.save(tmp_path / "ours.zip")
    for kind in (TRPO, Theirs):
        loaded = kind.load(tmp_path / "ours.zip", env=model.get_env())
        assert all(torch.equal(p, after[key]) for key, p in policy_of(loaded).items())
        obs = model.get_env().reset()
        assert np.array_equal(
            loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0]
        )
        loaded.learn(64)
        assert any(not torch.equal(p, after[key]) for key, p in policy_of(loaded).items())


@every_env
def test_a_model_saved_by_sb3_contrib_goes_on(name: str, tmp_path: Path) -> None:
    policy, env, keywords = ENVS[name]
    theirs = made(Theirs, env(), policy, **keywords)
    theirs.learn(64)
    theirs.save(tmp_path / "theirs.zip")
    ours = TRPO.load(tmp_path / "theirs.zip", env=theirs.get_env())
    assert ours.num_timesteps == 64
    before = policy_of(ours)
    ours.learn(64, reset_num_timesteps=False)
    assert ours.num_timesteps == 128
    assert ours.last_result is not None
    assert ours.last_result.accepted
    assert any(not torch.equal(p, before[key]) for key, p in policy_of(ours).items())
    # Adam's moments came along: every step count went on from theirs.
    steps = {int(state["step"]) for state in ours.policy.optimizer.state.values()}
    assert min(steps) > 4


def test_a_saved_model_names_nothing_of_ours(tmp_path: Path) -> None:
    model = made(TRPO, "CartPole-v1").learn(64)
    model.save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        data = archive.read("data").decode()
    assert "trpo_fast" not in data
    assert "_policy_optimizer" not in data


def test_parity_is_sb3_contrib_bit_for_bit() -> None:
    found = []
    for kind in (Theirs, TRPO):
        model = made(kind, "Pendulum-v1")
        if kind is TRPO:
            model.parity = True
        model.learn(192)
        found.append(policy_of(model))
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.parametrize("name", ["box", "discrete", "multi-discrete", "multi-binary", "cnn"])
def test_sb3s_definition_of_the_kl_gives_sb3_contribs_step(name: str) -> None:
    policy, env, keywords = ENVS[name]
    theirs = made(Theirs, env(), policy, **keywords)
    # Many iterations: what their random start leaves behind is then small.
    theirs.cg_max_steps, theirs.n_critic_updates = 60, 1
    ours = made(TRPO, env(), policy, **keywords)
    ours.cg_max_steps, ours.n_critic_updates, ours.kl_definition = 60, 1, "sb3"
    ours.policy.load_state_dict(theirs.policy.state_dict())
    before = policy_of(ours)
    _, callback = theirs._setup_learn(64)
    theirs.collect_rollouts(theirs.env, callback, theirs.rollout_buffer, 64)
    ours._setup_learn(64)
    ours.rollout_buffer = copy.deepcopy(theirs.rollout_buffer)
    for model in (theirs, ours):
        np.random.seed(3)  # noqa: NPY002
        torch.manual_seed(3)
        model._current_progress_remaining = 1.0
        model.train()
    logged = [m.logger.name_to_value["train/kl_divergence_loss"] for m in (theirs, ours)]
    assert logged[1] == pytest.approx(logged[0], rel=0.05)
    pairs = [(policy_of(theirs)[key], policy_of(ours)[key], before[key]) for key in before]
    moved = torch.cat([(a - start).flatten() for a, _, start in pairs])
    apart = torch.cat([(a - b).flatten() for a, b, _ in pairs])
    assert float(moved.norm()) > 1e-3
    assert float(apart.norm()) < 0.05 * float(moved.norm())


def test_the_joint_kl_is_the_default() -> None:
    model = made(TRPO, IdentityEnvBox(), n_steps=128)
    model.learn(128)
    assert model.last_result.kl <= model.target_kl
    wide = made(TRPO, IdentityEnvMultiBinary(6), n_steps=128)
    wide.kl_definition = "sb3"
    wide.learn(128)
    assert wide.target_kl < wide.last_result.kl <= 6 * wide.target_kl
    assert wide.logger.name_to_value["train/kl_divergence_loss"] <= wide.target_kl
    wide.kl_definition = "mean"
    with pytest.raises(ValueError, match="kl_definition is 'mean'"):
        wide.learn(128)


@pytest.mark.parametrize("name", ["box", "discrete", "multi-discrete", "multi-binary"])
def test_a_rollout_is_sb3s_to_rounding(name: str) -> None:
    policy, env, keywords = ENVS[name]
    buffers = []
    for kind in (Theirs, TRPO):
        model = made(kind, env(), policy, **keywords)
        _, callback = model._setup_learn(64)
        torch.manual_seed(5)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 64)
        buffers.append(model.rollout_buffer)
        if kind is TRPO:
            obs = torch.as_tensor(model._last_obs)
            assert Acting(model.policy, obs)._fused is not None
    for field in ("actions", "observations", "rewards", "values", "log_probs", "episode_starts"):
        theirs, ours = (getattr(buffer, field) for buffer in buffers)
        assert ours.dtype == theirs.dtype
        assert np.allclose(ours, theirs, rtol=1e-3, atol=2e-4), field
    for field in ("advantages", "returns"):
        theirs, ours = (getattr(buffer, field) for buffer in buffers)
        assert np.allclose(ours, theirs, rtol=1e-3, atol=5e-3), field


class Locals(BaseCallback):
    """Keeps the names that callbacks may read, and changes the policy once."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.changed: list[bool] = []

    def _on_step(self) -> bool:
        self.names |= set(self.locals)
        assert self.locals["values"].shape == (self.training_env.num_envs, 1)
        assert isinstance(self.locals["actions"], np.ndarray)
        obs, values = self.locals["obs_tensor"], self.locals["values"]
        with torch.no_grad():
            exact = self.model.policy.predict_values(obs)
        self.changed.append(not torch.allclose(values, exact, atol=1e-5))
        if self.n_calls == 10:
            with torch.no_grad():
                self.model.policy.value_net.bias.add_(3.0)
        return True


def test_callbacks_see_sb3s_locals_and_may_change_the_policy() -> None:
    found = {}
    for kind in (Theirs, TRPO):
        callback = Locals()
        made(kind, "CartPole-v1").learn(64, callback=callback)
        found[kind] = callback.names
        assert not any(callback.changed[:9])
        assert not any(callback.changed[10:])
    late = {"idx", "done", "terminal_obs", "terminal_value"}
    assert found[Theirs] - late <= found[TRPO]


def test_a_callback_stops_the_training() -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls < 10

    model = made(TRPO, "CartPole-v1").learn(1000, callback=Stop())
    assert model.num_timesteps == 10


def test_truncated_episodes_are_bootstrapped_as_sb3_does() -> None:
    def env() -> gymnasium.Env[Any, Any]:
        return gymnasium.wrappers.TimeLimit(gymnasium.make("Pendulum-v1").unwrapped, 10)

    buffers = []
    for kind in (Theirs, TRPO):
        model = made(kind, env())
        _, callback = model._setup_learn(64)
        torch.manual_seed(5)
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 64)
        buffers.append(model.rollout_buffer)
    assert buffers[0].episode_starts.sum() > 3
    assert np.allclose(buffers[0].rewards, buffers[1].rewards, rtol=1e-3, atol=1e-3)
    assert np.allclose(buffers[0].advantages, buffers[1].advantages, rtol=1e-2, atol=1e-2)


class Noisy(BaseFeaturesExtractor):
    """Batch norm and dropout in the trunk that policy and values share."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 8)
        width = int(np.prod(observation_space.shape))
        self.body = nn.Sequential(
            nn.Linear(width, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3)
        )

    def forward(self, obs: Tensor) -> Tensor:
        features: Tensor = self.body(obs)
        return features


def test_a_shared_trunk_is_moved_by_the_trust_region_alone() -> None:
    keywords = {"policy_kwargs": {"features_extractor_class": Noisy}}
    model = made(TRPO, "Pendulum-v1", **keywords)
    model.learn(64)
    policy = model.policy
    states = policy.optimizer.state
    trunk = set(map(id, policy.features_extractor.parameters()))
    assert not any(id(p) in trunk for p in states)
    assert any(p is policy.value_net.weight for p in states)
    with torch.no_grad():
        obs = model.rollout_buffer.to_torch(model.rollout_buffer.observations)
        policy.set_training_mode(False)
        assert policy.predict_values(obs).isfinite().all()


def test_the_critic_is_fitted_as_sb3_contrib_does() -> None:
    found = []
    for kind in (Theirs, TRPO):
        model = made(kind, "Pendulum-v1", n_critic_updates=4)
        _, callback = model._setup_learn(64)
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002
        model.collect_rollouts(model.env, callback, model.rollout_buffer, 64)
        model._current_progress_remaining = 1.0
        model.train()
        found.append(model)
    for key, theirs in policy_of(found[0]).items():
        if "value" in key:
            assert torch.allclose(policy_of(found[1])[key], theirs, rtol=1e-3, atol=1e-4), key
    logged = [m.logger.name_to_value["train/value_loss"] for m in found]
    assert logged[1] == pytest.approx(logged[0], rel=1e-3)
    assert found[1].logger.name_to_value.keys() == found[0].logger.name_to_value.keys()
    steps = [int(m.policy.optimizer.state[m.policy.value_net.weight]["step"]) for m in found]
    assert steps == [8, 8]


def test_another_optimizer_and_buffer_take_the_plain_fit() -> None:
    from stable_baselines3.common.buffers import RolloutBuffer

    class Counted(RolloutBuffer):
        computed = 0

        def compute_returns_and_advantage(self, *args: Any, **kwargs: Any) -> None:
            Counted.computed += 1
            super().compute_returns_and_advantage(*args, **kwargs)

    model = made(
        TRPO,
        "CartPole-v1",
        rollout_buffer_class=Counted,
        policy_kwargs={"optimizer_class": torch.optim.RMSprop},
    )
    before = model.policy.value_net.weight.detach().clone()
    model.learn(64)
    assert Counted.computed == 1
    assert not torch.equal(model.policy.value_net.weight, before)


def test_vec_normalize_and_evaluation(tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")] * 2))
    model = made(TRPO, env)
    evaluation = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]), training=False)
    callback = EvalCallback(
        evaluation, eval_freq=64, n_eval_episodes=1, log_path=str(tmp_path), verbose=0
    )
    model.learn(256, callback=callback)
    assert (tmp_path / "evaluations.npz").exists()
    assert np.isfinite(evaluate_policy(model, evaluation, n_eval_episodes=1)[0])


def test_seeds_decide_everything() -> None:
    runs = [policy_of(made(TRPO, "CartPole-v1", n_steps=128).learn(256)) for _ in range(2)]
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


def test_it_learns_identity() -> None:
    model = made(TRPO, IdentityEnv(2), n_steps=256, gamma=0.4, target_kl=0.03)
    model.learn(256 * 16)
    assert evaluate_policy(model, model.get_env(), n_eval_episodes=10)[0] > 85


def test_options_edited_between_updates_count() -> None:
    model = made(TRPO, "CartPole-v1").learn(64)
    model.target_kl = 1e-5
    model.learn(64)
    assert 0 < model.last_result.kl <= 1e-5
    assert model.logger.name_to_value["train/is_line_search_success"] == 1.0


# gSDE's exploration matrix has a graph in sb3-contrib too.
@pytest.mark.parametrize("name", [name for name in ENVS if not name.startswith("gsde")])
def test_a_trained_policy_can_be_copied_and_pickled(name: str) -> None:
    policy, env, keywords = ENVS[name]
    model = made(TRPO, env(), policy, **keywords).learn(64)
    copied = copy.deepcopy(model.policy)
    for key, p in copied.named_parameters():
        assert torch.equal(p, policy_of(model)[key])
    assert pickle.loads(pickle.dumps(model.policy)) is not None


def test_a_copied_model_goes_on_with_its_own_policy() -> None:
    model = made(TRPO, "CartPole-v1").learn(64)
    before = policy_of(model)
    copied = copy.deepcopy(model)
    copied.learn(64)
    assert all(torch.equal(p, before[key]) for key, p in policy_of(model).items())
    assert any(not torch.equal(p, before[key]) for key, p in policy_of(copied).items())


def test_the_update_itself_leaves_batch_statistics_alone() -> None:
    keywords = {"policy_kwargs": {"features_extractor_class": Noisy}, "n_critic_updates": 0}
    model = made(TRPO, "Pendulum-v1", **keywords).learn(64)
    assert model.last_result.accepted
    assert int(model.policy.features_extractor.body[1].num_batches_tracked) == 0


def test_a_single_row_left_by_sub_sampling_is_not_normalised() -> None:
    model = made(TRPO, "CartPole-v1", sub_sampling_factor=64).learn(64)
    assert model.last_result.accepted
    assert all(p.isfinite().all() for p in policy_of(model).values())


def test_no_warning_of_torchs_reaches_the_user() -> None:
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Converting a tensor")
            made(TRPO, "Pendulum-v1").learn(64)
    finally:
        torch.set_warn_always(always)
