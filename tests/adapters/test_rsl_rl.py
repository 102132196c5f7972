"""trpo_fast.rsl_rl.TRPO: one update of a Gaussian perceptron by rsl_rl's own measures."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

pytest.importorskip("rsl_rl", reason="rsl-rl-lib is not installed: pip install '.[test]'")
from rsl_rl_cases import (
    ENVS,
    FUSED,
    HEADS,
    MARKS,
    algorithm,
    argument_checks,  # noqa: F401 (a fixture)
    configuration,
    fill,
    flat,
    measured,
    observations,
)

from trpo_fast import TRPOOptimizer
from trpo_fast.adapters import rsl_rl_critic

pytestmark = MARKS


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
    assert steps == [8, 8]  # two passes


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


@pytest.mark.parametrize("part", ["obs", "returns"])
def test_a_rollout_that_is_not_finite_changes_nothing_and_is_dropped(part: str) -> None:
    alg = algorithm()
    fill(alg)
    kept = alg.storage
    rows = kept.returns if part == "returns" else kept.observations["policy"]
    rows[2, 3, 0] = float("nan")
    before = flat(alg.get_policy()).clone(), flat(alg.critic).clone()
    with pytest.raises(ValueError, match=part):
        alg.update()
    assert torch.equal(flat(alg.get_policy()), before[0])
    assert torch.equal(flat(alg.critic), before[1])
    fill(alg)
    assert alg.update()["accepted"] == 1.0


def test_ppos_kl_and_schedule_mean_what_they_can() -> None:
    alg = algorithm(desired_kl=0.03)
    assert alg.policy_optimizer.param_groups[0]["max_kl"] == 0.06
    assert alg.optimizer.param_groups[0]["lr"] == alg.learning_rate == 0.01
    assert alg.critic_learning_epochs == 2
    alg = algorithm(max_kl=0.01, schedule="fixed", learning_rate=5e-4, optimizer="adamw")
    assert alg.policy_optimizer.param_groups[0]["max_kl"] == 0.01
    assert alg.optimizer.param_groups[0]["lr"] == alg.learning_rate == 5e-4
    assert type(alg.optimizer) is torch.optim.AdamW
    assert algorithm(critic_learning_rate=0.02).learning_rate == 0.02
    assert algorithm(num_learning_epochs=1).critic_learning_epochs == 1
    assert algorithm(num_learning_epochs=1, critic_learning_epochs=7).critic_learning_epochs == 7


def test_a_wide_critic_learns_as_much_more_slowly() -> None:
    cfg = configuration()
    cfg["critic"]["hidden_dims"] = [32, 256]
    assert algorithm(cfg).learning_rate == pytest.approx(0.005)
    cfg["algorithm"]["schedule"] = "fixed"
    assert algorithm(cfg).learning_rate == 1e-3


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"max_kl": -1.0}, ValueError, "max_kl"),
        ({"num_epoch": 3}, TypeError, "num_epoch"),
        ({"fisher_fraction": 2.0}, ValueError, "fisher_fraction"),
        ({"critic_learning_epochs": 1.5}, ValueError, "critic_learning_epochs must be an int"),
        ({"critic_learning_rate": -1.0}, ValueError, "learning rate"),
    ],
)
def test_wrong_entries_are_named(options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        algorithm(**options)


def test_several_processes_are_refused() -> None:
    cfg = configuration()
    cfg["multi_gpu"] = {"global_rank": 0, "local_rank": 0, "world_size": 2}
    with pytest.raises(ValueError, match="serves one process"):
        algorithm(cfg)
