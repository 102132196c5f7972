"""TRPOOptimizer: both forms of step, the torch contract, and models it has never seen."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Beta,
    Categorical,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)
from torch.distributions.transforms import TanhTransform
from update_cases import (
    BY_NAME,
    CASES,
    OBS_WIDTH,
    Case,
    Wrapped,
    bits,
    make_data,
    make_policy,
    same_bits,
)

from trpo_fast import Status, TRPOOptimizer, TrustRegionResult
from trpo_fast.backends import ANALYTIC

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
GAUSSIAN = BY_NAME["gaussian"]


def result_of(opt: TRPOOptimizer) -> TrustRegionResult:
    assert opt.last_result is not None
    return opt.last_result


def closure_of(module: nn.Module, data: dict[str, Any]) -> Callable[[], tuple[Any, ...]]:
    def closure() -> tuple[Any, ...]:
        extra = {} if "action_mask" not in data else {"action_mask": data["action_mask"]}
        distribution = module(data["obs"], **extra)
        ratio = (distribution.log_prob(data["actions"]) - data["old_log_prob"]).exp()
        values = ratio * data["advantages"]
        if "weights" not in data:
            return -values.mean(), distribution
        w = data["weights"]
        return -(w * values).sum() / w.sum(), distribution, w

    return closure


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


class TestForms:
    @every_case
    @pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
    def test_every_form_and_backend_takes_the_same_step(self, case: Case, weighted: bool) -> None:
        found, figures = [], []
        for form in ("closure", "module", "wrapped", *ANALYTIC):
            policy = make_policy(case)
            data = make_data(policy, case, weighted=weighted)
            if form == "closure":
                opt = TRPOOptimizer(policy.parameters())
                loss = opt.step(closure_of(policy, data))
            else:
                module = Wrapped(policy) if form == "wrapped" else policy
                backend = form if form in ANALYTIC else "auto"
                opt = TRPOOptimizer(module, backend=backend)
                loss = opt.step(**data)
            result = result_of(opt)
            assert result.accepted
            assert opt.path == ("generic" if form in ("closure", "wrapped") else "fused")
            figures.append([float(loss), result.kl, result.loss_after, result.step_size])
            found.append(flat(policy))
        for theta, numbers in zip(found, figures, strict=True):
            assert torch.allclose(theta, found[0], rtol=1e-7, atol=1e-9)
            assert numbers == pytest.approx(figures[0], rel=1e-6)

    def test_the_two_line_use(self) -> None:
        class Mine(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv1d(1, 4, 3)
                self.norm = nn.LayerNorm(12)
                self.out = nn.Linear(12, 3)

            def forward(self, obs: Tensor) -> Distribution:
                hidden = torch.relu(self.conv(obs.unsqueeze(1))).flatten(1)
                return Categorical(logits=self.out(self.norm(hidden)))

        torch.manual_seed(0)
        policy = Mine()
        obs = torch.randn(64, OBS_WIDTH)
        with torch.no_grad():
            distribution = policy(obs)
            actions = distribution.sample()
            logp = distribution.log_prob(actions)
        adv = (actions == 1).float() - 0.3

        opt = TRPOOptimizer(policy)
        loss = opt.step(obs=obs, actions=actions, advantages=adv, old_log_prob=logp)

        assert float(loss) == pytest.approx(-float(adv.mean()), rel=1e-5)
        assert opt.path == "generic"
        assert "Mine" in opt.path_reason
        assert result_of(opt).accepted
        with torch.no_grad():
            now = policy(obs)
        kl = torch.distributions.kl_divergence(distribution, now).mean()
        assert 0.001 < float(kl) <= 0.01 * (1 + 1e-4)
        assert float(now.probs[:, 1].mean()) > float(distribution.probs[:, 1].mean())

    def test_the_closure_form_on_a_module_we_have_never_seen(self) -> None:
        torch.manual_seed(0)
        gru, head = nn.GRU(3, 8, batch_first=True), nn.Linear(8, 2)
        parameters = [*gru.parameters(), *head.parameters()]
        opt = TRPOOptimizer(parameters)
        obs, adv = torch.randn(6, 11, 3), torch.randn(6, 11)
        with torch.no_grad():
            old = Categorical(logits=head(gru(obs)[0]))
            actions = old.sample()

        def closure() -> tuple[Tensor, Distribution]:
            distribution = Categorical(logits=head(gru(obs)[0]))
            ratio = (distribution.log_prob(actions) - old.log_prob(actions)).exp()
            return -(ratio * adv).mean(), distribution

        opt.step(closure)
        assert result_of(opt).accepted
        with torch.no_grad():
            now = Categorical(logits=head(gru(obs)[0]))
        kl = torch.distributions.kl_divergence(old, now).mean()
        assert float(kl) == pytest.approx(result_of(opt).kl, rel=1e-3)

    def test_calls_of_the_closure(self) -> None:
        policy = make_policy(GAUSSIAN)
        closure, modes = closure_of(policy, make_data(policy, GAUSSIAN)), []

        def counted() -> tuple[Any, ...]:
            modes.append(torch.is_grad_enabled())
            return closure()

        opt = TRPOOptimizer(policy.parameters(), lr=5.0)
        with torch.no_grad():
            opt.step(counted)
        assert result_of(opt).backtracks > 0
        assert modes == [True] + [False] * (result_of(opt).backtracks + 1)

    def test_returns_the_loss_before_as_a_detached_scalar(self) -> None:
        policy = make_policy(GAUSSIAN, dtype=torch.float32)
        data = make_data(policy, GAUSSIAN)
        for opt, arguments in (
            (TRPOOptimizer(policy), data),
            (TRPOOptimizer(policy.parameters()), {"closure": closure_of(policy, data)}),
        ):
            expected = closure_of(policy, data)()[0]
            loss = opt.step(**arguments)
            assert loss.shape == ()
            assert not loss.requires_grad
            assert loss.dtype is torch.float32
            assert torch.allclose(loss, expected.detach())

    def test_old_log_prob_none_is_the_policys_own(self) -> None:
        for wrap in (False, True):
            policy = make_policy(GAUSSIAN)
            data = make_data(policy, GAUSSIAN) | {"old_log_prob": None}
            loss = TRPOOptimizer(Wrapped(policy) if wrap else policy).step(**data)
            assert float(loss) == pytest.approx(-float(data["advantages"].mean()), rel=1e-12)

    def test_grad_is_neither_read_nor_written(self) -> None:
        policy = make_policy(GAUSSIAN)
        data = make_data(policy, GAUSSIAN)
        for module in (policy, Wrapped(policy)):
            for p in policy.parameters():
                p.grad = torch.full_like(p, torch.nan)
            opt = TRPOOptimizer(module)
            opt.step(**data)
            assert result_of(opt).accepted
            assert all(torch.isnan(p.grad).all() for p in policy.parameters())
            opt.zero_grad()
            assert all(p.grad is None for p in policy.parameters())

    def test_inputs_that_carry_a_graph(self) -> None:
        policy = make_policy(GAUSSIAN)
        data = make_data(policy, GAUSSIAN)
        attached = {
            name: value.clone().requires_grad_(value.is_floating_point())
            for name, value in data.items()
        }
        for module in (policy, Wrapped(policy)):
            TRPOOptimizer(module).step(**attached)
        assert all(value.grad is None for value in attached.values())

    @pytest.mark.parametrize(
        ("returned", "text"),
        [
            (lambda loss, d: loss, "no trust region"),
            (lambda loss, d: (loss,), "no trust region"),
            (lambda loss, d: (d, loss), "no trust region"),
            (lambda loss, d: (loss, d.base_dist.loc), "no trust region"),
            (lambda loss, d: None, "no trust region"),
            (lambda loss, d: (loss.detach(), d), "no graph"),
            (lambda loss, d: (loss.expand(3), d), "expected a scalar"),
            (lambda loss, d: (loss, d, torch.ones(3)), "weights have shape"),
            (lambda loss, d: (loss, d, torch.zeros(40)), "not all 0"),
            (lambda loss, d: (loss, d, -torch.ones(40)), ">= 0"),
            (lambda loss, d: (loss, Independent(Normal(0.0, d.stddev.detach()), 1)), "depend"),
        ],
    )
    def test_closures_that_return_something_else(self, returned: Any, text: str) -> None:
        policy = make_policy(GAUSSIAN)
        closure = closure_of(policy, make_data(policy, GAUSSIAN))
        before = bits(policy)
        opt = TRPOOptimizer(policy.parameters())
        with pytest.raises((TypeError, ValueError), match=text):
            opt.step(lambda: returned(*closure()))
        assert same_bits(policy, before)
        opt.step(closure)
        assert result_of(opt).accepted

    def test_forms_cannot_be_mixed(self) -> None:
        policy = make_policy(GAUSSIAN)
        data = make_data(policy, GAUSSIAN)
        with pytest.raises(TypeError, match="not both"):
            TRPOOptimizer(policy).step(closure_of(policy, data), **data)
        with pytest.raises(TypeError, match="step takes a closure, or obs="):
            TRPOOptimizer(policy).step()
        with pytest.raises(TypeError, match=r"construct TRPOOptimizer\(policy\)"):
            TRPOOptimizer(policy.parameters()).step(**data)

    def test_forward_must_give_a_joint_distribution(self) -> None:
        class Loose(nn.Module):
            def __init__(self, what: str) -> None:
                super().__init__()
                self.linear, self.what = nn.Linear(OBS_WIDTH, 3), what

            def forward(self, obs: Tensor) -> Any:
                mean = self.linear(obs)
                return mean if self.what == "tensor" else Normal(mean, 1.0)

        data = make_data(make_policy(GAUSSIAN, dtype=torch.float32), GAUSSIAN)
        with pytest.raises(ValueError, match=r"batch_shape \(40, 3\).*Independent"):
            TRPOOptimizer(Loose("normal")).step(**data)
        with pytest.raises(TypeError, match="forward returned a Tensor"):
            TRPOOptimizer(Loose("tensor")).step(**data)

    def test_a_distribution_without_a_kl(self) -> None:
        class Mine(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(OBS_WIDTH, 1)

            def forward(self, obs: Tensor) -> Distribution:
                return _Nameless(self.linear(obs).squeeze(1))

        with pytest.raises(NotImplementedError, match=r"for _Nameless; .*register_kl"):
            TRPOOptimizer(Mine()).step(
                obs=torch.randn(8, OBS_WIDTH), actions=torch.randn(8), advantages=torch.randn(8)
            )


class _Nameless(Distribution):
    """A distribution whose KL nobody has registered."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, mean: Tensor) -> None:
        self.mean_ = mean
        super().__init__(mean.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return -((value - self.mean_) ** 2)


class Trunk(nn.Module):
    """A shared trunk with a policy and a value head, and a parameter named to mislead."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(OBS_WIDTH, 8)
        self.value_like_name_in_the_policy = nn.Parameter(0.5 * torch.ones(8))
        self.mean = nn.Linear(8, 2)
        self.critic = nn.Linear(8, 1)
        self.log_std = nn.Parameter(torch.zeros(2))

    def hidden(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.trunk(obs)) * self.value_like_name_in_the_policy

    def forward(self, obs: Tensor) -> Distribution:
        return Independent(Normal(self.mean(self.hidden(obs)), self.log_std.exp()), 1)

    def value(self, obs: Tensor) -> Tensor:
        return self.critic(self.hidden(obs)).squeeze(1)


def trunk_data(module: Trunk) -> dict[str, Tensor]:
    torch.manual_seed(1)
    obs = torch.randn(50, OBS_WIDTH)
    with torch.no_grad():
        distribution = module(obs)
        actions = distribution.sample()
    return {
        "obs": obs,
        "actions": actions,
        "advantages": torch.randn(50),
        "old_log_prob": distribution.log_prob(actions),
    }


class TestDependence:
    def test_pitfall_11_the_value_head_is_left_alone_by_dependence_not_by_name(self) -> None:
        module = Trunk()
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        opt = TRPOOptimizer(module)
        opt.step(**trunk_data(module))
        assert result_of(opt).accepted
        changed = {name for name, p in module.named_parameters() if not p.equal(before[name])}
        assert changed == {name for name in before if not name.startswith("critic")}

    def test_pitfall_12_value_gradients_of_a_shared_trunk_stay_in_the_region(self) -> None:
        module = Trunk()
        data, returns = trunk_data(module), torch.linspace(-50, 50, 50)
        policy_closure = closure_of(module, data)

        def closure() -> tuple[Tensor, Distribution]:
            loss, distribution = policy_closure()
            return loss + (module.value(data["obs"]) - returns).square().mean(), distribution

        with torch.no_grad():
            old = module(data["obs"])
            loss_before = closure()[0]
        trunk, critic = module.trunk.weight.detach().clone(), module.critic.weight.detach().clone()
        opt = TRPOOptimizer(module.parameters())
        opt.step(closure)
        assert result_of(opt).accepted
        with torch.no_grad():
            kl = torch.distributions.kl_divergence(old, module(data["obs"])).mean()
            assert float(kl) <= 0.01 * (1 + 1e-4)
            # The whole loss fell, value term included, and its gradient moved trunk and critic.
            assert float(closure()[0]) < float(loss_before)
        assert not torch.equal(module.trunk.weight, trunk)
        assert not torch.equal(module.critic.weight, critic)
        # With the module, only what the distribution depends on is stepped.
        critic = module.critic.weight.detach().clone()
        opt = TRPOOptimizer(module)
        opt.step(closure)
        assert result_of(opt).accepted
        assert torch.equal(module.critic.weight, critic)

    def test_pitfall_13_log_std_is_optimised_and_not_clamped(self) -> None:
        for wrap in (False, True):
            policy = make_policy(GAUSSIAN)
            with torch.no_grad():
                policy.log_std.copy_(torch.tensor([-5.0, 0.0, 5.0]))
            data = make_data(policy, GAUSSIAN)
            before = policy.log_std.detach().clone()
            opt = TRPOOptimizer(Wrapped(policy) if wrap else policy, cg_iters=100)
            opt.step(**data)
            assert result_of(opt).accepted
            assert not (policy.log_std == before).any()
            assert torch.allclose(policy.log_std, before, atol=1.0)

    def test_pitfall_18_unused_parameters_keep_their_place(self) -> None:
        class Gaps(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.unused_first = nn.Parameter(torch.full((3,), -0.0, dtype=torch.float64))
                self.inner = make_policy(GAUSSIAN)
                self.unused_last = nn.Linear(2, 2).double()

            def forward(self, obs: Tensor) -> Distribution:
                return self.inner(obs)

        module, plain = Gaps(), make_policy(GAUSSIAN)
        data = make_data(plain, GAUSSIAN)
        unused = bits(module.unused_last)
        opt = TRPOOptimizer(module)
        opt.step(**data)
        TRPOOptimizer(plain).step(**data)
        assert result_of(opt).accepted
        assert torch.allclose(flat(module.inner), flat(plain), rtol=1e-9, atol=1e-12)
        assert same_bits(module.unused_last, unused)
        assert torch.signbit(module.unused_first).all()

    def test_an_extra_parameter_on_the_recognised_policy(self) -> None:
        policy, plain = make_policy(GAUSSIAN), make_policy(GAUSSIAN)
        policy.extra = nn.Parameter(torch.tensor([-0.0, 7.0], dtype=torch.float64))
        data = make_data(policy, GAUSSIAN)
        opt = TRPOOptimizer(policy)
        assert opt.path == "fused"
        opt.step(**data)
        TRPOOptimizer(plain).step(**data)
        assert torch.allclose(flat(policy.body), flat(plain.body), rtol=1e-9, atol=1e-12)
        assert torch.signbit(policy.extra[0])
        assert float(policy.extra.detach()[1]) == 7.0

    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize("wrap", [False, True], ids=["fused", "generic"])
    def test_a_frozen_layer(self, when: str, wrap: bool) -> None:
        policy = make_policy(GAUSSIAN)
        data = make_data(policy, GAUSSIAN)
        if when == "before":
            policy.body[2].requires_grad_(False)
        opt = TRPOOptimizer(Wrapped(policy) if wrap else policy)
        if when == "after":
            policy.body[2].requires_grad_(False)
        frozen, rest = bits(policy.body[2]), policy.body[0].weight.detach().clone()
        opt.step(**data)
        assert result_of(opt).accepted
        assert same_bits(policy.body[2], frozen)
        assert not torch.equal(policy.body[0].weight, rest)

    def test_frozen_layers_step_alike_on_every_path(self) -> None:
        found = []
        for form in ("generic", *ANALYTIC):
            policy = make_policy(GAUSSIAN)
            data = make_data(policy, GAUSSIAN)
            policy.body[2].weight.requires_grad_(False)
            policy.log_std.requires_grad_(False)
            if form == "generic":
                opt = TRPOOptimizer(Wrapped(policy))
            else:
                opt = TRPOOptimizer(policy, backend=form)
            opt.step(**data)
            found.append(flat(policy))
        for theta in found:
            assert torch.allclose(theta, found[0], rtol=1e-8, atol=1e-10)

    def test_everything_frozen(self) -> None:
        policy = make_policy(GAUSSIAN).requires_grad_(False)
        with pytest.raises(ValueError, match="no parameter requires a gradient"):
            TRPOOptimizer(policy)

    def test_tied_weights_are_counted_once(self) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
                self.second.weight = self.first.weight
                self.log_std = nn.Parameter(torch.zeros(5))

            def forward(self, obs: Tensor) -> Distribution:
                mean = self.second(torch.tanh(self.first(obs)))
                return Independent(Normal(mean, self.log_std.exp()), 1)

        torch.manual_seed(0)
        module = Tied().double()
        obs = torch.randn(30, 5, dtype=torch.float64)
        with torch.no_grad():
            old = module(obs)
            actions = old.sample()
        opt = TRPOOptimizer(module)
        opt.step(obs=obs, actions=actions, advantages=torch.randn(30))
        assert result_of(opt).accepted
        assert module.first.weight is module.second.weight
        kl = torch.distributions.kl_divergence(old, module(obs)).mean()
        assert result_of(opt).kl == pytest.approx(float(kl.detach()), rel=1e-9)
        # Half the quadratic model's KL: 0.01 would be far off were the tie counted twice.
        assert 0.003 < float(kl.detach()) <= 0.01

    def test_a_tied_mlp_policy_takes_the_generic_path(self) -> None:
        policy = make_policy(GAUSSIAN, hidden=(5, 5))
        policy.body[2].weight = policy.body[0].weight
        opt = TRPOOptimizer(policy)
        assert opt.path == "generic"
        assert "share" in opt.path_reason
        opt.step(**make_data(policy, GAUSSIAN))
        assert result_of(opt).accepted


class TestModes:
    def test_pitfall_10_dropout_and_batch_norm_are_in_eval_mode_and_restored(self) -> None:
        class Noisy(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = nn.BatchNorm1d(OBS_WIDTH)
                self.linear = nn.Linear(OBS_WIDTH, 4)
                self.drop = nn.Dropout(0.5)
                self.frozen_norm = nn.BatchNorm1d(4)

            def forward(self, obs: Tensor) -> Distribution:
                return Categorical(logits=self.drop(self.frozen_norm(self.linear(self.norm(obs)))))

        torch.manual_seed(0)
        module = Noisy()
        module(torch.randn(64, OBS_WIDTH))
        module.frozen_norm.eval()
        modes = [child.training for child in module.modules()]
        buffers = [b.clone() for b in module.buffers()]
        obs, adv = torch.randn(64, OBS_WIDTH), torch.randn(64)
        actions = torch.randint(0, 4, (64,))
        for closure_form in (False, True):
            opt = TRPOOptimizer(module)
            if closure_form:
                loss = opt.step(
                    closure_of(
                        module,
                        {
                            "obs": obs,
                            "actions": actions,
                            "advantages": adv,
                            "old_log_prob": copy.deepcopy(module)
                            .eval()(obs)
                            .log_prob(actions)
                            .detach(),
                        },
                    )
                )
            else:
                loss = opt.step(obs=obs, actions=actions, advantages=adv)
            # The ratio is 1 at the start.
            assert float(loss) == pytest.approx(-float(adv.mean()), abs=1e-6)
            assert result_of(opt).accepted
            assert [child.training for child in module.modules()] == modes
            assert all(a.equal(b) for a, b in zip(module.buffers(), buffers, strict=True))

    def test_modes_are_restored_after_an_error(self) -> None:
        module = Wrapped(make_policy(GAUSSIAN)).train()
        data = make_data(module.inner, GAUSSIAN)
        with pytest.raises(ValueError, match="actions have shape"):
            TRPOOptimizer(module).step(**dict(data, actions=data["actions"][:, :2]))
        assert all(child.training for child in module.modules())

    @pytest.mark.parametrize("wrap", [False, True], ids=["fused", "generic"])
    @pytest.mark.parametrize(
        "context",
        [
            torch.no_grad,
            torch.inference_mode,
            torch.enable_grad,
            lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        ],
        ids=["no_grad", "inference_mode", "enable_grad", "autocast"],
    )
    def test_contexts_around_the_step(self, wrap: bool, context: Any) -> None:
        found = []
        for inside in (False, True):
            policy = make_policy(GAUSSIAN, dtype=torch.float32)
            data = make_data(policy, GAUSSIAN)
            opt = TRPOOptimizer(Wrapped(policy) if wrap else policy)
            if inside:
                with context():
                    data = {name: value.clone() for name, value in data.items()}
                    loss = opt.step(**data)
                assert result_of(opt).accepted
                opt.step(**data)  # inference tensors are served outside too
            else:
                loss = opt.step(**data)
                opt.step(**data)
            found.append((flat(policy), loss))
            assert all(p.requires_grad and not p.is_inference() for p in policy.parameters())
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])

    @pytest.mark.parametrize(
        "context",
        [
            torch.no_grad,
            torch.inference_mode,
            lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        ],
        ids=["no_grad", "inference_mode", "autocast"],
    )
    def test_contexts_around_the_closure_form(self, context: Any) -> None:
        found = []
        for inside in (False, True):
            policy = make_policy(GAUSSIAN, dtype=torch.float32)
            closure = closure_of(policy, make_data(policy, GAUSSIAN))
            opt = TRPOOptimizer(policy.parameters())
            if inside:
                with context():
                    opt.step(closure)
            else:
                opt.step(closure)
            found.append(flat(policy))
        assert torch.equal(*found)

    def test_a_grad_scaler_is_refused_clearly(self) -> None:
        policy = make_policy(GAUSSIAN, dtype=torch.float32)
        data, before = make_data(policy, GAUSSIAN), bits(policy)
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(torch.ones(()))
        with pytest.raises(AssertionError, match="No inf checks"):
            scaler.step(TRPOOptimizer(policy), **data)
        assert same_bits(policy, before)


class TestGenericModels:
    def step_and_check(self, module: nn.Module, obs: Any, actions: Tensor, **options: Any) -> None:
        opt = TRPOOptimizer(module, **options)
        with torch.no_grad():
            old = copy.deepcopy(module).eval()(obs)
        generator = torch.Generator().manual_seed(0)
        advantages = torch.randn(old.batch_shape, generator=generator)
        opt.step(obs=obs, actions=actions, advantages=advantages)
        result = result_of(opt)
        assert result.accepted, result
        with torch.no_grad():
            now = copy.deepcopy(module).eval()(obs)
        kl = torch.distributions.kl_divergence(old, now).mean().detach()
        assert float(kl) == pytest.approx(result.kl, rel=1e-2, abs=1e-6)
        assert float(kl) <= 0.01 * (1 + 1e-3)
        assert float(kl) > 1e-4

    def test_dict_observations_cnn_and_gru(self) -> None:
        class Many(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(1, 3, 3)
                self.gru = nn.GRU(2, 4, batch_first=True)
                self.embed = nn.Embedding(5, 3)
                self.out = nn.Linear(3 * 4 + 4 + 3, 3)

            def forward(self, obs: dict[str, Any]) -> Distribution:
                image = torch.relu(self.conv(obs["image"])).flatten(1)
                sequence, lengths = obs["pair"]
                hidden = self.gru(sequence)[0][:, -1]
                features = torch.cat([image, hidden, self.embed(lengths)], dim=1)
                return Categorical(logits=self.out(features))

        torch.manual_seed(0)
        obs = {
            "image": torch.randn(20, 1, 4, 4),
            "pair": (torch.randn(20, 6, 2), torch.randint(0, 5, (20,))),
        }
        self.step_and_check(Many(), obs, torch.randint(0, 3, (20,)))
        self.step_and_check(Many(), obs, torch.randint(0, 3, (20,)), fisher_fraction=0.5)

    def test_a_transformer(self) -> None:
        class Attention(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
                self.out = nn.Linear(8, 3)

            def forward(self, obs: Tensor) -> Distribution:
                return Categorical(logits=self.out(self.encoder(obs).mean(1)))

        torch.manual_seed(0)
        self.step_and_check(Attention(), torch.randn(16, 5, 8), torch.randint(0, 3, (16,)))

    @pytest.mark.parametrize("kind", ["normal", "tanh", "beta", "full"])
    def test_other_distributions(self, kind: str) -> None:
        class Other(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(OBS_WIDTH, 4)

            def forward(self, obs: Tensor) -> Distribution:
                mean, raw = self.linear(obs).chunk(2, dim=1)
                scale = nn.functional.softplus(raw) + 0.1
                if kind == "beta":
                    return Independent(Beta(1 + scale, 1 + mean.exp()), 1)
                if kind == "full":
                    return MultivariateNormal(mean, scale_tril=torch.diag_embed(scale))
                normal = Independent(Normal(mean, scale), 1)
                if kind == "tanh":
                    return TransformedDistribution(normal, [TanhTransform(cache_size=1)])
                return normal

        torch.manual_seed(0)
        module, obs = Other(), torch.randn(30, OBS_WIDTH)
        self.step_and_check(module, obs, module(obs).sample())

    def test_a_distribution_that_holds_the_parameters_themselves(self) -> None:
        class Aliased(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(OBS_WIDTH, 2)
                self.std = nn.Parameter(torch.ones(2))

            def forward(self, obs: Tensor) -> Distribution:
                return Independent(Normal(self.linear(obs), self.std), 1)

        class Bare(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.logits = nn.Parameter(torch.zeros(12, 3))

            def forward(self, obs: Tensor) -> Distribution:
                return Categorical(probs=self.logits.softmax(1))

        torch.manual_seed(0)
        obs = torch.randn(12, OBS_WIDTH)
        self.step_and_check(Aliased(), obs, torch.randn(12, 2))
        self.step_and_check(Bare(), obs, torch.randint(0, 3, (12,)))

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize("how", ["torch.compile", "module.compile", "inner"])
    def test_a_compiled_policy_equals_the_reference(self, how: str) -> None:
        policy, plain = make_policy(GAUSSIAN), make_policy(GAUSSIAN)
        data = make_data(policy, GAUSSIAN)
        if how == "torch.compile":
            module = torch.compile(policy, backend="aot_eager")
        elif how == "module.compile":
            module = Wrapped(policy)
            module.compile(backend="aot_eager")
        else:
            module = Wrapped(torch.compile(policy, backend="aot_eager"))
        module(data["obs"])
        opt = TRPOOptimizer(module)
        opt.step(**data)
        assert opt.path == "generic"
        TRPOOptimizer(plain, backend="reference").step(**data)
        assert torch.allclose(flat(policy), flat(plain), rtol=1e-8, atol=1e-10)
        assert torch.compiler.is_compiling() is False

    @pytest.mark.parametrize("what", ["hook", "pre_hook", "parametrization", "forward"])
    def test_altered_policies_take_the_generic_path_and_equal_the_reference(
        self, what: str
    ) -> None:
        policy, plain = make_policy(GAUSSIAN), make_policy(GAUSSIAN)
        data = make_data(policy, GAUSSIAN)
        if what == "hook":
            policy.body[0].register_forward_hook(lambda m, i, o: 1.0 * o)
        elif what == "pre_hook":
            policy.register_forward_pre_hook(lambda m, i: None)
        elif what == "parametrization":
            torch.nn.utils.parametrize.register_parametrization(
                policy.body[0], "weight", nn.Identity()
            )
        else:
            policy.forward = policy.forward  # type: ignore[method-assign]
        opt = TRPOOptimizer(policy)
        opt.step(**data)
        assert opt.path == "generic"
        assert what.removeprefix("pre_") in opt.path_reason
        TRPOOptimizer(plain, backend="reference").step(**data)
        changed = {name.split(".")[-1]: p for name, p in policy.named_parameters()}
        assert result_of(opt).accepted
        assert len(changed) >= 3
        kept = torch.cat([p.detach().flatten() for p in policy.body[2].parameters()])
        expected = torch.cat([p.detach().flatten() for p in plain.body[2].parameters()])
        assert torch.allclose(kept, expected, rtol=1e-8, atol=1e-10)

    def test_a_hook_that_comes_and_goes(self) -> None:
        policy = make_policy(GAUSSIAN)
        data = make_data(policy, GAUSSIAN)
        opt = TRPOOptimizer(policy)
        paths = [opt.path]
        handle = policy.register_forward_hook(lambda m, i, o: None)
        opt.step(**data)
        paths.append(opt.path)
        handle.remove()
        opt.step(**data)
        paths.append(opt.path)
        assert paths == ["fused", "generic", "fused"]

    def test_a_named_backend_that_cannot_serve_raises(self) -> None:
        policy = make_policy(GAUSSIAN)
        data = make_data(policy, GAUSSIAN)
        opt = TRPOOptimizer(Wrapped(policy), backend="reference")
        before = bits(policy)
        with pytest.raises(ValueError, match=r"reference.*Wrapped: forward applies neg"):
            opt.step(**data)
        assert same_bits(policy, before)
        policy.register_forward_hook(lambda m, i, o: None)
        with pytest.raises(ValueError, match=r"reference.*hook"):
            TRPOOptimizer(policy, backend="reference")
        policy = make_policy(GAUSSIAN)
        with pytest.raises(ValueError, match="without their module"):
            TRPOOptimizer(policy.parameters(), backend="reference")
        opt = TRPOOptimizer(policy, backend="reference")
        before = bits(policy)
        with pytest.raises(ValueError, match="cannot serve a closure"):
            opt.step(closure_of(policy, make_data(policy, GAUSSIAN)))
        assert same_bits(policy, before)


class TestOptions:
    @pytest.mark.parametrize("wrap", [False, True], ids=["fused", "generic"])
    def test_maximize(self, wrap: bool) -> None:
        found = []
        for maximize in (False, True):
            policy = make_policy(GAUSSIAN)
            data = make_data(policy, GAUSSIAN)
            opt = TRPOOptimizer(Wrapped(policy) if wrap else policy, maximize=maximize)
            loss = opt.step(**data)
            sign = -1 if maximize else 1
            result = result_of(opt)
            assert float(loss) == pytest.approx(-sign * float(data["advantages"].mean()))
            assert result.loss_before == pytest.approx(float(loss))
            assert sign * (result.loss_before - result.loss_after) > 0
            assert result.actual_improvement > 0
            found.append(flat(policy))
        assert torch.equal(*found)

    def test_maximize_with_a_closure(self) -> None:
        found = []
        for sign in (1, -1):
            policy = make_policy(GAUSSIAN)
            closure = closure_of(policy, make_data(policy, GAUSSIAN))
            opt = TRPOOptimizer(policy.parameters(), maximize=sign < 0)

            def signed(closure: Any = closure, sign: int = sign) -> tuple[Any, ...]:
                loss, distribution = closure()
                return sign * loss, distribution

            loss = opt.step(signed)
            assert torch.equal(loss, torch.tensor(result_of(opt).loss_before, dtype=loss.dtype))
            assert sign * (result_of(opt).loss_after - float(loss)) < 0
            found.append(flat(policy))
        assert torch.equal(*found)

    @pytest.mark.parametrize("wrap", [False, True], ids=["fused", "generic"])
    def test_adaptive_beta_finds_the_target(self, wrap: bool) -> None:
        policy = make_policy(GAUSSIAN)
        data = make_data(policy, GAUSSIAN, rows=200)
        opt = TRPOOptimizer(
            Wrapped(policy) if wrap else policy, constraint="penalty", beta=0.01, max_kl=0.01
        )
        kls, betas = [], [0.01]
        for seed in range(14):
            data = make_data(policy, GAUSSIAN, rows=200, seed=seed)
            opt.step(**data)
            kls.append(result_of(opt).kl)
            betas.append(opt.param_groups[0]["beta"])
            if not result_of(opt).accepted:
                assert betas[-1] == betas[-2]
            elif kls[-1] > 0.015:
                assert betas[-1] == 2 * betas[-2]
            elif kls[-1] < 0.01 / 1.5:
                assert betas[-1] == betas[-2] / 2
            else:
                assert betas[-1] == betas[-2]
        assert betas[1] > betas[0]
        assert all(0.002 < kl < 0.05 for kl in kls[-4:])

    def test_fixed_beta_stays(self) -> None:
        policy = make_policy(GAUSSIAN)
        data = make_data(policy, GAUSSIAN)
        opt = TRPOOptimizer(policy, constraint="penalty", beta=3.0, adaptive_beta=False)
        opt.step(**data)
        assert opt.param_groups[0]["beta"] == 3.0
        result = result_of(opt)
        assert result.accepted
        assert result.actual_improvement > 3.0 * result.kl

    def test_constraint_none_is_theta_plus_lr_x(self) -> None:
        from trpo_fast import natural_gradient
        from trpo_fast.flat import FlatParameters

        policy = make_policy(GAUSSIAN)
        data = make_data(policy, GAUSSIAN)
        theta = flat(policy)
        loss = closure_of(policy, data)()[0]
        slopes = torch.autograd.grad(loss, list(policy.parameters()))
        flat_parameters = FlatParameters(list(policy.parameters()), [])
        x, _ = natural_gradient(policy, data["obs"], -flat_parameters.flatten(slopes))
        TRPOOptimizer(policy, constraint="none", lr=0.05).step(**data)
        assert torch.allclose(flat(policy), theta + 0.05 * x, rtol=1e-9, atol=1e-12)

    def test_schedulers_drive_lr_and_unknown_keys_are_ignored(self) -> None:
        policy = make_policy(GAUSSIAN)
        data = make_data(policy, GAUSSIAN)
        opt = TRPOOptimizer(policy)
        scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda epoch: 0.5**epoch)
        sizes = []
        for _ in range(3):
            opt.step(**data)
            scheduler.step()
            sizes.append(opt.param_groups[0]["lr"])
        assert sizes == [0.5, 0.25, 0.125]
        assert "initial_lr" in opt.param_groups[0]
        opt.param_groups[0]["my_note"] = "kept"
        opt.step(**data)
        assert result_of(opt).accepted

    def test_max_kl_edited_between_steps(self) -> None:
        policy = make_policy(GAUSSIAN)
        data = make_data(policy, GAUSSIAN)
        opt = TRPOOptimizer(policy, max_kl=0.01)
        opt.step(**data)
        assert result_of(opt).kl > 1e-3
        opt.param_groups[0]["max_kl"] = 1e-6
        opt.step(**data)
        assert 1e-7 < result_of(opt).kl <= 1e-6


class TestTorchContract:
    def test_one_group_only(self) -> None:
        a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        with pytest.raises(ValueError, match="one parameter group"):
            TRPOOptimizer([{"params": [a]}, {"params": [b]}])
        opt = TRPOOptimizer([{"params": [a], "max_kl": 0.5}])
        state = copy.deepcopy(opt.state_dict())
        with pytest.raises(ValueError, match="one parameter group"):
            opt.add_param_group({"params": [b]})
        assert opt.state_dict() == state
        assert opt.param_groups[0]["max_kl"] == 0.5
        with pytest.raises(ValueError, match="max_kl"):
            TRPOOptimizer([{"params": [a], "max_kl": -1}])

    def test_named_parameters(self) -> None:
        policy = make_policy(GAUSSIAN)
        opt = TRPOOptimizer(policy.named_parameters())
        opt.step(closure_of(policy, make_data(policy, GAUSSIAN)))
        assert result_of(opt).accepted
        with torch.no_grad():
            policy.body[0].bias[0] = torch.inf
        with pytest.raises(ValueError, match=r"body\.0\.bias holds"):
            opt.step(closure_of(policy, make_data(policy, GAUSSIAN)))

    def test_empty_and_wrong_parameters(self) -> None:
        with pytest.raises(ValueError, match="empty parameter list"):
            TRPOOptimizer([])
        with pytest.raises(TypeError):
            TRPOOptimizer(torch.zeros(3))
        with pytest.raises(TypeError, match="unexpected keyword"):
            TRPOOptimizer(make_policy(GAUSSIAN), maxkl=0.1)  # type: ignore[call-arg]

    def test_state_dict_round_trip_with_weights_only(self) -> None:
        policy = make_policy(GAUSSIAN)
        opt = TRPOOptimizer(policy, constraint="penalty", beta=0.5, max_kl=0.03)
        opt.step(**make_data(policy, GAUSSIAN))
        assert opt.param_groups[0]["beta"] != 0.5
        buffer = io.BytesIO()
        torch.save(opt.state_dict(), buffer)
        buffer.seek(0)
        loaded = torch.load(buffer, weights_only=True)
        other = TRPOOptimizer(make_policy(GAUSSIAN))
        other.load_state_dict(loaded)
        assert other.state_dict() == loaded == opt.state_dict()
        data = make_data(policy, GAUSSIAN, seed=1)
        other.module.load_state_dict(policy.state_dict())
        opt.step(**data)
        other.step(**data)
        assert torch.equal(flat(policy), flat(other.module))

    def test_a_state_dict_of_an_older_version_gets_the_defaults(self) -> None:
        opt = TRPOOptimizer(make_policy(GAUSSIAN))
        state = opt.state_dict()
        del state["param_groups"][0]["accept_ratio"]
        opt.load_state_dict(state)
        assert opt.param_groups[0]["accept_ratio"] == 0.0

    @pytest.mark.parametrize(
        "clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"]
    )
    def test_deepcopy_and_pickle_keep_module_and_parameters_together(self, clone: Any) -> None:
        policy = make_policy(GAUSSIAN)
        data = make_data(policy, GAUSSIAN)
        opt = TRPOOptimizer(policy, max_kl=0.02)
        opt.step(**data)
        twin = clone(opt)
        assert twin.last_result == opt.last_result
        assert (twin.path, twin.path_reason) == (opt.path, opt.path_reason)
        before = flat(policy)
        twin.step(**data)
        assert torch.equal(flat(policy), before)
        opt.step(**data)
        assert torch.equal(flat(policy), flat(twin.module))

    def test_hooks(self) -> None:
        policy = make_policy(GAUSSIAN)
        data = make_data(policy, GAUSSIAN)
        opt, seen = TRPOOptimizer(policy), []
        opt.register_step_pre_hook(lambda o, args, kwargs: seen.append("pre"))
        opt.register_step_post_hook(lambda o, args, kwargs: seen.append("post"))
        opt.register_state_dict_pre_hook(lambda o: seen.append("state"))
        opt.register_load_state_dict_post_hook(lambda o: seen.append("load"))
        opt.step(**data)
        opt.load_state_dict(opt.state_dict())
        assert seen == ["pre", "post", "state", "load"]

    def test_repr_and_zero_grad(self) -> None:
        opt = TRPOOptimizer(make_policy(GAUSSIAN))
        assert "max_kl: 0.01" in repr(opt)
        opt.zero_grad()
        assert opt.state_dict()["state"] == {}

    def test_parameters_moved_to_another_dtype_after_construction(self) -> None:
        policy = make_policy(GAUSSIAN, dtype=torch.float32)
        opt = TRPOOptimizer(policy)
        policy.double()
        opt.step(**make_data(policy, GAUSSIAN))
        assert result_of(opt).accepted


@pytest.mark.parametrize("wrap", [False, True], ids=["fused", "generic"])
def test_8_threads_with_separate_optimizers_equal_serial(wrap: bool) -> None:
    def run(seed: int, out: dict[int, Tensor]) -> None:
        policy = make_policy(GAUSSIAN, seed=seed)
        opt = TRPOOptimizer(Wrapped(policy) if wrap else policy)
        for _ in range(3):
            opt.step(**data[seed])
        out[seed] = flat(policy)

    data = {s: make_data(make_policy(GAUSSIAN, seed=s), GAUSSIAN, seed=s) for s in range(8)}
    serial: dict[int, Tensor] = {}
    parallel: dict[int, Tensor] = {}
    for seed in range(8):
        run(seed, serial)
    threads = [threading.Thread(target=run, args=(s, parallel)) for s in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(serial[s], parallel[s]) for s in range(8))


def test_process_wide_settings_survive_threads_that_overlap() -> None:
    from torch.backends.cuda import flash_sdp_enabled, mem_efficient_sdp_enabled

    before = flash_sdp_enabled(), mem_efficient_sdp_enabled()
    data = make_data(make_policy(GAUSSIAN), GAUSSIAN)
    policies = [make_policy(GAUSSIAN, seed=s) for s in range(2)]
    closures = [closure_of(p, data) for p in policies]
    inside, first_is_done = threading.Barrier(2), threading.Event()
    errors: list[BaseException] = []

    def run(index: int) -> None:
        def closure() -> tuple[Any, ...]:
            if torch.is_grad_enabled():
                inside.wait(timeout=30)  # both steps have begun
                if index == 1:
                    assert first_is_done.wait(timeout=30)
                    assert not flash_sdp_enabled()
            return closures[index]()

        try:
            TRPOOptimizer(policies[index].parameters()).step(closure)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)
        if index == 0:
            first_is_done.set()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not errors
    assert (flash_sdp_enabled(), mem_efficient_sdp_enabled()) == before


@pytest.mark.parametrize("wrap", [False, True], ids=["fused", "generic"])
def test_steps_leave_no_tensors_behind(wrap: bool) -> None:
    policy = make_policy(GAUSSIAN)
    data = make_data(policy, GAUSSIAN)
    opt = TRPOOptimizer(Wrapped(policy) if wrap else policy)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(item), Tensor) for item in gc.get_objects())

    opt.step(**data)
    before = tensors()
    for _ in range(20):
        opt.step(**data)
    assert tensors() <= before + 2


def test_statuses_are_reported() -> None:
    policy = make_policy(GAUSSIAN)
    opt = TRPOOptimizer(policy)
    assert opt.last_result is None
    opt.step(**make_data(policy, GAUSSIAN))
    result = result_of(opt)
    assert result.status is Status.accepted
    assert result.backend in ANALYTIC
    assert result.gradient_norm > 0
    assert 0 < result.cg_iters <= 10
    assert 0 <= result.cg_residual < 1
    assert result.actual_improvement == pytest.approx(result.loss_before - result.loss_after)


@pytest.mark.parametrize("weights", [[1.0] * 8, torch.zeros(0)], ids=["list", "empty"])
def test_closure_weights_that_are_no_weights_are_refused(weights: Any) -> None:
    policy, obs = nn.Linear(3, 2), torch.randn(8, 3)
    optimizer = TRPOOptimizer(policy.parameters())

    def closure() -> Any:
        distribution = Categorical(logits=policy(obs))
        return -distribution.log_prob(torch.zeros(8)).mean(), distribution, weights

    with pytest.raises(TypeError, match="weights must be a tensor"):
        optimizer.step(closure)


def test_backward_in_a_closure_is_explained() -> None:
    policy, obs = nn.Linear(3, 2), torch.randn(8, 3)
    optimizer = TRPOOptimizer(policy.parameters())
    before = policy.weight.clone()

    def closure() -> Any:
        distribution = Categorical(logits=policy(obs))
        loss = -(distribution.log_prob(torch.zeros(8)) * obs[:, 0]).mean()
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        return loss, distribution

    with pytest.raises(RuntimeError) as caught:
        optimizer.step(closure)
    assert "no backward()" in caught.value.__notes__[0]
    assert torch.equal(policy.weight, before)
