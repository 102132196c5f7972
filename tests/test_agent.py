"""The agent as a library: learning, predicting, saving, and what it writes."""

from __future__ import annotations

import inspect
import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn
from toy_environments import TERMINATED, TRUNCATED, Masked, Scripted, Walk

from trpo_fast.agent import TRPO
from trpo_fast.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from trpo_fast.config import Config, UnknownOptionError
from trpo_fast.environments import UnsupportedSpaceError
from trpo_fast.learner import normalize_advantages
from trpo_fast.logger import read_progress
from trpo_fast.run_directory import RunDirectoryError

SMALL = {
    "num_envs": 2,
    "rollout_steps": 32,
    "hidden_sizes": (8,),
    "value_hidden_sizes": (8,),
    "critic_epochs": 2,
    "seed": 1,
}


def small(env="CartPole-v1", **options):
    return TRPO(env, **(SMALL | options))


def weights(agent):
    tensors = [*agent.policy.parameters(), *agent.value_function.parameters()]
    return torch.cat([t.detach().flatten() for t in tensors])


def test_learn_adds_timesteps_in_whole_rollouts():
    with small() as agent:
        assert agent.learn(65, progress_bar=False) is agent
        assert agent.num_timesteps == 128
        agent.learn(64, progress_bar=False)
        assert agent.num_timesteps == 192
        assert agent.progress.num_updates == 3


def test_pitfall_21_timesteps_count_real_transitions_only():
    def vector(mode):
        script = ((3, TERMINATED), (2, TRUNCATED))
        return SyncVectorEnv([lambda: Scripted(script)] * 2, autoreset_mode=mode)

    with small(vector(AutoresetMode.NEXT_STEP), rollout_steps=14) as agent:
        agent.learn(1, progress_bar=False)
        # Of 14 rows an environment spends 3 + reset + 2 + reset + 3 + reset + 2 + reset.
        assert agent.num_timesteps == 2 * (3 + 2 + 3 + 2)
    with small(vector(AutoresetMode.SAME_STEP), rollout_steps=14) as agent:
        agent.learn(1, progress_bar=False)
        assert agent.num_timesteps == 28


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(int(torch.randint(1000, ())))
        with small(seed=seed) as agent:
            agent.learn(200, progress_bar=False)
            results.append(weights(agent))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_training_leaves_the_global_generators_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with small() as agent:
        agent.learn(100, progress_bar=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_run_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with small() as agent:
        agent.learn(100, progress_bar=False)
        agent.evaluate(2)
    assert not list(tmp_path.iterdir())


def test_a_run_directory_holds_what_the_contract_says(tmp_path):
    directory = tmp_path / "run"
    with small(run_dir=directory, save_every=1, eval_every=64, eval_episodes=2) as agent:
        agent.learn(320, progress_bar=False)
        rows = read_progress(directory / "progress.csv")
        assert [int(r["time/iterations"]) for r in rows] == [1, 2, 3, 4, 5]
        assert int(rows[-1]["time/total_timesteps"]) == 320
        assert all(r["eval/mean_reward"] for r in rows)
        assert all(r["train/status"] for r in rows)
        config = json.loads((directory / "config.json").read_text())
        assert Config.from_options(config["options"]) == agent.config
        assert len(list(directory.glob("events.out.tfevents.*"))) == 1
        assert (directory / "learning_curve.png").stat().st_size > 1000
        assert len(list((directory / "checkpoints").glob("step-*.safetensors"))) == 3
        best = load_checkpoint(directory / "checkpoints" / "best.safetensors")
        scores = [float(r["eval/mean_reward"]) for r in rows]
        assert best["progress"]["best_evaluation"] == pytest.approx(max(scores))
        # The same agent may go on there; another one may not.
        agent.learn(64, progress_bar=False)
        assert len(read_progress(directory / "progress.csv")) == 6
    with small(run_dir=directory) as other, pytest.raises(RunDirectoryError, match="--resume"):
        other.learn(64, progress_bar=False)


@pytest.mark.parametrize(
    ("env", "shape"),
    [("CartPole-v1", ()), ("Pendulum-v1", (1,)), (lambda: Walk(continuous=False), ())],
)
def test_predict_takes_one_observation_or_a_batch(env, shape):
    with small(env) as agent:
        space = agent.observation_space
        space.seed(0)
        observations = np.stack([space.sample() for _ in range(3)])
        actions, state = agent.predict(observations, state="s")
        assert actions.shape == (3, *shape)
        assert state == "s"
        one, _ = agent.predict(observations[0], None, np.ones(1, bool), True)
        assert np.shape(one) == shape
        np.testing.assert_allclose(one, actions[0], rtol=1e-5)
        assert agent.action_space.contains(one)
        with pytest.raises(ValueError, match="expected"):
            agent.predict(np.zeros((2, 3, 99)))


def test_predict_with_deterministic_false_samples():
    with small("Pendulum-v1") as agent:
        observations = np.zeros((500, 3), np.float32)
        torch.manual_seed(0)
        sampled, _ = agent.predict(observations, deterministic=False)
        fixed, _ = agent.predict(observations)
        assert sampled.std() > 0.5
        assert fixed.std() == 0


def test_predict_obeys_masks():
    with small(lambda: Masked("info"), rollout_steps=10) as agent:
        mask = [False, False, True, False]
        for deterministic in (True, False):
            action, _ = agent.predict([0.0], deterministic=deterministic, action_masks=mask)
            assert int(action) == 2
            actions, _ = agent.predict(
                [[0.0]] * 3, None, None, deterministic, action_masks=[mask] * 3
            )
            assert actions.tolist() == [2, 2, 2]


@pytest.mark.parametrize("place", ["info", "method", "observation"])
def test_masked_environments_train(place):
    with small(lambda: Masked(place), rollout_steps=10) as agent:
        agent.learn(40, progress_bar=False)
        assert agent.evaluate(3) == (5.0, 0.0)


def test_predict_has_the_signature_that_sb3_calls():
    """What stable_baselines3.common.evaluation.evaluate_policy does, on a vector environment."""
    with small() as agent:
        env = gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
        observations, _ = env.reset(seed=0)
        states, starts = None, np.ones(2, bool)
        for _ in range(20):
            actions, states = agent.predict(
                observations, state=states, episode_start=starts, deterministic=True
            )
            observations, _, terminated, truncated, _ = env.step(actions)
            starts = terminated | truncated
        env.close()
    names = list(inspect.signature(TRPO.predict).parameters)[1:5]
    assert names == ["observation", "state", "episode_start", "deterministic"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sb3_evaluate_policy_and_callbacks_run_on_the_agent():
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    class Stop(BaseCallback):
        def _on_step(self):
            return self.n_calls < 2

    with small() as agent:
        agent.learn(1000, Stop(), progress_bar=False)
        assert agent.num_timesteps == 128
        mean, _ = evaluate_policy(agent, make_vec_env("CartPole-v1", n_envs=2), n_eval_episodes=2)
        assert mean >= 8


def test_evaluate_is_reproducible_and_changes_nothing():
    with small() as agent, small() as other:
        scores = [agent.evaluate(3) for _ in range(2)]
        assert scores[0] == scores[1]
        for a in (agent, other):
            a.learn(100, progress_bar=False)
        assert torch.equal(weights(agent), weights(other))


def test_evaluate_on_an_object_needs_a_recipe():
    with small(Walk()) as agent:
        with pytest.raises(ValueError, match="pass env="):
            agent.evaluate(1)
        mean, _ = agent.evaluate(2, env=Walk)
        assert mean < 0
    with small(Walk(), eval_every=10) as agent, pytest.raises(ValueError, match="eval_every"):
        agent.learn(64, progress_bar=False)


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Dict(
            {"a": gymnasium.spaces.Box(-1, 1, (2,)), "b": gymnasium.spaces.Discrete(3)}
        ),
        gymnasium.spaces.MultiDiscrete([2, 3]),
        gymnasium.spaces.Tuple((gymnasium.spaces.MultiBinary(3), gymnasium.spaces.Discrete(2))),
    ],
)
@pytest.mark.parametrize(
    "actions",
    [
        gymnasium.spaces.MultiDiscrete([3, 2]),
        gymnasium.spaces.MultiBinary(2),
        gymnasium.spaces.Box(-1, 1, (2, 2)),
    ],
)
def test_every_supported_space_trains_predicts_and_evaluates(space, actions):
    class Anything(gymnasium.Env):
        observation_space, action_space = space, actions

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.observation_space.seed(seed)
            self.time = 0
            return self.observation_space.sample(), {}

        def step(self, action):
            assert self.action_space.contains(action)
            self.time += 1
            return self.observation_space.sample(), 1.0, False, self.time >= 4, {}

    with small(Anything, rollout_steps=9) as agent:
        agent.learn(18, progress_bar=False)
        assert agent.evaluate(2) == (4.0, 0.0)
        action, _ = agent.predict(space.sample())
        assert actions.contains(action)


@pytest.mark.parametrize("option", ["squash", "state_dependent_std"])
def test_variants_of_the_gaussian_train(option):
    with small("Pendulum-v1", **{option: True}) as agent:
        agent.learn(128, progress_bar=False)
        assert torch.isfinite(weights(agent)).all()


class Mixture(nn.Module):
    """A policy the package has never seen."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(4, 6, batch_first=True)
        self.out = nn.Linear(6, 2)

    def forward(self, obs):
        hidden, _ = self.gru(obs[:, None, :])
        return torch.distributions.Categorical(logits=self.out(hidden[:, 0]))


@pytest.mark.filterwarnings("ignore:TRPOOptimizer takes the generic path")
def test_any_module_serves_as_a_policy(tmp_path):
    torch.manual_seed(0)
    with small(policy=Mixture()) as agent:
        before = weights(agent)
        agent.learn(64, progress_bar=False)
        assert agent.optimizer.path == "generic"
        assert not torch.equal(weights(agent), before)
        path = agent.save(tmp_path / "custom")
    with pytest.raises(CheckpointError, match="pass policy="):
        TRPO.load(path)
    with TRPO.load(path, policy=Mixture()) as loaded:
        assert torch.equal(weights(loaded), weights(agent))


class Trunk(nn.Module):
    """Policy and value head on one trunk."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(4, 6)
        self.actor = nn.Linear(6, 2)
        self.value = nn.Linear(6, 1)

    def forward(self, obs):
        return torch.distributions.Categorical(logits=self.actor(torch.tanh(self.trunk(obs))))


class TrunkValue(nn.Module):
    def __init__(self, policy, with_head=True):
        super().__init__()
        self.policy = policy
        self.with_head = with_head

    def forward(self, obs):
        features = torch.tanh(self.policy.trunk(obs))
        return self.policy.value(features).squeeze(-1) if self.with_head else features.sum(-1)


@pytest.mark.filterwarnings("ignore:TRPOOptimizer takes the generic path")
def test_pitfall_12_the_critic_never_moves_a_shared_trunk():
    torch.manual_seed(0)
    policy = Trunk()
    with pytest.warns(
        UserWarning, match="4 parameter tensors of the value function belong to the policy"
    ):
        agent = small(policy=policy, value_function=TrunkValue(policy))
    step, after_step = agent.optimizer.step, []

    def spy(**keywords):
        result = step(**keywords)
        after_step.append([p.detach().clone() for p in policy.parameters()])
        return result

    agent.optimizer.step = spy
    head = policy.value.weight.detach().clone()
    trunk = policy.trunk.weight.detach().clone()
    agent.learn(64, progress_bar=False)
    assert not torch.equal(policy.trunk.weight, trunk)
    assert not torch.equal(policy.value.weight, head)
    names = [name for name, _ in policy.named_parameters()]
    for name, before, now in zip(names, after_step[-1], policy.parameters(), strict=True):
        assert torch.equal(before, now) != name.startswith("value."), name
    agent.close()


def test_a_value_function_without_a_parameter_of_its_own_is_refused():
    policy = Trunk()
    del policy.value
    told = pytest.warns(UserWarning, match="belong to the policy")
    with told, pytest.raises(ValueError, match="no parameter of its own"):
        small(policy=policy, value_function=TrunkValue(policy, with_head=False))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("action_counts", None),
        ("actions", np.zeros(3)),
        ("episodes", np.zeros(7, np.int64)),
        ("observations", np.zeros((2, 9), np.float32)),
    ],
)
def test_saved_episodes_that_cannot_be_replayed_are_refused_in_words(tmp_path, key, value):
    with small() as agent:
        agent.learn(64, progress_bar=False)
        state = load_checkpoint(agent.save(tmp_path / "agent"))
    if value is None:
        del state["collector"][key]
    else:
        state["collector"][key] = value
    path = save_checkpoint(tmp_path / "bad.safetensors", state)
    with TRPO.load(path) as loaded, pytest.raises(CheckpointError, match="cannot be replayed"):
        loaded.learn(64, progress_bar=False)


# callbacks


def test_a_function_is_called_after_each_update_and_can_stop():
    seen = []

    def callback(local, global_):
        seen.append(local["self"].num_timesteps)
        return len(seen) < 2

    with small() as agent:
        agent.learn(640, callback, progress_bar=False)
    assert seen == [64, 128]


def test_an_object_is_driven_as_stable_baselines3_drives_it():
    calls = []

    class Recorder:
        def init_callback(self, model):
            calls.append(("init", model.num_timesteps))

        def on_training_start(self, local, global_):
            calls.append(("start", "self" in local))

        def on_step(self):
            calls.append("step")
            return True

        def on_training_end(self):
            calls.append("end")

    with small() as agent:
        agent.learn(128, Recorder(), progress_bar=False)
    assert calls == [("init", 0), ("start", True), "step", "step", "end"]


def test_what_is_no_callback_is_refused():
    with small() as agent, pytest.raises(TypeError, match="on_step"):
        agent.learn(64, callback=3, progress_bar=False)


# saving and loading


def test_loading_goes_on_bit_for_bit(tmp_path):
    with small("Pendulum-v1") as agent:
        agent.learn(100, progress_bar=False)
        path = agent.save(tmp_path / "agent")
        agent.learn(150, progress_bar=False)
        with TRPO.load(path) as loaded:
            assert loaded.config == agent.config
            loaded.learn(150, progress_bar=False)
            assert torch.equal(weights(loaded), weights(agent))
            assert loaded.num_timesteps == agent.num_timesteps
            assert loaded.rng.bit_generator.random_raw() == agent.rng.bit_generator.random_raw()


def test_pitfall_normaliser_statistics_are_not_lost_on_load(tmp_path):
    with small("Pendulum-v1") as agent:
        agent.learn(200, progress_bar=False)
        path = agent.save(tmp_path / "agent")
        with TRPO.load(path) as loaded:
            observation = np.array([0.3, -0.2, 4.0], np.float32)
            np.testing.assert_array_equal(
                agent.predict(observation)[0], loaded.predict(observation)[0]
            )
            assert loaded.learner.normalizer.statistics.count == 256


def test_loading_into_another_environment_lists_the_differences(tmp_path):
    with small() as agent:
        path = agent.save(tmp_path / "agent")
    with pytest.raises(CheckpointError) as caught:
        TRPO.load(path, "Pendulum-v1")
    text = str(caught.value)
    assert "environment: the checkpoint has CartPole-v1, here it is Pendulum-v1" in text
    assert "action space" in text
    assert "policy: body.0.weight: the checkpoint has [8, 4], here it is [8, 3]" in text


def test_loading_with_another_architecture_lists_the_differences(tmp_path):
    with small() as agent:
        path = agent.save(tmp_path / "agent")
    with pytest.raises(CheckpointError, match=r"body.0.weight: the checkpoint has \[8, 4\]"):
        TRPO.load(path, hidden_sizes=(9,))
    with pytest.raises(CheckpointError, match="activation: the checkpoint has tanh"):
        TRPO.load(path, activation="relu")
    with pytest.raises(UnknownOptionError, match="did you mean"):
        TRPO.load(path, hidden_size=(9,))


def test_options_that_are_free_can_change_on_load(tmp_path):
    with small(max_kl=0.01) as agent:
        agent.learn(64, progress_bar=False)
        path = agent.save(tmp_path / "agent")
    with TRPO.load(path, max_kl=0.002, num_envs=3) as loaded:
        assert loaded.optimizer.param_groups[0]["max_kl"] == 0.002
        loaded.learn(96, progress_bar=False)
        assert loaded.num_timesteps == 64 + 96
        assert loaded.optimizer.last_result.kl <= 0.002


def test_an_agent_on_a_function_needs_it_again(tmp_path):
    with small(Walk) as agent:
        agent.learn(64, progress_bar=False)
        path = agent.save(tmp_path / "agent")
    with pytest.raises(CheckpointError, match="pass env="):
        TRPO.load(path)
    with TRPO.load(path, Walk) as loaded:
        assert torch.equal(weights(loaded), weights(agent))


def test_a_checkpoint_never_imports_the_module_named_in_its_environment_id(tmp_path):
    with small() as agent:
        state = load_checkpoint(agent.save(tmp_path / "agent"))
    state["agent"]["environment"] = "this:CartPole-v1"
    path = save_checkpoint(tmp_path / "evil.safetensors", state)
    with pytest.raises(CheckpointError, match="imports the module 'this'"):
        TRPO.load(path)


@pytest.mark.parametrize("missing", ["learner", "rng", "progress", "config", "agent", "collector"])
def test_a_checkpoint_without_a_part_is_refused(tmp_path, missing):
    with small() as agent:
        state = load_checkpoint(agent.save(tmp_path / "agent"))
    del state[missing]
    with pytest.raises(CheckpointError):
        TRPO.load(save_checkpoint(tmp_path / "cut.safetensors", state))


# construction


def test_help_shows_every_option():
    names = list(inspect.signature(TRPO).parameters)
    assert names[:4] == ["env", "policy", "value_function", "run_dir"]
    assert set(names[4:]) == set(Config().to_json())


def test_mistakes_are_told_in_words():
    with pytest.raises(UnknownOptionError, match="did you mean 'num_envs'"):
        small(num_env=3)
    with pytest.raises(ValueError, match="nosuch"):
        small(activation="nosuch")
    with pytest.raises(ValueError, match="squash"):
        small(squash=True)
    with pytest.raises(ValueError, match="CUDA"):
        small(device="cuda:99")
    with pytest.raises(ValueError, match="Did you mean CartPole-v1"):
        small("CartPol-v1")

    class Odd(Scripted):
        observation_space = gymnasium.spaces.Text(5)

    with pytest.raises(UnsupportedSpaceError, match="Supported: Box"):
        small(Odd)


def test_a_seed_is_drawn_and_recorded_when_none_is_given():
    with small(seed=None) as one, small(seed=None, env_kwargs=None) as two:
        assert one.config.seed is not None
        assert one.seed != two.seed


def test_autodetected_number_of_environments():
    with small(Walk()) as agent:
        assert agent.config.num_envs == 1


# advantages


def test_pitfall_22_advantages_of_one_sample_or_a_constant_are_not_divided_by_zero():
    for advantages in (torch.tensor([3.0]), torch.full((7,), 2.5), torch.zeros(4), torch.empty(0)):
        scaled, ok = normalize_advantages(advantages)
        assert not ok
        assert torch.equal(scaled, advantages)
    constant = torch.full((1000,), 0.1) + 1e-9 * torch.randn(1000)
    assert not normalize_advantages(constant)[1]


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_advantages_are_normalised_at_any_scale(scale):
    scaled, ok = normalize_advantages(scale * (torch.randn(1000) + 5))
    assert ok
    assert abs(float(scaled.mean())) < 1e-5
    assert float(scaled.std(correction=0)) == pytest.approx(1, rel=1e-5)


def test_equal_advantages_warn_once_and_are_counted():
    class Constant(Scripted):
        def step(self, action):
            observation, _, terminated, truncated, info = super().step(action)
            return observation * 0, 0.0, terminated, truncated, info

        def reset(self, **keywords):
            observation, info = super().reset(**keywords)
            return observation * 0, info

    zero_value = nn.Linear(3, 1)
    nn.init.zeros_(zero_value.weight)
    nn.init.zeros_(zero_value.bias)

    class Zero(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = zero_value

        def forward(self, obs):
            return self.layer(obs).squeeze(-1)

    with small(Constant, value_function=Zero()) as agent:
        with pytest.warns(UserWarning, match="all equal") as caught:
            agent.learn(192, progress_bar=False)
        assert len([w for w in caught if "all equal" in str(w.message)]) == 1
        assert agent.learner.counters["train/unscaled_advantages"] == 3
        assert torch.isfinite(weights(agent)).all()


def test_pitfall_03_statistics_of_a_rollout_apply_from_the_next_one_on():
    with small("Pendulum-v1") as agent:
        seen = []
        normalizer = agent.learner.normalizer
        step = agent.optimizer.step

        def spy(**keywords):
            seen.append((keywords["obs"].clone(), normalizer.statistics.count))
            return step(**keywords)

        agent.optimizer.step = spy
        agent.learn(128, progress_bar=False)
        # The first update sees raw observations, the second the first rollout's statistics.
        assert [count for _, count in seen] == [0, 64]
        assert float(seen[0][0][:, :2].norm(dim=1).sub(1).abs().max()) < 1e-5
        assert normalizer.statistics.count == 128


def test_options_named_again_with_the_same_value_change_nothing(tmp_path):
    with small(Walk, env_kwargs={"length": 5}) as agent:
        agent.learn(100, progress_bar=False)
        path = agent.save(tmp_path / "agent")
        agent.learn(100, progress_bar=False)
    with TRPO.load(path, Walk, **SMALL, env_kwargs={"length": 5}) as loaded:
        loaded.learn(100, progress_bar=False)
        assert torch.equal(weights(loaded), weights(agent))


@pytest.mark.parametrize("steps", [-5, 1.5, float("nan"), "many"])
def test_learn_refuses_what_is_no_number_of_steps(steps: object) -> None:
    agent = TRPO("CartPole-v1", seed=0, num_envs=1)
    with pytest.raises(ValueError, match="total_timesteps is a whole number"):
        agent.learn(steps)  # type: ignore[arg-type]


def test_predict_on_no_rows_gives_no_actions() -> None:
    agent = TRPO("CartPole-v1", seed=0, num_envs=1)
    actions, _ = agent.predict(np.zeros((0, 4), np.float32))
    assert actions.shape == (0,)
