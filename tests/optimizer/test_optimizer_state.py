"""The torch contract of the optimizer's state; threads; memory."""

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
from optimizer_cases import GAUSSIAN, closure_of, flat, result_of
from patience import PATIENCE
from torch import Tensor, nn
from torch.testing import assert_close
from update_cases import (
    Wrapped,
    make_data,
    make_policy,
)

from trpo_fast import TRPOOptimizer, fisher_vector_product

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")


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

    def test_parameters_on_the_meta_device_are_named(self) -> None:
        policy = make_policy(GAUSSIAN).to("meta")
        with pytest.raises(ValueError, match="log_std is on the meta device"):
            TRPOOptimizer(policy)
        with pytest.raises(ValueError, match=r"meta device.*to_empty"):
            fisher_vector_product(policy, torch.zeros(4, 3), torch.zeros(3))

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

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda s: s["param_groups"][0].update(max_kl="0.1"), "max_kl must be"),
            (lambda s: s["param_groups"][0].update(lr=torch.ones(2)), "lr is a tensor"),
            (lambda s: s["state"][1].update(preconditioner_age="3"), "preconditioner_age '"),
            (lambda s: s["state"][1].update(preconditioner_age=-1), "preconditioner_age -1"),
            (lambda s: s["state"][1].update(preconditioner_age=1.5), "preconditioner_age 1.5"),
            (lambda s: s["state"].update({1: "x"}), "is a str"),
            (lambda s: s["state"][1]["kfac_G"].fill_(torch.nan), "infinity in kfac_G"),
            (lambda s: s["state"][1]["kfac_G"].fill_(-1), "kfac_G with -1"),
            (lambda s: s["state"][1]["kfac_pi"].fill_(0), "kfac_pi with 0"),
            (lambda s: s["state"][1].update(kfac_pi=torch.ones(3)), "kfac_pi of shape"),
            (lambda s: s["state"][1].update(kfac_G=None), "kfac_G as a NoneType"),
            (lambda s: s["state"][1].update(kfac_G="x"), "kfac_G as a str"),
        ],
    )
    def test_a_state_dict_that_cannot_be_used_changes_nothing(
        self, change: Callable[[Any], None], words: str
    ) -> None:
        policy = make_policy(GAUSSIAN)
        opt = TRPOOptimizer(policy, preconditioner="kfac")
        opt.step(**make_data(policy, GAUSSIAN))
        before = copy.deepcopy(opt.state_dict())
        state = copy.deepcopy(before)
        change(state)
        with pytest.raises(ValueError, match=words):
            opt.load_state_dict(state)
        after = opt.state_dict()
        assert after["param_groups"] == before["param_groups"]
        assert_close(after["state"], before["state"], rtol=0, atol=0)
        opt.step(**make_data(policy, GAUSSIAN, seed=1))
        assert result_of(opt).accepted

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
                inside.wait(timeout=PATIENCE)  # both steps have begun
                if index == 1:
                    assert first_is_done.wait(timeout=PATIENCE)
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
        thread.join()
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
