"""trpo_fast.rsl_rl.TRPO: one update by rsl_rl's own measures, its runner and its checkpoints."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

_CHECKS = Distribution._validate_args
pytest.importorskip("rsl_rl", reason="rsl-rl-lib is not installed: pip install '.[test]'")
from rsl_rl.models import MLPModel  # noqa: E402
from rsl_rl.modules import distribution as heads  # noqa: E402
from rsl_rl.runners import OnPolicyRunner  # noqa: E402
from tensor_environments import TensorPendulum, VecEnv  # noqa: E402
from tensordict import TensorDict  # noqa: E402

from trpo_fast import TRPOOptimizer  # noqa: E402
from trpo_fast.adapters import rsl_rl_critic  # noqa: E402
from trpo_fast.rsl_rl import TRPO, UNUSED  # noqa: E402

pytestmark = [
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


@pytest.mark.parametrize("head", HEADS)
def test_a_step_keeps_its_promise_by_rsl_rls_own_measure(head: str) -> None:
    cfg = configuration()
    cfg["actor"]["distribution_cfg"] = dict(HEADS[head])
    alg = algorithm(cfg)
    fill(alg)
    before, critic = copy.deepcopy(alg.get_policy()), flat(alg.critic).clone()
    figures = alg.update()
    result = alg.last_result
    assert alg.policy_optimizer.path == ("fused" if head in FUSED else "generic")
    kl, gain = measured(alg, before)
    assert result.accepted
    # In float32, and the native code's exponentials are not torch's.
    assert kl == pytest.approx(result.kl, rel=1e-3)
    assert 0.005 < result.kl <= 0.02
    assert gain == pytest.approx(result.actual_improvement, rel=1e-3)
    assert (figures["kl"], figures["accepted"]) == (result.kl, 1.0)
    assert not torch.equal(flat(alg.critic), critic)
    assert alg.storage.step == 0


class Oracle(nn.Module):
    """The same actor in float64, with a logarithm for its deviation, as a plain module."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.mlp = copy.deepcopy(model.mlp).double()
        head = model.distribution
        log_std = head.log_std_param if head.std_type == "log" else head.std_param.log()
        self.log_std = nn.Parameter(log_std.detach().double())

    def forward(self, obs: Tensor) -> Distribution:
        return Independent(Normal(self.mlp(obs), self.log_std.exp()), 1)


@pytest.mark.parametrize("head", ["scalar", "log"])
def test_a_step_is_the_references_on_the_same_rollout(head: str) -> None:
    exact = {"max_kl": 0.01, "preconditioner": "none", "precision": "fp32", "cg_tol": 0.0}
    cfg = configuration(**exact)
    cfg["actor"]["distribution_cfg"] = dict(HEADS[head])
    alg = algorithm(cfg)
    fill(alg)
    alg.update()  # statistics of the normalisers
    fill(alg)
    model, storage = alg.get_policy(), alg.storage
    with torch.no_grad():
        rows = model.get_latent(storage.observations.flatten(0, 1))
    oracle = Oracle(model)
    optimizer = TRPOOptimizer(oracle, backend="reference", **exact)
    optimizer.step(
        obs=rows,
        actions=storage.actions.flatten(0, 1),
        advantages=storage.advantages.flatten(),
        old_log_prob=storage.actions_log_prob.flatten(),
    )
    alg.update()
    assert alg.last_result.accepted
    assert alg.last_result.backtracks == optimizer.last_result.backtracks
    # float32 beside float64 through ten iterations
    found, wanted = flat(Oracle(model)), flat(oracle)
    assert float((found - wanted).abs().max()) < 2e-4 * float(wanted.abs().max())


@pytest.mark.parametrize("head", [name for name in HEADS if name in ("scalar", "log", "beta")])
def test_a_refused_step_leaves_the_actor_as_it_was(head: str) -> None:
    cfg = configuration(step_size="damped", lr=3.0, max_backtracks=0)  # nine times max_kl
    cfg["actor"]["distribution_cfg"] = dict(HEADS[head])
    alg = algorithm(cfg)
    fill(alg)
    before = flat(alg.get_policy()).clone()
    assert alg.update()["accepted"] == 0.0
    assert torch.equal(flat(alg.get_policy()), before)


@pytest.mark.parametrize("groups", [["policy"], ["policy", "privileged"]])
def test_the_native_fit_of_the_critic_is_torchs(
    groups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for native in (True, False):
        cfg = configuration()
        cfg["obs_groups"]["critic"] = groups
        alg = algorithm(cfg)
        fill(alg)
        if not native:
            monkeypatch.setattr(rsl_rl_critic, "native_fit", lambda *_: None)
        before = flat(alg.critic).clone()
        loss = alg.update()["value"]
        found.append((loss, flat(alg.critic), alg.optimizer.state_dict()))
        assert float((flat(alg.critic) - before).abs().max()) > 1e-3
    (loss, values, state), (torch_loss, torch_values, torch_state) = found
    assert loss == pytest.approx(torch_loss, rel=1e-5)
    torch.testing.assert_close(values, torch_values, rtol=1e-4, atol=1e-5)
    steps = [s["state"][0]["step"].item() for s in (state, torch_state)]
    assert steps == [12, 12]


def test_time_outs_are_bootstrapped_and_falls_are_not() -> None:
    alg = algorithm()
    with torch.inference_mode():
        alg.act(observations())
        values = alg.transition.values.flatten().clone()
        dones = torch.arange(ENVS) < 4
        time_outs = torch.arange(ENVS) < 2
        alg.process_env_step(observations(), torch.ones(ENVS), dones, {"time_outs": time_outs})
    wanted = 1 + 0.99 * values * time_outs
    torch.testing.assert_close(alg.storage.rewards[0].flatten(), wanted)


def test_recurrent_actor_and_critic() -> None:
    cfg = configuration(max_kl=0.02)
    rnn = {"class_name": "RNNModel", "rnn_type": "gru", "rnn_hidden_dim": 6, "rnn_num_layers": 1}
    for name in ("actor", "critic"):
        cfg[name] |= {**rnn, "hidden_dims": [8], "obs_normalization": False}
    alg = algorithm(cfg)
    fill(alg)
    actor, critic = flat(alg.get_policy()).clone(), flat(alg.critic).clone()
    figures = alg.update()
    assert alg.last_result.accepted
    assert 0.005 < figures["kl"] <= 0.02
    # The ratio is 1 at first where old and new log-probabilities belong together.
    mean = float(alg.storage.advantages.mean())
    assert alg.last_result.loss_before == pytest.approx(-mean, abs=1e-5)
    assert not torch.equal(flat(alg.get_policy()), actor)
    assert not torch.equal(flat(alg.critic), critic)
    fill(alg)
    alg.update()


# rsl_rl's own optimizer, which is replaced, takes the encoder twice.
@pytest.mark.filterwarnings(
    "ignore:optimizer contains a parameter group with duplicate:UserWarning"
)
def test_an_encoder_that_the_critic_shares_is_the_trust_regions() -> None:
    cfg = configuration(share_cnn_encoders=True)
    cnn = {"output_channels": [2], "kernel_size": 3, "flatten": True}
    for name in ("actor", "critic"):
        cfg["obs_groups"][name] = ["policy", "image"]
        cfg[name] |= {"class_name": "CNNModel", "cnn_cfg": {"image": cnn}}
    alg = algorithm(cfg)
    encoder = alg.get_policy().cnns
    assert alg.critic.cnns is encoder
    own = {id(p) for p in alg.critic.parameters()} - {id(p) for p in encoder.parameters()}
    assert {id(p) for p in alg.optimizer.param_groups[0]["params"]} == own
    fill(alg)
    before, moved = copy.deepcopy(alg.get_policy()), flat(encoder).clone()
    alg.update()
    assert alg.last_result.accepted
    assert not torch.equal(flat(encoder), moved)
    # The critic's fit, which comes after, has left the encoder where the step has put it.
    assert measured(alg, before)[0] == pytest.approx(alg.last_result.kl, rel=1e-3)


def mirrored(env: Any, obs: Any, actions: Any) -> tuple[Any, Any]:
    both = [None, None]
    if obs is not None:
        image = obs.clone()
        image["policy"] = -image["policy"]
        both[0] = torch.cat([obs, image])
    if actions is not None:
        both[1] = torch.cat([actions, -actions])
    return both[0], both[1]


def test_mirror_images_of_the_rollout_are_stepped_on_too() -> None:
    symmetry = {
        "data_augmentation_func": mirrored,
        "use_data_augmentation": True,
        "use_mirror_loss": False,
    }
    alg = algorithm(symmetry_cfg=symmetry)
    fill(alg)
    seen: list[int] = []
    read = alg._actor.read
    alg._actor.read = lambda obs: (seen.append(len(obs["policy"])), read(obs))[1]
    alg.update()
    assert seen[0] == 2 * ENVS * STEPS
    assert alg.last_result.status.value != "non_finite"
    with pytest.raises(ValueError, match="a mirror loss is no part of a trust-region step"):
        algorithm(symmetry_cfg={**symmetry, "use_mirror_loss": True})


def test_intrinsic_rewards_learn_as_in_ppo() -> None:
    cfg = configuration()
    cfg["obs_groups"]["rnd_state"] = ["policy"]
    cfg["algorithm"]["rnd_cfg"] = {
        "num_outputs": 2,
        "predictor_hidden_dims": [8],
        "target_hidden_dims": [8],
        "weight": 0.5,
        "learning_rate": 1e-3,
    }
    torch.manual_seed(1)
    env = SimpleNamespace(
        num_envs=ENVS, num_actions=ACTIONS, unwrapped=SimpleNamespace(step_dt=0.02)
    )
    alg = TRPO.construct_algorithm(observations(), env, cfg, "cpu")
    alg.train_mode()
    fill(alg)
    before = flat(alg.rnd.predictor).clone()
    figures = alg.update()
    assert 0 < figures["rnd"] < float("inf")
    assert not torch.equal(flat(alg.rnd.predictor), before)


def test_a_rollout_that_is_not_finite_changes_nothing_and_is_dropped() -> None:
    alg = algorithm()
    fill(alg)
    alg.storage.observations["policy"][2, 3, 1] = float("nan")
    before = flat(alg.get_policy()).clone(), flat(alg.critic).clone()
    with pytest.raises(ValueError, match="obs"):
        alg.update()
    assert torch.equal(flat(alg.get_policy()), before[0])
    assert torch.equal(flat(alg.critic), before[1])
    fill(alg)
    assert alg.update()["accepted"] == 1.0


def test_ppos_kl_and_schedule_mean_what_they_can() -> None:
    alg = algorithm(desired_kl=0.03)
    assert alg.policy_optimizer.param_groups[0]["max_kl"] == 0.06
    assert alg.optimizer.param_groups[0]["lr"] == alg.learning_rate == 3e-3
    alg = algorithm(max_kl=0.01, schedule="fixed", learning_rate=5e-4, optimizer="adamw")
    assert alg.policy_optimizer.param_groups[0]["max_kl"] == 0.01
    assert alg.optimizer.param_groups[0]["lr"] == alg.learning_rate == 5e-4
    assert type(alg.optimizer) is torch.optim.AdamW
    assert algorithm(critic_learning_rate=0.02).learning_rate == 0.02


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"max_kl": -1.0}, ValueError, "max_kl"),
        ({"num_epoch": 3}, TypeError, "num_epoch"),
        ({"fisher_fraction": 2.0}, ValueError, "fisher_fraction"),
    ],
)
def test_wrong_entries_are_named(options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        algorithm(**options)


class Own(heads.GaussianDistribution):  # type: ignore[misc]
    pass


def test_a_distribution_of_the_users_own_is_refused() -> None:
    cfg = configuration()
    cfg["actor"]["distribution_cfg"] = {"class_name": Own}
    with pytest.raises(ValueError, match=r"distribution is Own; .* GaussianDistribution"):
        algorithm(cfg)


class Doubled(MLPModel):  # type: ignore[misc]
    def forward(self, *given: Any, **options: Any) -> Tensor:
        return 2 * super().forward(*given, **options)


def test_a_forward_of_the_users_own_is_refused_in_the_actor_and_kept_in_the_critic() -> None:
    cfg = configuration()
    cfg["critic"]["class_name"] = Doubled
    alg = algorithm(cfg)
    fill(alg)
    rows, returns = alg.storage.observations.flatten(0, 1), alg.storage.returns.flatten(0, 1)
    with torch.no_grad():
        alg.critic.mlp[-1].bias += 5.0  # far off: the loss tells the one forward from the other
        before = float((alg.critic(rows) - returns).square().mean())
        half = float((alg.critic(rows) / 2 - returns).square().mean())
    alg.num_learning_epochs, alg.num_mini_batches = 1, 1
    assert alg.update()["value"] == pytest.approx(before, rel=1e-4)
    assert before > 2 * half
    cfg = configuration()
    cfg["actor"]["class_name"] = Doubled
    with pytest.raises(ValueError, match="Doubled has a forward of its own"):
        algorithm(cfg)


def test_several_processes_are_refused() -> None:
    cfg = configuration()
    cfg["multi_gpu"] = {"global_rank": 0, "local_rank": 0, "world_size": 2}
    with pytest.raises(ValueError, match="serves one process"):
        algorithm(cfg)


def runner(directory: Path | None = None, name: str | None = None, **options: Any) -> Any:
    torch.manual_seed(2)
    cfg = configuration(**options)
    cfg["obs_groups"] = {"actor": ["policy"], "critic": ["policy", "privileged"]}
    if name is not None:
        cfg["algorithm"]["class_name"] = name
    env = VecEnv(TensorPendulum(8), privileged=True)
    return OnPolicyRunner(env, cfg, None if directory is None else str(directory), "cpu")


def test_ppos_configuration_trains_with_one_line_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = runner(tmp_path)
    said = next(line for line in capsys.readouterr().out.splitlines() if "no use for" in line)
    assert all(name in said for name in UNUSED if name in PPO_ENTRIES)
    made.learn(2, init_at_random_ep_len=True)
    policy = made.alg.get_policy()
    torch.testing.assert_close(policy.output_std[0], policy.distribution.std_param.detach())
    assert made.alg.policy_optimizer.path == "fused"
    assert made.alg.last_result.accepted
    said = capsys.readouterr().out
    assert "kl" in said
    assert "Mean value loss" in said
    assert (tmp_path / "model_1.pt").is_file()


def test_a_checkpoint_continues_as_if_never_interrupted(tmp_path: Path) -> None:
    made, other = runner(tmp_path), runner()
    made.learn(2)
    path = str(tmp_path / "model_1.pt")
    other.load(path)
    assert other.current_learning_iteration == 1
    for alg in (made.alg, other.alg):
        torch.manual_seed(5)
        with torch.inference_mode():
            env = VecEnv(TensorPendulum(8, seed=4), privileged=True)
            obs = env.get_observations()
            for _ in range(STEPS):
                obs, *rest = env.step(alg.act(obs))
                alg.process_env_step(obs, *rest)
            alg.compute_returns(obs)
        alg.update()
    assert torch.equal(flat(made.alg.get_policy()), flat(other.alg.get_policy()))
    assert torch.equal(flat(made.alg.critic), flat(other.alg.critic))


def test_ppos_checkpoint_gives_its_networks_alone(tmp_path: Path) -> None:
    theirs, ours = runner(tmp_path, name="PPO"), runner()
    theirs.learn(1)
    before = flat(ours.alg.get_policy()).clone()
    path = str(tmp_path / "model_0.pt")
    with pytest.raises(ValueError, match=r"another algorithm .* load_cfg"):
        ours.load(path)
    assert torch.equal(flat(ours.alg.get_policy()), before)
    ours.load(path, load_cfg={"actor": True, "critic": True, "iteration": True})
    assert torch.equal(flat(ours.alg.get_policy()), flat(theirs.alg.get_policy()))
    ours.learn(1)
    assert ours.alg.last_result.accepted
