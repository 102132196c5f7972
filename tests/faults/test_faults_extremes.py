"""Inputs at the limits of the number formats, and huge batches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from optimizer_cases import (
    BACKENDS,
    assert_usable,
    every_backend,
    every_case,
    optimizer,
    result_of,
    setting,
)
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution
from update_cases import (
    BY_NAME,
    OBS_WIDTH,
    Case,
    bits,
    loss_and_kl,
    make_policy,
    old_distribution,
    same_bits,
)

from trpo_fast import Status, TRPOOptimizer, fisher_vector_product
from trpo_fast.base.tensors import all_finite

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")


@every_backend
@pytest.mark.parametrize("constraint", ["hard", "penalty", "none"])
def test_a_step_beyond_the_dtype_is_rejected(backend: str, constraint: str) -> None:
    policy, data, opt = setting(backend, lr=1e300, constraint=constraint, step_size="damped")
    before = bits(policy)
    opt.step(**data)
    assert result_of(opt).status == Status.non_finite
    assert same_bits(policy, before)


@every_backend
def test_a_loss_that_is_not_finite_is_no_improvement(backend: str) -> None:
    _, data, opt = setting(backend)
    opt.step(**dict(data, old_log_prob=torch.full((24,), -1e4)))
    result = result_of(opt)
    assert result.status is Status.non_finite
    assert not math.isfinite(result.loss_before)
    assert result.actual_improvement == 0


@every_backend
@pytest.mark.parametrize("name", ["categorical", "bernoulli"])
def test_a_natural_gradient_step_to_certainty_is_taken(backend: str, name: str) -> None:
    """Its KL is finite, though probabilities round to 0 and 1."""
    _, data, opt = setting(backend, BY_NAME[name], constraint="none", lr=1e4)
    opt.step(**data)
    assert result_of(opt).accepted
    assert 100 < result_of(opt).kl < math.inf


@every_backend
@every_case
def test_zero_gradient_is_a_no_op(backend: str, case: Case) -> None:
    policy, data, opt = setting(backend, case)
    before = bits(policy)
    opt.step(**dict(data, advantages=torch.zeros(24)))
    assert result_of(opt).status is Status.zero_gradient
    assert same_bits(policy, before)
    assert_usable(opt, data)


@every_backend
@every_case
@pytest.mark.parametrize("scale", [1e20, 1e-20, 1e38, 1e-38, 1e-44])
def test_advantages_of_any_scale(backend: str, case: Case, scale: float) -> None:
    policy, data, opt = setting(backend, case)
    old, before = old_distribution(policy, data), bits(policy)
    advantages = (data["advantages"].double().clamp(-3, 3) * scale).float()
    opt.step(**dict(data, advantages=advantages))
    result = result_of(opt)
    assert all(torch.isfinite(p).all() for p in policy.parameters())
    assert math.isfinite(result.loss_before)
    assert math.isfinite(result.expected_improvement)
    if scale != 1e-44:  # there the advantages themselves have hardly a digit
        assert result.accepted
        plain = make_policy(case, dtype=torch.float32)
        reference = optimizer(plain, backend)
        reference.step(**dict(data, advantages=data["advantages"].clamp(-3, 3)))
        assert result.kl == pytest.approx(result_of(reference).kl, rel=1e-3)
        expected = scale * result_of(reference).actual_improvement
        assert result.actual_improvement == pytest.approx(expected, rel=1e-3)
    if result.accepted:
        assert float(loss_and_kl(policy, data, old)[1].detach()) <= 0.01 * (1 + 1e-5)
    else:
        assert same_bits(policy, before)


@every_backend
def test_float64_advantages_beyond_float32(backend: str) -> None:
    _, data, opt = setting(backend)
    loss = opt.step(**dict(data, advantages=data["advantages"].double() * 1e200))
    assert float(loss) == result_of(opt).loss_before
    assert math.isfinite(loss)
    assert abs(loss) > 1e198
    assert result_of(opt).accepted
    assert result_of(opt).actual_improvement > 1e198


@every_backend
@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-44])
def test_weights_of_any_scale(backend: str, scale: float) -> None:
    policy, data, opt = setting(backend)
    opt.step(**dict(data, weights=torch.full((24,), scale)))
    plain, _, reference = setting(backend)
    reference.step(**data)
    assert result_of(opt).accepted
    for p, q in zip(policy.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-6)


@every_backend
@pytest.mark.parametrize("log_std", [-50.0, 50.0, -80.0, 80.0])
@pytest.mark.parametrize("name", ["gaussian", "gaussian_state_std"])
def test_extreme_log_std(backend: str, log_std: float, name: str) -> None:
    policy, data, opt = setting(backend, BY_NAME[name])
    with torch.no_grad():
        if policy.log_std is not None:
            policy.log_std.fill_(log_std)
        else:
            policy.body[-1].bias[2:] = log_std
    before = bits(policy)
    try:
        opt.step(**dict(data, old_log_prob=None))
    except ValueError as error:  # torch's own check of the distribution, on a user's module
        assert "scale" in str(error)  # noqa: PT017
        assert same_bits(policy, before)
        return
    assert all(torch.isfinite(p).all() for p in policy.parameters())
    if not result_of(opt).accepted:
        assert same_bits(policy, before)


@every_backend
@every_case
def test_extreme_outputs(backend: str, case: Case) -> None:
    policy, data, opt = setting(backend, case)
    with torch.no_grad():
        signs = torch.ones_like(policy.body[-1].bias)
        signs[::2] = -1
        policy.body[-1].bias.add_(1e4 * signs * (0.01 if "state_std" in case.name else 1))
    before = bits(policy)
    opt.step(**data)
    assert all(torch.isfinite(p).all() for p in policy.parameters())
    if not result_of(opt).accepted:
        assert same_bits(policy, before)


class InfLogits(nn.Module):
    """A user's own way of masking: -inf logits in torch's plain Categorical."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(OBS_WIDTH, 4)

    def forward(self, obs: Tensor) -> Distribution:
        forbidden = torch.zeros(4, dtype=torch.bool)
        forbidden[2] = True
        logits = self.linear(obs).masked_fill(forbidden, -math.inf)
        return Categorical(logits=logits, validate_args=False)


def test_masked_inf_logits_of_a_user_module() -> None:
    torch.manual_seed(0)
    module = InfLogits()
    obs = torch.randn(50, OBS_WIDTH)
    actions = module(obs).sample()
    opt, before = TRPOOptimizer(module), bits(module)
    opt.step(obs=obs, actions=actions, advantages=torch.randn(50))
    assert all(torch.isfinite(p).all() for p in module.parameters())
    result = result_of(opt)
    assert result.accepted or same_bits(module, before)
    assert result.kl <= 0.01


@every_backend
@every_case
def test_rows_of_weight_0_may_hold_anything(backend: str, case: Case) -> None:
    policy, data, opt = setting(backend, case)
    weights = torch.ones(24)
    weights[::3] = 0
    kept = weights > 0
    opt.step(**{name: value[kept] for name, value in data.items()})
    rubbish: dict[str, Any] = {}
    for name, value in data.items():
        value = value.clone()
        if value.is_floating_point():
            value[::3] = math.nan
        elif value.dtype is torch.bool:
            value[::3] = False
        else:
            value[::3] = 2**40
        rubbish[name] = value
    other, _, weighted = setting(backend, case)
    weighted.step(**rubbish, weights=weights)
    assert result_of(weighted).accepted
    assert result_of(weighted).kl == pytest.approx(result_of(opt).kl, rel=1e-5)
    for p, q in zip(policy.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-4, atol=1e-6)


@every_backend
def test_no_n_by_n_tensor_is_made(backend: str) -> None:
    # 40,000 rows squared would be 6.4 GB.
    _policy, data, opt = setting(backend, rows=40_000)
    opt.step(**data)
    assert result_of(opt).accepted


MILLION_ROWS = """
import pathlib, torch, warnings
from gymnasium import spaces
from trpo_fast import MlpPolicy, TRPOOptimizer

warnings.simplefilter("ignore")
torch.set_num_threads(1)

class Wrapped(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, obs):
        return self.inner(-(-obs))

policy = MlpPolicy(spaces.Box(-1, 1, (8,)), spaces.Box(-1, 1, (2,)), (16, 16))
obs, actions, advantages = (torch.randn(1_000_000, *s) for s in ((8,), (2,), ()))
actions[-1], advantages[-1] = 3.0, 1e6  # what the last row says must count
wrapped = {wrapped}

def most():  # MB; ru_maxrss would begin at the size of the process that started this one
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

before = most()
opt = TRPOOptimizer(Wrapped(policy) if wrapped else policy, backend={backend!r}, cg_iters=1)
opt.step(obs=obs, actions=actions, advantages=advantages)
result = opt.last_result
print(result.status.name, most() - before, policy(obs[-1:]).log_prob(actions[-1:]).item())
"""


@pytest.mark.parametrize(
    "backend",
    [pytest.param(name, marks=() if name == "cpu" else pytest.mark.slow) for name in BACKENDS],
)
def test_a_million_rows_in_bounded_memory(backend: str, run_python: Any) -> None:
    wrapped = backend == "generic"
    code = MILLION_ROWS.replace("{wrapped}", str(wrapped))
    code = code.replace("{backend!r}", repr("auto" if wrapped else backend))
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    status, grown, log_prob = done.stdout.split()
    assert status == "accepted"
    # The activations alone of all rows at once, with their graph, would be several times that.
    assert float(grown) < 700
    assert float(log_prob) > -10.85  # -(3^2) - log(2 pi) = -10.84 before


@pytest.mark.reliability("no_curvature")
@every_backend
@pytest.mark.parametrize("preconditioner", ["none", "diagonal", "kfac"])
@pytest.mark.parametrize("log_std", [20.0, 40.0, 44.0, 45.0, 60.0])
@pytest.mark.parametrize("damping", [0.0, 1e-40, 1e39])
def test_curvature_near_0_or_damping_beyond_the_dtype_is_a_status(
    backend: str, preconditioner: str, log_std: float, damping: float
) -> None:
    if backend == "generic" and preconditioner != "none":
        pytest.skip("served by the analytic backends alone")
    policy, data, _ = setting(backend)
    assert policy.log_std is not None
    policy.log_std.requires_grad_(False).fill_(log_std)
    before = bits(policy)
    opt = optimizer(policy, backend, damping=damping, preconditioner=preconditioner)
    del data["old_log_prob"]
    opt.step(**data)
    result = result_of(opt)
    assert result.gradient_norm > 0 or log_std > 43
    assert result.accepted or same_bits(policy, before)
    assert not result.accepted or 0 <= result.kl <= opt.param_groups[0]["max_kl"]
    assert all_finite(torch.cat([p.detach().flatten() for p in policy.parameters()]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fisher_product_with_a_damping_beyond_the_dtype(dtype: torch.dtype) -> None:
    policy, data, _ = setting("reference")
    policy = policy.to(dtype)
    v = torch.ones(sum(p.numel() for p in policy.parameters()), dtype=dtype)
    product = fisher_vector_product(policy, data["obs"].to(dtype), v, damping=1e39)
    expected = math.inf if dtype is torch.float32 else 1e39
    assert torch.equal(product, torch.full_like(v, expected))
