"""Models that the optimizer has never seen: the generic path."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from optimizer_cases import GAUSSIAN, closure_of, flat, result_of
from torch import Tensor, nn
from torch.distributions import (
    AffineTransform,
    Beta,
    Categorical,
    ComposeTransform,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    Pareto,
    TransformedDistribution,
    Weibull,
    Wishart,
    kl,
    kl_divergence,
)
from torch.distributions.transforms import TanhTransform
from update_cases import (
    OBS_WIDTH,
    Wrapped,
    bits,
    make_data,
    make_policy,
    same_bits,
)

from trpo_fast import TRPOOptimizer

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")


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

    @pytest.mark.parametrize("kind", ["affine", "inverse", "composed", "weibull"])
    def test_transforms_that_depend_on_the_parameters_are_refused(self, kind: str) -> None:
        class Moving(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(OBS_WIDTH, 4)

            def forward(self, obs: Tensor) -> Distribution:
                mean, raw = self.linear(obs).chunk(2, dim=1)
                if kind == "weibull":
                    return Independent(Weibull(mean.exp(), raw.exp()), 1)
                moving = AffineTransform(0.0, raw.exp())
                transforms = {
                    "affine": [moving, TanhTransform(cache_size=1)],
                    "inverse": [moving.inv],
                    "composed": [ComposeTransform([moving, TanhTransform()])],
                }
                return Independent(TransformedDistribution(Normal(mean, 1.0), transforms[kind]), 1)

        torch.manual_seed(0)
        module, obs = Moving(), torch.randn(30, OBS_WIDTH)
        before = bits(module)
        with pytest.raises(NotImplementedError, match=r"transforms of \w+ depend .*\.register_kl"):
            TRPOOptimizer(module).step(
                obs=obs, actions=module(obs).sample(), advantages=torch.randn(30)
            )
        assert same_bits(module, before)

    @pytest.mark.filterwarnings("ignore:Singular sample")
    def test_torchs_kl_of_wisharts_is_refused_and_ones_own_is_not(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Matrices(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(OBS_WIDTH, 2)

            def forward(self, obs: Tensor) -> Distribution:
                df, scale = self.linear(obs).exp().unbind(1)
                return Wishart(5 + df, scale[:, None, None] * torch.eye(2))

        torch.manual_seed(0)
        module, obs = Matrices(), torch.randn(30, OBS_WIDTH)
        data = {"obs": obs, "actions": module(obs).sample(), "advantages": torch.randn(30)}
        p, q = Wishart(torch.tensor([6.0, 7.0]), torch.eye(2)), module(obs[:2])
        assert bool((kl_divergence(p, q) < -0.1).any())  # no KL is
        with pytest.raises(NotImplementedError, match=r"Wishart .*\.register_kl"):
            TRPOOptimizer(module).step(**data)

        def gaussian(p: Wishart, q: Wishart) -> Tensor:
            return (p.df - q.df).square() + (p.variance - q.variance).square().sum((1, 2))

        monkeypatch.setitem(kl._KL_REGISTRY, (Wishart, Wishart), gaussian)
        kl._KL_MEMOIZE.clear()
        optimizer = TRPOOptimizer(module)
        optimizer.step(**data)
        kl._KL_MEMOIZE.clear()
        assert result_of(optimizer).accepted

    def test_a_candidate_that_moves_the_support_off_an_action_is_refused(self) -> None:
        class Heavy(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(OBS_WIDTH, 2)

            def forward(self, obs: Tensor) -> Distribution:
                scale, alpha = self.linear(obs).exp().unbind(1)
                return Pareto(scale, alpha)  # its actions are at least scale

        torch.manual_seed(0)
        module, obs = Heavy(), torch.randn(30, OBS_WIDTH)
        actions = module(obs).sample()
        before = [p.detach().clone() for p in module.parameters()]
        optimizer = TRPOOptimizer(module)
        optimizer.step(obs=obs, actions=actions, advantages=torch.randn(30))
        assert optimizer.last_result is not None
        assert not optimizer.last_result.accepted
        assert all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))

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
