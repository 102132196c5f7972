"""The modes of modules and of torch around a step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from optimizer_cases import GAUSSIAN, closure_of, flat, optimizer, result_of
from torch import Tensor, nn
from torch.distributions import (
    Categorical,
    Distribution,
)
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


class TestModes:
    @pytest.mark.reliability("default_device")
    @pytest.mark.parametrize("backend", ["auto", "reference", "generic"])
    @pytest.mark.parametrize("preconditioner", ["none", "kfac"])
    def test_another_default_device_changes_nothing(
        self, backend: str, preconditioner: str
    ) -> None:
        if backend == "generic":
            preconditioner = "auto"
        policy = make_policy(GAUSSIAN, dtype=torch.float32)
        data = make_data(policy, GAUSSIAN)
        twin, arrays = copy.deepcopy(policy), {name: t.numpy() for name, t in data.items()}
        opt = optimizer(policy, backend, preconditioner=preconditioner)
        other = optimizer(twin, backend, preconditioner=preconditioner)
        opt.step(**data)
        with torch.device("meta"):
            other.step(**data)
        assert result_of(opt).accepted
        assert same_bits(twin, bits(policy))
        opt.step(**data)
        with torch.device("meta"):
            other.step(**arrays)
        assert same_bits(twin, bits(policy))

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

    @pytest.mark.parametrize("with_grad", [False, True])
    def test_a_grad_scaler_is_refused_clearly(self, with_grad: bool) -> None:
        policy = make_policy(GAUSSIAN, dtype=torch.float32)
        if with_grad:
            for p in policy.parameters():
                p.grad = torch.ones_like(p)
        data, before = make_data(policy, GAUSSIAN), bits(policy)
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(torch.ones(()))
        with pytest.raises(RuntimeError, match="takes no GradScaler"):
            scaler.step(TRPOOptimizer(policy), **data)
        assert same_bits(policy, before)
