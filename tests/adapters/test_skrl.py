"""trpo_fast.skrl.TRPO beside skrl's own, on the same memory and in its own trainer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from gymnasium import spaces
from tensor_environments import TensorCartPole
from torch import Tensor, nn
from torch.distributions import Distribution

_CHECKS = Distribution._validate_args
skrl = pytest.importorskip("skrl", reason="skrl is not installed: pip install '.[test]'")
from skrl.agents.torch.trpo import TRPO as THEIRS  # noqa: E402
from skrl.envs.wrappers.torch import wrap_env  # noqa: E402
from skrl.memories.torch import RandomMemory  # noqa: E402
from skrl.models.torch import (  # noqa: E402
    CategoricalMixin,
    DeterministicMixin,
    GaussianMixin,
    Model,
    MultivariateGaussianMixin,
)
from skrl.resources.preprocessors.torch import RunningStandardScaler  # noqa: E402
from skrl.trainers.torch import SequentialTrainer  # noqa: E402

from trpo_fast.skrl import TRPO  # noqa: E402

# skrl switches the argument checks of all torch distributions off when it is imported.
Distribution.set_default_validate_args(_CHECKS)

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")
WIDTH, ACTIONS, STEPS, ENVS = 5, 3, 60, 2
OBSERVATIONS = spaces.Box(-5.0, 5.0, (WIDTH,))
BOX, DISCRETE = spaces.Box(-9.0, 9.0, (ACTIONS,)), spaces.Discrete(ACTIONS)
PLAIN = {"preconditioner": "none", "precision": "fp32", "cg_tol": 0.0}


def network(outputs: int, inputs: int = WIDTH) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))


class Gaussian(GaussianMixin, Model):  # type: ignore[misc]
    def __init__(self, actions: Any = BOX, observations: Any = OBSERVATIONS, **options: Any):
        Model.__init__(self, observation_space=observations, action_space=actions, device="cpu")
        GaussianMixin.__init__(self, **options)
        self.net = network(actions.shape[0], observations.shape[0])
        self.log_std = nn.Parameter(torch.full((actions.shape[0],), -0.2))

    def compute(self, inputs: dict[str, Any], role: str) -> tuple[Tensor, dict[str, Any]]:
        return self.net(inputs["observations"]), {"log_std": self.log_std}


class Stateful(Gaussian):
    """Reads skrl's privileged states too."""

    def compute(self, inputs: dict[str, Any], role: str) -> tuple[Tensor, dict[str, Any]]:
        found = self.net(inputs["observations"]) + 0.1 * inputs["states"][:, :ACTIONS]
        return found, {"log_std": self.log_std}


class Correlated(MultivariateGaussianMixin, Model):  # type: ignore[misc]
    def __init__(self) -> None:
        Model.__init__(self, observation_space=OBSERVATIONS, action_space=BOX, device="cpu")
        MultivariateGaussianMixin.__init__(self)
        self.net, self.log_std = network(ACTIONS), nn.Parameter(torch.full((ACTIONS,), -0.2))

    def compute(self, inputs: dict[str, Any], role: str) -> tuple[Tensor, dict[str, Any]]:
        return self.net(inputs["observations"]), {"log_std": self.log_std}


class Chooser(CategoricalMixin, Model):  # type: ignore[misc]
    def __init__(self, inputs: int = WIDTH, actions: int = ACTIONS, **options: Any) -> None:
        space = spaces.Box(-5.0, 5.0, (inputs,))
        Model.__init__(
            self, observation_space=space, action_space=spaces.Discrete(actions), device="cpu"
        )
        CategoricalMixin.__init__(self, **options)
        self.net = network(actions, inputs)

    def compute(self, inputs: dict[str, Any], role: str) -> tuple[Tensor, dict[str, Any]]:
        found = self.net(inputs["observations"])
        return (found if self._c_unnormalized_log_prob else found.softmax(1)), {}


class Value(DeterministicMixin, Model):  # type: ignore[misc]
    def __init__(self, inputs: int = WIDTH) -> None:
        space = spaces.Box(-5.0, 5.0, (inputs,))
        Model.__init__(self, observation_space=space, action_space=DISCRETE, device="cpu")
        DeterministicMixin.__init__(self)
        self.net = network(1, inputs)

    def compute(self, inputs: dict[str, Any], role: str) -> tuple[Tensor, dict[str, Any]]:
        return self.net(inputs["observations"]), {}


class InOrder(RandomMemory):  # type: ignore[misc]
    """Everything in its order, so that two agents see the same rows."""

    def sample(self, names: Any, *, batch_size: int, mini_batches: int = 1, **_: Any) -> Any:
        return self.sample_all(names=names, mini_batches=mini_batches)


def agent_of(kind: Any, policy: Any, directory: Path, states: Any = None, **cfg: Any) -> Any:
    torch.manual_seed(3)
    quiet = {"write_interval": 0, "checkpoint_interval": 0, "directory": str(directory)}
    agent = kind(
        models={"policy": policy, "value": Value(policy.observation_space.shape[0])},
        memory=InOrder(memory_size=STEPS, num_envs=ENVS, device="cpu"),
        observation_space=policy.observation_space,
        state_space=states,
        action_space=policy.action_space,
        device="cpu",
        cfg={"experiment": quiet, "learning_epochs": 2, **cfg},
    )
    agent.init()
    return agent


def fill(agent: Any) -> None:
    """A memory of random rewards for the policy's own actions."""
    torch.manual_seed(5)
    agent.training = True
    states = None if agent.state_space is None else torch.randn(ENVS, WIDTH)
    rows = {"terminated": torch.zeros(ENVS, 1), "truncated": torch.zeros(ENVS, 1)}
    flags = {name: value.bool() for name, value in rows.items()}
    for step in range(STEPS):
        obs = torch.randn(ENVS, WIDTH)
        with torch.no_grad():
            actions, _ = agent.act(obs, states, timestep=step, timesteps=STEPS)
        agent.record_transition(
            observations=obs, states=states, actions=actions, rewards=torch.randn(ENVS, 1),
            next_observations=torch.randn(ENVS, WIDTH), next_states=states, infos={},
            timestep=step, timesteps=STEPS, **flags,
        )  # fmt: skip
    agent.enable_models_training_mode(True)


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def update(agent: Any) -> None:
    fill(agent)
    torch.manual_seed(7)
    agent.update(timestep=0, timesteps=1)


@pytest.mark.parametrize(
    ("make", "path", "states"),
    [
        (Gaussian, "fused", None),
        (lambda: Gaussian(clip_log_std=False), "fused", None),
        (lambda: Gaussian(min_log_std=-0.5), "generic", None),
        (lambda: Gaussian(clip_mean_actions=True), "generic", None),
        (Stateful, "generic", OBSERVATIONS),
    ],
    ids=["plain", "unclipped", "near a bound", "clipped means", "states"],
)
def test_a_step_is_skrls(make: Any, path: str, states: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = make()
    start, found = flat(policy), []
    for kind in (THEIRS, TRPO):
        agent = agent_of(kind, copy.deepcopy(policy), tmp_path, states, damping=0.05)
        if kind is TRPO:
            agent.policy_optimizer.param_groups[0].update(PLAIN)
        update(agent)
        tracked = {
            k: v[-1] for k, v in agent.tracking_data.items() if "/" in k and "Reward" not in k
        }
        found.append((flat(agent.policy) - start, flat(agent.value), tracked))
    assert agent.policy_optimizer.path == path
    assert agent.last_result.accepted
    assert agent.last_result.backtracks == 0  # skrl's rule differs from then on
    moved = float(found[0][0].norm())
    assert moved > 1e-3
    assert float((found[1][0] - found[0][0]).norm()) < 1e-2 * moved
    assert torch.allclose(found[1][1], found[0][1], atol=1e-5)
    assert found[1][2].keys() == found[0][2].keys()
    assert found[1][2] == pytest.approx(found[0][2], rel=1e-2, abs=1e-5)


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (Chooser, "fused"),
        (lambda: Chooser(unnormalized_log_prob=False), "generic"),
        (Correlated, "generic"),
        (lambda: Gaussian(reduction="mean"), "fused"),
    ],
    ids=["categorical", "probabilities", "multivariate", "mean of log-probabilities"],
)
def test_policies_that_skrls_own_kl_does_not_serve_as_they_are(
    make: Any, path: str, tmp_path: Path
) -> None:
    agent = agent_of(TRPO, make(), tmp_path, max_kl_divergence=0.02)
    before = flat(agent.policy)
    update(agent)
    assert agent.policy_optimizer.path == path
    assert agent.last_result.accepted
    assert 0 < agent.last_result.kl <= 0.02
    assert not torch.equal(flat(agent.policy), before)


def test_the_configuration_is_followed(tmp_path: Path) -> None:
    agent = agent_of(
        TRPO, Gaussian(), tmp_path, max_kl_divergence=0.003, damping=0.2, max_backtrack_steps=5,
        conjugate_gradient_steps=7, accept_ratio=0.1, step_fraction=0.5,
    )  # fmt: skip
    update(agent)
    group = agent.policy_optimizer.param_groups[0]
    wanted = {"max_kl": 0.003, "damping": 0.2, "max_backtracks": 4, "cg_iters": 7, "lr": 0.5}
    assert {name: group[name] for name in wanted} == wanted
    assert group["accept_ratio"] == 0.1
    assert 0 < agent.last_result.kl <= 0.003 / 2


def test_preprocessors_and_schedulers_are_served(tmp_path: Path) -> None:
    agent = agent_of(
        TRPO, Gaussian(), tmp_path,
        observation_preprocessor=RunningStandardScaler,
        observation_preprocessor_kwargs={"size": OBSERVATIONS, "device": "cpu"},
        value_preprocessor=RunningStandardScaler,
        value_preprocessor_kwargs={"size": 1, "device": "cpu"},
        learning_rate_scheduler=torch.optim.lr_scheduler.ExponentialLR,
        learning_rate_scheduler_kwargs={"gamma": 0.5},
    )  # fmt: skip
    update(agent)
    assert agent.last_result.accepted
    assert float(agent._observation_preprocessor.current_count) > 1
    assert agent.value_optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.25)


def test_a_checkpoint_is_skrls(tmp_path: Path) -> None:
    agent = agent_of(TRPO, Gaussian(), tmp_path)
    update(agent)
    agent.save(str(tmp_path / "agent.pt"))
    for kind in (THEIRS, TRPO):
        other = agent_of(kind, Gaussian(), tmp_path)
        other.load(str(tmp_path / "agent.pt"))
        assert torch.equal(flat(other.policy), flat(agent.policy))
        assert torch.equal(flat(other.value), flat(agent.value))
        update(other)


def test_distributed_runs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(skrl.config.torch), "is_distributed", property(lambda _: True))
    monkeypatch.setattr(Model, "broadcast_parameters", lambda *_, **__: None)
    with pytest.raises(ValueError, match="serves one process"):
        agent_of(TRPO, Gaussian(), tmp_path)


def greedy_episode(policy: Any, seed: int) -> int:
    """How long CartPole stands."""
    env = gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=seed)
    for step in range(500):
        logits = policy.net(torch.as_tensor(obs).unsqueeze(0))
        obs, _, terminated, _, _ = env.step(int(logits.argmax()))
        if terminated:
            return step
    return 500


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_it_learns_in_skrls_trainer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    env = wrap_env(
        gymnasium.make_vec("CartPole-v1", num_envs=4, vectorization_mode="sync"), verbose=False
    )
    quiet = {"write_interval": 0, "checkpoint_interval": 0, "directory": str(tmp_path)}
    agent = TRPO(
        models={"policy": Chooser(4, 2), "value": Value(4)},
        memory=RandomMemory(memory_size=256, num_envs=4, device="cpu"),
        observation_space=env.observation_space, action_space=env.action_space, device="cpu",
        cfg={"experiment": quiet, "rollouts": 256, "max_kl_divergence": 0.02, "learning_rate": 1e-2,
             "learning_epochs": 10},
    )  # fmt: skip
    cfg = {
        "timesteps": 256 * 16,
        "disable_progressbar": True,
        "close_environment_at_exit": False,
    }
    trainer = SequentialTrainer(env=env, agents=agent, cfg=cfg)
    trainer.train()
    assert agent.policy_optimizer.path == "fused"
    lengths = [greedy_episode(agent.policy, seed) for seed in range(5)]
    assert sum(lengths) / 5 > 150  # a random policy: about 20


class IsaacLabFace:
    """A torch environment as Isaac Lab's are: observations by group, tensors all the way."""

    def __init__(self, env: TensorCartPole) -> None:
        self.env, self.num_envs, self.device, self.num_agents = env, env.num_envs, env.device, 1
        self.single_observation_space = spaces.Dict({"policy": env.single_observation_space})
        self.single_action_space, self.unwrapped = env.single_action_space, self

    def reset(self, **_: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"policy": self.env.reset()}, {}

    def step(self, actions: Tensor) -> tuple[Any, ...]:
        obs, reward, *ends, info = self.env.step(actions.flatten())
        return {"policy": obs}, reward.float(), *ends, info


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_it_learns_on_tensors_through_isaac_labs_wrapper(tmp_path: Path) -> None:
    torch.manual_seed(0)
    face = IsaacLabFace(TensorCartPole(64))
    env = wrap_env(face, wrapper="isaaclab-single-agent", verbose=False)
    quiet = {"write_interval": 0, "checkpoint_interval": 0, "directory": str(tmp_path)}
    agent = TRPO(
        models={"policy": Chooser(4, 2), "value": Value(4)},
        memory=RandomMemory(memory_size=64, num_envs=64, device="cpu"),
        observation_space=env.observation_space, action_space=env.action_space, device="cpu",
        cfg={"experiment": quiet, "rollouts": 64, "max_kl_divergence": 0.02, "learning_rate": 1e-2,
             "learning_epochs": 10},
    )  # fmt: skip
    cfg = {"timesteps": 64 * 16, "disable_progressbar": True, "close_environment_at_exit": False}
    SequentialTrainer(env=env, agents=agent, cfg=cfg).train()
    assert agent.policy_optimizer.path == "fused"
    lengths = [greedy_episode(agent.policy, seed) for seed in range(5)]
    assert sum(lengths) / 5 > 150  # a random policy: about 20
