"""trpo_fast.rsl_rl.TRPO with what only the generic path or rsl_rl's own parts serve."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from host_waits import HostWaits
from torch import Tensor

pytest.importorskip("rsl_rl", reason="rsl-rl-lib is not installed: pip install '.[test]'")
from rsl_rl.models import MLPModel
from rsl_rl.modules import distribution as heads
from rsl_rl_cases import (
    ACTIONS,
    ENVS,
    MARKS,
    STEPS,
    algorithm,
    argument_checks,  # noqa: F401 (a fixture)
    configuration,
    fill,
    flat,
    measured,
    observations,
)

from trpo_fast.adapters import rsl_rl_critic
from trpo_fast.rsl_rl import TRPO

pytestmark = MARKS


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


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_a_fit_in_torch_waits_for_its_device_at_its_end(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rsl_rl_critic, "native_fit", lambda *_: None)
    alg = algorithm(optimizer=optimizer)
    fill(alg)
    before, batch, seen = flat(alg.critic).clone(), alg._batch(), []
    for alg.num_mini_batches in (1, 8):
        with HostWaits() as waits:
            assert rsl_rl_critic.fit_values(alg, batch) > 0
        seen.append(waits.seen)
    assert not torch.equal(flat(alg.critic), before)
    if optimizer != "rmsprop":  # torch has no fused one
        assert seen[0] == seen[1] == ["__float__", "_local_scalar_dense"]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_a_minibatch_that_is_not_finite_is_not_stepped_on(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rsl_rl_critic, "native_fit", lambda *_: None)
    alg = algorithm(optimizer=optimizer)
    fill(alg)
    alg.num_mini_batches, alg.critic_learning_epochs = 1, 1
    batch, before = alg._batch(), flat(alg.critic).clone()
    returns, batch.returns = batch.returns, batch.returns * 1e30
    rsl_rl_critic.fit_values(alg, batch)
    assert torch.equal(flat(alg.critic), before)
    batch.returns = returns
    rsl_rl_critic.fit_values(alg, batch)
    assert flat(alg.critic).isfinite().all()
    assert not torch.equal(flat(alg.critic), before)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_frozen_parameter_of_the_critic_stays(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rsl_rl_critic, "native_fit", lambda *_: None)
    alg = algorithm(optimizer=optimizer)
    frozen, *rest = alg.critic.parameters()
    frozen.requires_grad_(requires_grad=False)
    fill(alg)
    before = [p.detach().clone() for p in (frozen, *rest)]
    alg.update()
    assert torch.equal(frozen, before[0])
    assert not all(map(torch.equal, rest, before[1:]))


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
    alg.critic_learning_epochs, alg.num_mini_batches = 1, 1
    assert alg.update()["value"] == pytest.approx(before, rel=1e-4)
    assert before > 2 * half
    cfg = configuration()
    cfg["actor"]["class_name"] = Doubled
    with pytest.raises(ValueError, match="Doubled has a forward of its own"):
        algorithm(cfg)
