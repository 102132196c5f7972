"""Options: defaults, editing, schedulers, and how they are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optimizer_cases import GAUSSIAN, closure_of, flat, result_of
from update_cases import (
    Wrapped,
    make_data,
    make_policy,
)

from trpo_fast import TRPOOptimizer

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")


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
        from trpo_fast.update.parameters import FlatParameters

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
