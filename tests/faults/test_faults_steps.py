"""Bad options and failing candidates: each gets its error or status, every bit left alone."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from optimizer_cases import (
    GAUSSIAN,
    assert_usable,
    every_backend,
    optimizer,
    result_of,
    setting,
)
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from update_cases import (
    OBS_WIDTH,
    Wrapped,
    bits,
    make_data,
    make_policy,
    same_bits,
)

from trpo_fast import Status, TRPOOptimizer
from trpo_fast.backends.registry import ANALYTIC

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")


BAD_OPTIONS = [
    ("max_kl", [0, -1.0, math.nan, math.inf, "0.01", None, True]),
    ("damping", [-1e-9, math.nan, math.inf, "0.1"]),
    ("cg_iters", [0, -1, 2.5, "10", math.nan]),
    ("cg_tol", [-1e-4, 1.0, math.nan, "1"]),
    ("cg_progress_tol", [-1e-4, 1.0, math.nan, "1"]),
    ("preconditioner", ["jacobi", None, 3]),
    ("precision", ["bf32", "fp64", None]),
    ("fisher_fraction", [0, 1.1, -0.5, math.nan]),
    ("backtrack_coeff", [0, 1, 1.5, -0.1, math.nan, "0.8"]),
    ("max_backtracks", [-1, 1.5, "3"]),
    ("accept_ratio", [-0.1, 1.0, math.nan]),
    ("constraint", ["soft", None, 1]),
    ("beta", [0, -1, math.nan, math.inf]),
    ("adaptive_beta", [1, "yes", None]),
    ("adaptive_damping", [1, "yes", None]),
    ("kl_direction", ["forward", None]),
    ("lr", [-1e-3, math.nan, math.inf, "1"]),
    ("maximize", [1, None, "no"]),
    ("backend", ["gpu", None, 0]),
]


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD_OPTIONS for value in values]
)
def test_bad_options_at_construction_and_after_editing(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        TRPOOptimizer(make_policy(GAUSSIAN), **{name: value})
    policy, data, opt = setting("reference")
    before = bits(policy)
    good = opt.param_groups[0][name]
    opt.param_groups[0][name] = value
    with pytest.raises(ValueError, match=name):
        opt.step(**data)
    assert same_bits(policy, before)
    opt.param_groups[0][name] = good
    assert_usable(opt, data)


def test_a_backend_that_is_not_built_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ANALYTIC, "cuda")
    policy, data, opt = setting("reference")
    before = bits(policy)
    opt.param_groups[0]["backend"] = "cuda"
    with pytest.raises(ValueError, match=r"cuda.*not part of this build"):
        opt.step(**data)
    assert same_bits(policy, before)


@every_backend
def test_a_nan_candidate_is_passed_over_for_a_smaller_one(backend: str) -> None:
    # Huge lr: the first candidates overflow to inf and NaN, later ones are fine.
    policy, data, opt = setting(
        backend, step_size="damped", lr=1e38, backtrack_coeff=1e-6, max_backtracks=12
    )
    opt.step(**data)
    result = result_of(opt)
    assert result.accepted
    assert result.backtracks > 3
    assert all(torch.isfinite(p).all() for p in policy.parameters())


class Validating(nn.Module):
    """A user's module with torch's own argument validation on, and a bare scale parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(OBS_WIDTH, 2)
        self.scale = nn.Parameter(torch.ones(2))
        self.refused = 0

    def forward(self, obs: Tensor) -> Distribution:
        try:
            normal = Normal(self.linear(obs), self.scale.expand(len(obs), 2), validate_args=True)
        except ValueError:
            self.refused += 1
            raise
        return Independent(normal, 1)


@pytest.mark.parametrize("form", ["module", "closure"])
def test_a_candidate_that_torch_s_validation_refuses_is_passed_over(form: str) -> None:
    torch.manual_seed(0)
    module = Validating()
    obs = torch.randn(30, OBS_WIDTH)
    with torch.no_grad():
        old = module(obs)
    actions = old.sample()
    # Actions near the mean are good ones: the scale shrinks, in the first candidates below 0.
    advantages = -(actions - old.mean).square().sum(1)
    advantages = advantages - advantages.mean()

    def closure() -> tuple[Tensor, Distribution]:
        distribution = module(obs)
        ratio = (distribution.log_prob(actions) - old.log_prob(actions)).exp()
        return -(ratio * advantages).mean(), distribution

    opt = TRPOOptimizer(
        module, step_size="damped", lr=100.0, backtrack_coeff=0.5, max_backtracks=20
    )
    if form == "module":
        opt.step(obs=obs, actions=actions, advantages=advantages)
    else:
        opt.step(closure)
    assert module.refused > 2
    assert result_of(opt).accepted
    assert result_of(opt).backtracks >= module.refused


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
@pytest.mark.parametrize("error", [RuntimeError("user"), KeyError("user"), ValueError("user")])
def test_a_closure_that_raises_on_its_nth_call(nth: int, error: Exception) -> None:
    policy = make_policy(GAUSSIAN, dtype=torch.float32)
    data, calls = make_data(policy, GAUSSIAN), []
    module = Wrapped(policy)
    before = bits(policy)

    def closure() -> tuple[Tensor, Distribution]:
        calls.append(1)
        if len(calls) == nth:
            raise error
        distribution = module(data["obs"])
        ratio = (distribution.log_prob(data["actions"]) - data["old_log_prob"]).exp()
        return -(ratio * data["advantages"]).mean(), distribution

    # A tiny coefficient bound makes the search need several candidates.
    opt = TRPOOptimizer(policy.parameters(), step_size="damped", lr=50.0, max_backtracks=30)
    with pytest.raises(type(error)) as caught:
        opt.step(closure)
    assert caught.value is error
    assert same_bits(policy, before)
    opt.step(closure)
    assert result_of(opt).accepted


@every_backend
def test_every_candidate_fails(backend: str) -> None:
    policy, data, opt = setting(backend, step_size="damped", lr=100.0, max_backtracks=2)
    before = bits(policy)
    loss = opt.step(**data)
    result = result_of(opt)
    assert result.status is Status.line_search_failed
    assert result.kl == 0.0
    assert same_bits(policy, before)
    assert result.loss_after == pytest.approx(float(loss))
    opt.param_groups[0]["lr"] = 1.0
    assert_usable(opt, data)


@every_backend
def test_the_bits_of_a_rejected_step_include_signed_zeros(backend: str) -> None:
    policy, data, opt = setting(backend, step_size="damped", lr=100.0, max_backtracks=2)
    with torch.no_grad():
        policy.body[0].bias.fill_(-0.0)
    before = bits(policy)
    opt.step(**data)
    assert not result_of(opt).accepted
    assert same_bits(policy, before)


@every_backend
def test_lr_0_is_an_exact_no_op(backend: str) -> None:
    policy, data, opt = setting(backend, lr=0.0)
    with torch.no_grad():
        policy.body[0].bias.fill_(-0.0)
    before = bits(policy)
    opt.step(**data)
    assert result_of(opt).status is Status.zero_step
    assert same_bits(policy, before)


def test_the_fallback_is_said_once() -> None:
    from trpo_fast import FallbackWarning
    from trpo_fast.base.errors import _said

    class NeverSeen(Wrapped):
        pass

    policy = make_policy(GAUSSIAN)
    data = make_data(policy, GAUSSIAN)
    opt = TRPOOptimizer(NeverSeen(policy))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt.step(**data)
        opt.step(**data)
    assert [w.category for w in caught] == [FallbackWarning]
    assert "NeverSeen" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert any("NeverSeen" in text for text in _said)


@pytest.mark.reliability("membership")
@every_backend
@pytest.mark.parametrize("how", ["layer", "assign"])
def test_a_parameter_that_was_replaced_is_named(backend: str, how: str) -> None:
    policy, data, opt = setting(backend)
    if how == "layer":
        policy.body[0] = torch.nn.Linear(*reversed(policy.body[0].weight.shape))
    else:
        state = {name: t.clone() for name, t in policy.state_dict().items()}
        policy.load_state_dict(state, assign=True)
    before = bits(policy)
    named = r"body\.0\.weight" if how == "layer" else r"log_std.*body\.0\.weight"
    with pytest.raises(ValueError, match=rf"{named}.* was replaced .* make a new TRPOOptimizer"):
        opt.step(**data)
    assert same_bits(policy, before)
    assert_usable(optimizer(policy, backend), data)
