"""Rollouts for trpo_fast.rsl_rl in rsl_rl's own configuration and storage; needs rsl_rl."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rsl_rl.modules import distribution as heads
from rsl_rl.runners import OnPolicyRunner
from tensor_environments import TensorPendulum, VecEnv
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributions import Distribution

from trpo_fast.rsl_rl import TRPO

_CHECKS = Distribution._validate_args
MARKS = [
    pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning"),
    # rsl_rl scripts its normaliser's exceptions for export.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]
ENVS, STEPS, ACTIONS = 16, 12, 3
GAUSSIAN = {"class_name": "GaussianDistribution", "init_std": 0.8}
HEADS = {
    "scalar": {**GAUSSIAN, "std_type": "scalar"},
    "log": {**GAUSSIAN, "std_type": "log"},
    "near a bound": {**GAUSSIAN, "std_type": "scalar", "std_range": (0.5, 9.0)},
    "fixed": {**GAUSSIAN, "std_type": "log", "learn_std": False},
    "of the state": {"class_name": "HeteroscedasticGaussianDistribution", "std_type": "log"},
    "beta": {"class_name": "BetaDistribution", "action_range": (-2.0, 3.0)},
}


def _known(cfg: dict[str, Any]) -> bool:
    """Whether this release of rsl_rl has the distribution, with these options."""
    kind = getattr(heads, cfg["class_name"], None)
    return kind is not None and not {*cfg} - {"class_name", *inspect.signature(kind).parameters}


HEADS = {name: cfg for name, cfg in HEADS.items() if _known(cfg)}
FUSED = ("scalar", "log", "fixed")
# What Isaac Lab and mjlab write for PPO.
PPO_ENTRIES: dict[str, Any] = {
    "num_learning_epochs": 3,
    "num_mini_batches": 4,
    "clip_param": 0.2,
    "gamma": 0.99,
    "lam": 0.95,
    "value_loss_coef": 1.0,
    "entropy_coef": 0.005,
    "learning_rate": 1.0e-3,
    "max_grad_norm": 1.0,
    "use_clipped_value_loss": True,
    "schedule": "adaptive",
    "desired_kl": 0.01,
    "rnd_cfg": None,
    "symmetry_cfg": None,
}


@pytest.fixture(autouse=True)
def argument_checks() -> Any:
    """rsl_rl switches the argument checks of all torch distributions off when it makes a model."""
    yield
    Distribution.set_default_validate_args(_CHECKS)


def observations() -> TensorDict:
    groups = {
        "policy": 2 + 3 * torch.randn(ENVS, 5),
        "privileged": torch.randn(ENVS, 4),
        "image": torch.randn(ENVS, 1, 6, 6),
    }
    return TensorDict(groups, batch_size=[ENVS])


def configuration(**algorithm: Any) -> dict[str, Any]:
    network = {"class_name": "MLPModel", "hidden_dims": [16, 8], "activation": "elu"}
    # Older releases take entries out.
    return copy.deepcopy(_entries(network, algorithm))


def _entries(network: dict[str, Any], algorithm: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_steps_per_env": STEPS,
        "save_interval": 100,
        "multi_gpu": None,
        "obs_groups": {"actor": ["policy"], "critic": ["policy", "privileged"]},
        "algorithm": {"class_name": "trpo_fast.rsl_rl:TRPO", **PPO_ENTRIES, **algorithm},
        "actor": {**network, "obs_normalization": True, "distribution_cfg": HEADS["scalar"]},
        "critic": {**network, "obs_normalization": True},
    }


def algorithm(cfg: dict[str, Any] | None = None, **options: Any) -> Any:
    torch.manual_seed(1)
    env = SimpleNamespace(num_envs=ENVS, num_actions=ACTIONS)
    cfg = cfg or configuration(**options)
    made = TRPO.construct_algorithm(observations(), env, copy.deepcopy(cfg), "cpu")
    made.train_mode()
    return made


def fill(alg: Any) -> None:
    """A rollout with random ends, as the runner collects it."""
    torch.manual_seed(3)
    obs = observations()
    with torch.inference_mode():
        for _ in range(STEPS):
            alg.act(obs)
            obs, rewards = observations(), torch.randn(ENVS)
            dones = torch.rand(ENVS) < 0.2
            alg.process_env_step(obs, rewards, dones, {"time_outs": dones & (rewards > 0)})
        alg.compute_returns(obs)


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def measured(alg: Any, before: Any) -> tuple[float, float]:
    """By rsl_rl's own functions, on the rollout: mean KL(before, now) and the surrogate's gain."""
    storage, now = alg.storage, copy.deepcopy(alg.get_policy())
    now.obs_normalizer = before.obs_normalizer  # it learns after the step
    rows, actions = storage.observations.flatten(0, 1), storage.actions.flatten(0, 1)
    with torch.no_grad():
        for model in (before, now):
            model(rows, stochastic_output=True)
        params = [model.output_distribution_params for model in (before, now)]
        kl = now.get_kl_divergence(*params)
        # Before 5.5 the normaliser learned within the rollout: the first ratios are not 1.
        taken = storage.actions_log_prob.flatten()
        old, new = ((m.get_output_log_prob(actions) - taken).exp() for m in (before, now))
    return float(kl.mean()), float(((new - old) * storage.advantages.flatten()).mean())


def runner(directory: Path | None = None, name: str | None = None, **options: Any) -> Any:
    torch.manual_seed(2)
    cfg = configuration(**options)
    cfg["obs_groups"] = {"actor": ["policy"], "critic": ["policy", "privileged"]}
    if name is not None:
        cfg["algorithm"]["class_name"] = name
    env = VecEnv(TensorPendulum(8), privileged=True)
    return OnPolicyRunner(env, cfg, None if directory is None else str(directory), "cpu")
