"""What is recognised, and what is not and why."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from recognizer_cases import (
    RECOGNISED,
    WIDTH,
    Body,
    Halves,
    Make,
    OnesTimesStd,
    Policy,
    SharedTrunk,
    Wrapped2,
    data_of,
    flat,
    made,
    observations,
    reason,
    step,
)
from recognizer_refusals import REFUSED, ClampedMean
from torch import Tensor, nn

from trpo_fast import TRPOOptimizer, fisher_vector_product
from trpo_fast.networks.network import Network, forward
from trpo_fast.recognition.recognizer import UNDECIDED, layers_of, network_of

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")


def moved(
    policy: nn.Module, data: dict[str, Tensor], *, generic: bool = False, **options: Any
) -> Tensor:
    """What one step adds to the parameters, in float64; the policy itself is left alone."""
    before, policy = flat(policy), copy.deepcopy(policy)
    opt = step(Wrapped2(policy) if generic else policy, data, **options)
    assert opt.path == ("generic" if generic else "fused")
    return flat(policy).double() - before.double()


@pytest.mark.parametrize("name", RECOGNISED)
class TestRecognised:
    def test_its_step_equals_the_generic_one(self, name: str) -> None:
        policy = made(RECOGNISED[name])
        data = data_of(policy, observations())
        fused, generic = moved(policy, data), moved(policy, data, generic=True)
        assert float((fused - generic).norm()) < 1e-8 * float(generic.norm())

    def test_its_float32_step_is_as_near_to_float64_s_as_the_generic_one(self, name: str) -> None:
        policy = made(RECOGNISED[name], torch.float32)
        data = data_of(policy, observations(dtype=torch.float32))
        doubles = {key: value.double() for key, value in data.items()}
        # Each further iteration amplifies the rounding, on another CPU another one.
        few = {"cg_iters": 2}
        exact = moved(copy.deepcopy(policy).double(), doubles, generic=True, **few)
        rounding = float((moved(policy, data, generic=True, **few) - exact).norm())
        assert rounding < 1e-5 * float(exact.norm())
        bound = 2 * rounding + 1e-5 * float(exact.norm())
        assert float((moved(policy, data, **few) - exact).norm()) < bound

    def test_it_is_left_as_it_was(self, name: str) -> None:
        policy = made(RECOGNISED[name]).train()
        before = copy.deepcopy(policy.state_dict())
        state = torch.get_rng_state()
        assert isinstance(network_of(policy, observations()), Network)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(module.training for module in policy.modules())
        assert all(torch.equal(a, before[k]) for k, a in policy.state_dict().items())
        assert all(p.grad is None for p in policy.parameters())


@pytest.mark.parametrize("name", REFUSED)
def test_near_misses_are_refused_with_their_reason(name: str) -> None:
    make, words = REFUSED[name]
    policy = make()
    if name != "half":
        policy = policy.to(torch.float64)
    obs = observations(dtype=next(policy.parameters()).dtype)
    assert words in reason(policy, obs)
    again = reason(policy, obs)
    assert words in again


def test_a_refused_policy_takes_the_generic_path_and_says_why() -> None:
    policy = made(ClampedMean)
    opt = TRPOOptimizer(policy)
    assert (opt.path, opt.path_reason) == ("generic", UNDECIDED)
    opt.step(**data_of(policy, observations()))
    assert opt.path == "generic"
    assert opt.path_reason == "ClampedMean: forward applies clamp to the output of a layer"


class TestShapes:
    def test_image_observations_are_flattened_by_the_module(self) -> None:
        policy = made(lambda: Body(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3)))
        obs = torch.randn(30, 2, 6, dtype=torch.float64)
        plain, data = copy.deepcopy(policy), data_of(policy, obs)
        assert step(policy, data).path == "fused"
        step(Wrapped2(plain), data)
        assert torch.allclose(flat(policy), flat(plain), rtol=1e-7, atol=1e-10)

    def test_whole_number_observations_are_cast_by_the_module(self) -> None:
        class Casting(Policy):
            def mean(self, obs: Tensor) -> Tensor:
                return super().mean(obs.float())

        policy = made(Casting, torch.float32)
        obs = torch.randint(0, 9, (30, WIDTH))
        assert isinstance(network_of(policy, obs), Network)
        assert step(policy, data_of(policy, obs)).path == "fused"

    def test_a_cast_through_half_precision_is_refused(self) -> None:
        class Rounding(Policy):
            def mean(self, obs: Tensor) -> Tensor:
                return super().mean(obs.half().double())

        assert "applies half to the observations" in reason(made(Rounding))

    @pytest.mark.parametrize("rows", [1, 2, WIDTH, 9000])
    def test_any_number_of_rows(self, rows: int) -> None:
        assert isinstance(network_of(made(Policy), observations(rows)), Network)

    @pytest.mark.parametrize(
        ("obs", "words"),
        [
            ({"a": torch.zeros(4, WIDTH)}, "a dict, not one tensor"),
            (torch.zeros(4), "shape (4,)"),
            (torch.zeros(0, WIDTH), "shape (0, 5)"),
            (torch.zeros(4, WIDTH + 1, dtype=torch.float64), "forward raised RuntimeError"),
            (torch.zeros(4, 2, WIDTH, dtype=torch.float64), "linear"),
        ],
    )
    def test_other_observations_are_refused(self, obs: Any, words: str) -> None:
        assert words in reason(made(Policy), obs)

    def test_another_shape_of_rows_is_traced_anew(self) -> None:
        policy = made(Policy)
        assert isinstance(network_of(policy, observations()), Network)
        assert isinstance(network_of(policy, observations().unsqueeze(1)), str)
        assert isinstance(network_of(policy, observations()), Network)

    def test_without_observations_nothing_is_said(self) -> None:
        policy = made(Policy)
        assert network_of(policy) == UNDECIDED
        assert isinstance(network_of(policy, observations()), Network)
        assert network_of(policy) == UNDECIDED

    def test_a_forward_that_takes_no_mask_is_refused_one(self) -> None:
        mask = torch.ones(48, 6, dtype=torch.bool)
        found = network_of(made(RECOGNISED["logits_plain"]), observations(), mask)
        assert "forward raised TypeError" in str(found)
        assert "action_mask" in str(found)


class Littered:
    """Garbage in a ring, whose finalizer looks at a tensor."""

    memory = torch.zeros(3)

    def __init__(self) -> None:
        self.ring = self

    def __del__(self) -> None:
        assert self.memory.nbytes == 12


def test_finalizers_that_look_at_tensors_are_not_taken_for_forward() -> None:
    class Littering(Policy):
        def mean(self, obs: Tensor) -> Tensor:
            for _ in range(3 * gc.get_threshold()[0]):
                Littered()
            return super().mean(obs)

    assert isinstance(network_of(made(Littering), observations()), Network)
    assert gc.isenabled()


class TestOtherDoors:
    @pytest.mark.parametrize("make", [OnesTimesStd, Halves, SharedTrunk])
    def test_fisher_products(self, make: Make) -> None:
        policy = made(make)
        v = torch.randn(len(flat(policy)), dtype=torch.float64)
        fused = fisher_vector_product(policy, observations(), v, backend="reference")
        generic = fisher_vector_product(Wrapped2(policy), observations(), v)
        assert torch.allclose(fused, generic, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_a_step_in_other_grad_modes(self, mode: Any) -> None:
        policy = made(Policy)
        data = data_of(policy, observations())
        with mode():
            assert step(policy, data).path == "fused"

    def test_autocast_around_the_step(self) -> None:
        policy = made(Policy, torch.float32)
        data = data_of(policy, observations(dtype=torch.float32))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert step(policy, data).path == "fused"

    def test_autocast_inside_forward_is_refused(self) -> None:
        class Low(Policy):
            def mean(self, obs: Tensor) -> Tensor:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    return super().mean(obs).float()

        assert "linear" in reason(made(Low, torch.float32), observations(dtype=torch.float32))

    def test_a_value_function_of_any_make(self) -> None:
        class Value(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, 1))

            def forward(self, obs: Tensor) -> Tensor:
                return self.net(obs).squeeze(-1)

        obs = observations()
        for value in (Value().double(), Value().double().net):
            layers = layers_of(value, obs)
            assert not isinstance(layers, str), layers
            assert torch.equal(forward(layers, obs).flatten(), value(obs).flatten())
            assert layers[0].weight is next(value.parameters())
        assert layers_of(value) == UNDECIDED

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: nn.Linear(WIDTH, 2), "a layer of width 1"),
            (lambda: nn.Sequential(nn.Linear(WIDTH, 1), nn.Softsign()), "a Softsign"),
            (Policy, "returns a Independent"),
        ],
    )
    def test_other_value_functions_are_refused(self, make: Make, words: str) -> None:
        found = layers_of(made(make), observations())
        assert isinstance(found, str)
        assert words in found

    def test_deep_copies_are_their_own(self) -> None:
        policy = made(Policy)
        network_of(policy, observations())
        other = copy.deepcopy(policy)
        found = network_of(other, observations())
        assert isinstance(found, Network)
        assert found.layers[0].weight is other.first.weight


def test_observations_of_another_width_than_before_are_an_error_with_both_shapes() -> None:
    policy = made(Policy)
    optimizer = TRPOOptimizer(policy)
    optimizer.step(**data_of(policy, observations()))
    assert optimizer.path == "fused"
    before = flat(policy)
    data = data_of(policy, observations())
    data["obs"] = torch.cat([data["obs"], data["obs"][:, :1]], dim=1)
    with pytest.raises(ValueError, match=rf"\(48, {WIDTH + 1}\), expected \(N, {WIDTH}\)"):
        optimizer.step(**data)
    assert torch.equal(before, flat(policy))
