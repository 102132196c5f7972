"""What PyTorch's own tests ask of every optimizer, asked of TRPOOptimizer.

Named after test/optim/test_optim.py of PyTorch, and written from what those tests test.
"""

from __future__ import annotations

import copy
import io
import math
import warnings
from typing import Any

import pytest
import torch
from optimizer_cases import closure_of, flat, result_of
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    OneCycleLR,
    ReduceLROnPlateau,
)
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from update_cases import BY_NAME, Wrapped, bits, make_data, make_policy, same_bits

from trpo_fast import MlpPolicy, TRPOOptimizer
from trpo_fast.schedulers import MaxKlScheduler

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")
GAUSSIAN = BY_NAME["gaussian"]
wrapped = pytest.mark.parametrize("wrap", [False, True], ids=["fused", "generic"])


def made(wrap: bool = False, **options: Any) -> tuple[MlpPolicy, TRPOOptimizer, dict[str, Any]]:
    policy = make_policy(GAUSSIAN, dtype=torch.float32)
    data = make_data(policy, GAUSSIAN)
    return policy, TRPOOptimizer(Wrapped(policy) if wrap else policy, **options), data


class TestErrors:
    @pytest.mark.parametrize("name", ["capturable", "differentiable", "foreach", "fused"])
    def test_torchs_own_keywords_are_refused_with_the_reason(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"no {name}: "):
            TRPOOptimizer(make_policy(GAUSSIAN), **{name: True})
        # torch hands them on switched off, too.
        assert TRPOOptimizer(make_policy(GAUSSIAN), **{name: False}).param_groups

    @pytest.mark.parametrize("lr", [-1.0, float("nan"), "fast", torch.ones(2), torch.tensor(-1.0)])
    def test_a_bad_lr(self, lr: Any) -> None:
        with pytest.raises(ValueError, match="lr"):
            TRPOOptimizer(make_policy(GAUSSIAN), lr=lr)

    @pytest.mark.parametrize(
        "parameter",
        [
            torch.zeros(2, dtype=torch.complex64),
            torch.zeros(2, dtype=torch.float16),
            torch.zeros(2, 2).to_sparse(),
        ],
        ids=["complex", "half", "sparse"],
    )
    def test_parameters_of_other_kinds(self, parameter: Tensor) -> None:
        with pytest.raises(ValueError, match="dense float32 and"):
            TRPOOptimizer([parameter.requires_grad_()])

    def test_what_is_no_parameter(self) -> None:
        with pytest.raises(TypeError, match="iterable of Tensors"):
            TRPOOptimizer(torch.zeros(2))
        with pytest.raises(TypeError):
            TRPOOptimizer(["weight"])
        with pytest.raises(ValueError, match="non-leaf"):
            TRPOOptimizer([torch.zeros(2, requires_grad=True) * 2])

    def test_duplicates_are_warned_of_as_torch_does(self) -> None:
        weight = nn.Parameter(torch.zeros(2))
        with pytest.warns(UserWarning, match="duplicate parameters"):
            TRPOOptimizer([weight, weight])

    def test_an_empty_step_is_an_error_unless_lr_is_0(self) -> None:
        policy, opt, _ = made()
        with pytest.raises(TypeError, match="step takes a closure"):
            opt.step()
        before = bits(policy)
        opt.param_groups[0]["lr"] = 0.0
        assert float(opt.step()) == 0
        assert same_bits(policy, before)


class TestStateDict:
    def test_deterministic(self) -> None:
        """Going on from a saved state gives the same bits as going on."""
        policy, opt, data = made(constraint="penalty", beta=0.5)
        opt.step(**data)
        state, theta = copy.deepcopy(opt.state_dict()), copy.deepcopy(policy.state_dict())
        ends = []
        for _ in range(2):
            twin, other, _ = made()
            twin.load_state_dict(theta)
            other.load_state_dict(state)
            for seed in range(3):
                other.step(**make_data(twin, GAUSSIAN, seed=seed))
            ends.append(flat(twin))
        assert torch.equal(*ends)
        for seed in range(3):
            opt.step(**make_data(policy, GAUSSIAN, seed=seed))
        assert torch.equal(flat(policy), ends[0])

    def test_can_load_older_state_dict(self) -> None:
        _policy, opt, data = made()
        state = opt.state_dict()
        for name in ("cg_progress_tol", "accept_ratio", "preconditioner", "maximize"):
            state["param_groups"][0].pop(name, None)
        other = made()[1]
        other.load_state_dict(state)
        assert other.param_groups[0]["maximize"] is False
        opt.step(**data)
        assert result_of(opt).accepted

    def test_can_load_from_to_named_state_dict(self) -> None:
        policy, plain, data = made(max_kl=0.02)
        named = TRPOOptimizer(policy.named_parameters(), max_kl=0.03)
        names = [name for name, _ in policy.named_parameters()]
        assert named.state_dict()["param_groups"][0]["param_names"] == names
        plain.load_state_dict(named.state_dict())
        assert plain.param_groups[0]["max_kl"] == 0.03
        assert plain.param_groups[0]["param_names"] == names  # torch takes them along
        other = TRPOOptimizer(policy.named_parameters())
        other.load_state_dict(made(max_kl=0.02)[1].state_dict())
        assert other.param_groups[0]["param_names"] == names
        assert other.param_groups[0]["max_kl"] == 0.02
        plain.step(**data)
        other.step(closure_of(policy, data))
        assert result_of(plain).accepted

    @pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5)], ids=["float", "tensor"])
    def test_save_load_equality_with_weights_only(self, lr: Any) -> None:
        _policy, opt, data = made(lr=lr)
        opt.step(**data)
        file = io.BytesIO()
        torch.save(opt.state_dict(), file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        other = made()[1]
        other.load_state_dict(loaded)
        assert repr(other.state_dict()) == repr(opt.state_dict())

    def test_loads_across_devices(self) -> None:
        """Plain conjugate gradients keep no tensor, so the state goes to any device as it is."""
        _, opt, data = made(preconditioner="none")
        opt.step(**data)
        file = io.BytesIO()
        torch.save(opt.state_dict(), file)
        file.seek(0)
        state = torch.load(file, map_location="meta", weights_only=True)
        assert not any(isinstance(value, Tensor) for value in state["param_groups"][0].values())
        meta = TRPOOptimizer(make_policy(GAUSSIAN, dtype=torch.float32))
        meta.load_state_dict(state)
        assert meta.param_groups[0]["max_kl"] == 0.01

    @pytest.mark.parametrize("device", ["cpu", "meta", "cuda"])
    def test_statistics_follow_their_parameters(self, device: str) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("torch finds no CUDA device")
        policy, opt, data = made(preconditioner="kfac")
        opt.step(**data)
        kept = [v for entry in opt.state.values() for v in entry.values() if isinstance(v, Tensor)]
        assert kept
        twin = copy.deepcopy(policy).double()
        other = TRPOOptimizer(twin, preconditioner="kfac")
        twin.to(device)  # in place, as nn.Module.to does: the optimizer holds the same parameters
        if device == "meta":
            other.param_groups[0]["params"] = list(twin.parameters())
        other.load_state_dict(opt.state_dict())
        loaded = [v for e in other.state.values() for v in e.values() if isinstance(v, Tensor)]
        assert len(loaded) == len(kept)
        for old, new in zip(kept, loaded, strict=True):
            assert (new.device.type, new.dtype) == (device, torch.float64)
            assert device == "meta" or torch.equal(new.cpu(), old.double())
        if device == "cpu":
            other.step(**{k: v.double() if v.is_floating_point() else v for k, v in data.items()})
            assert result_of(other).accepted

    def test_a_state_of_another_model_is_refused(self) -> None:
        opt = TRPOOptimizer([nn.Parameter(torch.zeros(2))])
        before = copy.deepcopy(opt.state_dict())
        with pytest.raises(ValueError, match="doesn't match the size"):
            opt.load_state_dict(made()[1].state_dict())
        assert opt.state_dict() == before

    def test_distributed_checkpoint_initialises_and_restores(self) -> None:
        from torch.distributed.checkpoint.state_dict import (
            get_optimizer_state_dict,
            set_optimizer_state_dict,
        )

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for lr, stepped in ((0.5, False), (torch.tensor(0.5), False), (0.5, True)):
                policy, opt, data = made(max_kl=0.02, lr=lr, preconditioner="kfac")
                if stepped:
                    opt.step(**data)
                before = bits(policy)
                state = get_optimizer_state_dict(policy, opt)
                assert same_bits(policy, before)
                assert float(opt.param_groups[0]["lr"]) == 0.5
                twin, other, data = made()
                twin.load_state_dict(policy.state_dict())
                set_optimizer_state_dict(twin, other, state)
                pairs = list(zip(policy.parameters(), twin.parameters(), strict=True))
                kept = [len(opt.state.get(p, {})) for p, _ in pairs]
                assert [len(other.state.get(q, {})) for _, q in pairs] == kept
                assert all(size > 0 for size in kept) == stepped
                assert other.param_groups[0]["max_kl"] == 0.02
                assert same_bits(policy, before)
                other.step(**data)
                assert result_of(other).accepted


class TestHooks:
    def test_state_dict_hooks_may_change_the_dict(self) -> None:
        _, opt, _ = made()
        seen: list[str] = []

        def post(_: Any, state: dict[str, Any]) -> dict[str, Any]:
            seen.append("post")
            return {**state, "note": 1}

        handles = [
            opt.register_state_dict_pre_hook(lambda _: seen.append("pre")),
            opt.register_state_dict_post_hook(post),
        ]
        assert opt.state_dict()["note"] == 1
        assert seen == ["pre", "post"]
        for handle in handles:
            handle.remove()
        assert "note" not in opt.state_dict()

    def test_load_state_dict_hooks_may_change_what_is_loaded(self) -> None:
        _, opt, _ = made()
        seen: list[float] = []

        def pre(_: Any, state: dict[str, Any]) -> dict[str, Any]:
            state = copy.deepcopy(state)
            state["param_groups"][0]["max_kl"] = 0.5
            return state

        opt.register_load_state_dict_pre_hook(pre)
        opt.register_load_state_dict_post_hook(lambda o: seen.append(o.param_groups[0]["max_kl"]))
        opt.load_state_dict(opt.state_dict())
        assert seen == [0.5]

    @wrapped
    def test_all_step_hooks_run_in_torchs_order(self, wrap: bool) -> None:
        _, opt, data = made(wrap)
        seen: list[str] = []
        handles = [
            register_optimizer_step_pre_hook(lambda *_: seen.append("global pre")),
            register_optimizer_step_post_hook(lambda *_: seen.append("global post")),
            opt.register_step_pre_hook(lambda *_: seen.append("pre")),
            opt.register_step_post_hook(lambda *_: seen.append("post")),
        ]
        try:
            opt.step(**data)
            assert seen == ["global pre", "pre", "post", "global post"]
        finally:
            for handle in handles:
                handle.remove()
        opt.step(**data)
        assert len(seen) == 4

    def test_a_pre_hook_may_change_the_arguments(self) -> None:
        _policy, opt, data = made()

        def double(_: Any, args: Any, keywords: dict[str, Any]) -> Any:
            return args, {**keywords, "advantages": 2 * keywords["advantages"]}

        opt.register_step_pre_hook(double)
        loss = opt.step(**data)
        assert float(loss) == pytest.approx(-2 * float(data["advantages"].mean()), rel=1e-5)


class TestSteps:
    @wrapped
    def test_step_is_noop_for_zero_grads(self, wrap: bool) -> None:
        policy, opt, data = made(wrap)
        before = bits(policy)
        opt.step(**{**data, "advantages": torch.zeros_like(data["advantages"])})
        assert same_bits(policy, before)
        assert "zero_gradient" in str(result_of(opt).status)

    @wrapped
    def test_grads_are_not_needed_and_not_touched(self, wrap: bool) -> None:
        policy, opt, data = made(wrap)
        opt.step(**data)
        assert all(p.grad is None for p in policy.parameters())
        for p in policy.parameters():
            p.grad = torch.ones_like(p)
        opt.step(**data)
        assert all(bool((p.grad == 1).all()) for p in policy.parameters())
        opt.zero_grad()
        assert all(p.grad is None for p in policy.parameters())

    def test_deepcopy_all_params(self) -> None:
        policy, opt, data = made(lr=torch.tensor(1.0))
        twin = copy.deepcopy(opt)
        assert twin.param_groups[0]["params"][0] is next(twin.module.parameters())
        assert twin.param_groups[0]["lr"] is not opt.param_groups[0]["lr"]
        opt.step(**data)
        twin.step(**data)
        assert torch.equal(flat(policy), flat(twin.module))

    def test_repr_names_every_option(self) -> None:
        text = repr(made()[1])
        assert text.startswith("TRPOOptimizer (")
        for name in ("max_kl: 0.01", "damping: 0.1", "lr: 1.0", "constraint: hard"):
            assert name in text


class TestSchedules:
    @wrapped
    @pytest.mark.parametrize("lr", [1.0, torch.tensor(1.0)], ids=["float", "tensor"])
    def test_lr_multiplies_the_step(self, wrap: bool, lr: Any) -> None:
        ends = []
        for factor in (1.0, 0.5):
            policy, opt, data = made(wrap, step_size="damped", lr=lr * factor)
            before = flat(policy)
            opt.step(**data)
            assert result_of(opt).backtracks == 0
            ends.append(flat(policy) - before)
        assert torch.allclose(ends[1], 0.5 * ends[0], rtol=1e-3, atol=1e-7)

    @pytest.mark.parametrize(
        "schedule",
        [
            lambda opt: LambdaLR(opt, lambda k: 0.5**k),
            lambda opt: ExponentialLR(opt, 0.5),
            lambda opt: CosineAnnealingLR(opt, 5),
            lambda opt: OneCycleLR(opt, 1.0, total_steps=6, cycle_momentum=False),
            lambda opt: ReduceLROnPlateau(opt, patience=0),
        ],
        ids=["lambda", "exponential", "cosine", "one-cycle", "plateau"],
    )
    @pytest.mark.parametrize("lr", [1.0, torch.tensor(1.0)], ids=["float", "tensor"])
    def test_torchs_schedulers(self, schedule: Any, lr: Any) -> None:
        _policy, opt, data = made(lr=lr.clone() if isinstance(lr, Tensor) else lr)
        scheduler = schedule(opt)
        rates, sizes = [], []
        for _ in range(4):
            rates.append(float(opt.param_groups[0]["lr"]))
            opt.step(**data)
            sizes.append(result_of(opt).kl)
            scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
        assert isinstance(opt.param_groups[0]["lr"], Tensor) == isinstance(lr, Tensor)
        assert len(set(rates)) > 1
        # A step's KL goes with the square of its length.
        for rate, size in zip(rates, sizes, strict=True):
            assert 0 < size <= 0.01 * rate**2 * 1.5

    def test_lr_0_is_an_exact_no_op(self) -> None:
        for lr in (0.0, torch.tensor(0.0)):
            policy, opt, data = made(lr=lr)
            before = bits(policy)
            opt.step(**data)
            assert same_bits(policy, before)

    def test_a_max_kl_scheduler(self) -> None:
        _policy, opt, data = made(max_kl=0.01)
        scheduler = MaxKlScheduler(opt, lambda count: 0.5**count)
        found = []
        for _ in range(3):
            opt.step(**data)
            found.append(opt.param_groups[0]["max_kl"])
            assert 0.2 * found[-1] < result_of(opt).kl <= found[-1]
            scheduler.step()
        assert found == [0.01, 0.005, 0.0025]
        _, other, _ = made(max_kl=0.3)
        resumed = MaxKlScheduler(other, lambda count: 0.5**count)
        resumed.load_state_dict(scheduler.state_dict())
        assert other.param_groups[0]["max_kl"] == 0.00125
        resumed.step()
        assert other.param_groups[0]["max_kl"] == 0.000625
        bad = MaxKlScheduler(made()[1], lambda count: float(count < 1))
        bad.step()
        with pytest.raises(ValueError, match="max_kl"):
            bad.optimizer.step(**data)

    @pytest.mark.parametrize("base", [math.nan, math.inf, -0.01, 0.0, "0.01"])
    def test_a_max_kl_scheduler_refuses_a_first_value_that_is_no_bound(self, base: Any) -> None:
        _policy, opt, _data = made(max_kl=0.01)
        opt.param_groups[0]["max_kl"] = base
        before = dict(opt.param_groups[0])
        with pytest.raises(ValueError, match="max_kl must be a number > 0"):
            MaxKlScheduler(opt, lambda count: 1.0)
        assert list(opt.param_groups[0]) == list(before)
        opt.param_groups[0]["max_kl"] = 0.01
        scheduler = MaxKlScheduler(opt, lambda count: 0.5**count)
        scheduler.step()
        for state in ({"count": 1, "base": base}, {"count": "1", "base": 0.1}, {"base": 0.1}):
            with pytest.raises(ValueError, match=r"max_kl must be|count"):
                scheduler.load_state_dict(state)
        assert scheduler.state_dict() == {"count": 1, "base": 0.01}
        assert opt.param_groups[0]["max_kl"] == 0.005

    def test_a_max_kl_scheduler_refuses_what_it_cannot_schedule(self) -> None:
        other: Any = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
        with pytest.raises(TypeError, match="SGD has no max_kl"):
            MaxKlScheduler(other, lambda count: 1.0)
        assert "initial_max_kl" not in other.param_groups[0]
        factor: Any = 0.5
        with pytest.raises(TypeError, match="function"):
            MaxKlScheduler(made()[1], factor)
