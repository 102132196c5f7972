"""TRPOOptimizer: both forms of step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optimizer_cases import GAUSSIAN, closure_of, every_case, flat, result_of
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    Normal,
)
from update_cases import (
    HOST_BACKENDS,
    OBS_WIDTH,
    Case,
    Wrapped,
    bits,
    make_data,
    make_policy,
    same_bits,
)

from trpo_fast import Status, TRPOOptimizer
from trpo_fast.backends.registry import ANALYTIC

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")


class _Nameless(Distribution):
    """A distribution whose KL nobody has registered."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, mean: Tensor) -> None:
        self.mean_ = mean
        super().__init__(mean.shape, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        return -((value - self.mean_) ** 2)


class TestForms:
    @every_case
    @pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
    def test_every_form_and_backend_takes_the_same_step(self, case: Case, weighted: bool) -> None:
        found, figures = [], []
        for form in ("closure", "module", "wrapped", *HOST_BACKENDS):
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
