"""Bad inputs and faults of the update: each gets its error, and leaves every bit alone."""

from __future__ import annotations

import io
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal
from update_cases import (
    BY_NAME,
    CASES,
    OBS_WIDTH,
    Case,
    Wrapped,
    bits,
    loss_and_kl,
    make_data,
    make_policy,
    old_distribution,
    same_bits,
)

from trpo_fast import MlpPolicy, Status, TRPOOptimizer, TrustRegionResult
from trpo_fast.backends import ANALYTIC

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")
BACKENDS = ["generic", *ANALYTIC]
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
GAUSSIAN = BY_NAME["gaussian"]


def optimizer(policy: Any, backend: str, **options: Any) -> TRPOOptimizer:
    if backend == "generic":
        return TRPOOptimizer(Wrapped(policy), **options)
    return TRPOOptimizer(policy, backend=backend, **options)


def setting(
    backend: str, case: Case = GAUSSIAN, rows: int = 24, **options: Any
) -> tuple[MlpPolicy, dict[str, Any], TRPOOptimizer]:
    policy = make_policy(case, dtype=torch.float32)
    return policy, make_data(policy, case, rows=rows), optimizer(policy, backend, **options)


def result_of(opt: TRPOOptimizer) -> TrustRegionResult:
    assert opt.last_result is not None
    return opt.last_result


def assert_usable(opt: TRPOOptimizer, data: dict[str, Any]) -> None:
    opt.step(**data)
    assert result_of(opt).accepted


@every_backend
@pytest.mark.parametrize(
    ("name", "index", "value", "text"),
    [
        ("obs", (7, 2), math.nan, r"obs\[7, 2\] is nan"),
        ("obs", (3, 4), -math.inf, r"obs\[3, 4\] is -inf"),
        ("advantages", (5,), math.inf, r"advantages\[5\] is inf"),
        ("advantages", (6,), math.nan, r"advantages\[6\] is nan"),
        ("old_log_prob", (9,), math.nan, r"old_log_prob\[9\] is nan"),
        ("old_log_prob", (9,), -math.inf, r"old_log_prob\[9\] is -inf"),
        ("actions", (11, 1), math.nan, r"actions\[11, 1\] is nan"),
        ("weights", (2,), math.nan, r"weights\[2\] is nan"),
    ],
)
def test_non_finite_input_is_named_with_its_first_bad_index(
    backend: str, name: str, index: tuple[int, ...], value: float, text: str
) -> None:
    policy, data, opt = setting(backend)
    before = bits(policy)
    bad = dict(data, weights=torch.ones(24))
    bad[name] = bad[name].clone()
    bad[name][index] = value
    bad[name][(-1, *index[1:])] = value
    with pytest.raises(ValueError, match=text):
        opt.step(**bad)
    assert same_bits(policy, before)
    assert_usable(opt, data)


@every_backend
def test_a_bad_row_keeps_its_index_when_earlier_rows_have_weight_0(backend: str) -> None:
    _, data, opt = setting(backend)
    weights = torch.ones(24)
    weights[:5] = 0
    data["advantages"][8] = math.nan
    with pytest.raises(ValueError, match=r"advantages\[8\] is nan"):
        opt.step(**data, weights=weights)


@every_backend
def test_nan_in_a_parameter_is_named(backend: str) -> None:
    policy, data, opt = setting(backend)
    with torch.no_grad():
        policy.body[2].bias[1] = math.nan
    before = bits(policy)
    with pytest.raises(ValueError, match=r"body\.2\.bias holds a NaN"):
        opt.step(**data)
    assert same_bits(policy, before)


@every_backend
def test_no_rows(backend: str) -> None:
    policy, data, opt = setting(backend)
    before = bits(policy)
    with pytest.raises(ValueError, match="empty batch"):
        opt.step(**{name: value[:0] for name, value in data.items()})
    assert same_bits(policy, before)
    assert_usable(opt, data)


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
    opt.step(**dict(data, advantages=data["advantages"].double() * 1e200))
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
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"obs": torch.zeros(24, 4)}, r"\(24, 4\)|24x4"),
        ({"obs": torch.zeros(24)}, "24"),
        ({"obs": torch.tensor(1.0)}, "obs is a scalar"),
        ({"obs": torch.zeros(23, OBS_WIDTH)}, r"expected \(?23"),
        ({"advantages": torch.zeros(23)}, r"advantages has shape \(23,\), expected \(24,\)"),
        ({"advantages": torch.zeros(24, 1)}, r"advantages has shape \(24, 1\)"),
        ({"old_log_prob": torch.zeros(24, 3)}, r"old_log_prob has shape \(24, 3\)"),
        ({"old_log_prob": torch.zeros(24, 1)}, r"old_log_prob has shape \(24, 1\)"),
        ({"weights": torch.ones(24, 1)}, r"weights has shape \(24, 1\)"),
        ({"actions": torch.zeros(24, 2)}, r"actions have shape \(24, 2\), expected \(24, 3\)"),
        ({"actions": torch.zeros(24)}, r"actions have shape \(24,\), expected \(24, 3\)"),
        ({"actions": torch.zeros(23, 3)}, r"actions has shape \(23, 3\), expected 24 rows"),
        ({"actions": None}, "actions is missing"),
        ({"advantages": None}, "advantages is missing"),
        ({"obs": None}, "obs is missing"),
        ({"weights": -torch.ones(24)}, r"weights\[0\] is -1.0"),
        ({"weights": torch.zeros(24)}, "weights are all 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_wrong_shapes_show_expected_and_got(
    backend: str, change: dict[str, Any], text: str
) -> None:
    policy, data, opt = setting(backend)
    before = bits(policy)
    with pytest.raises((ValueError, RuntimeError), match=text):
        opt.step(**dict(data, **change))
    assert same_bits(policy, before)
    assert_usable(opt, data)


@every_backend
@pytest.mark.parametrize("name", ["categorical", "categorical_masked"])
def test_a_column_of_categorical_actions_is_not_broadcast(backend: str, name: str) -> None:
    policy, data, opt = setting(backend, BY_NAME[name])
    before = bits(policy)
    with pytest.raises(ValueError, match=r"actions have shape \(24, 1\), expected \(24,\)"):
        opt.step(**dict(data, actions=data["actions"].unsqueeze(1)))
    assert same_bits(policy, before)


@every_backend
def test_float64_obs_with_a_float32_policy_is_cast(backend: str) -> None:
    policy, data, opt = setting(backend)
    opt.step(**{name: value.double() for name, value in data.items()})
    other, _, reference = setting(backend)
    reference.step(**data)
    assert result_of(opt).accepted
    for p, q in zip(policy.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@every_backend
def test_an_all_float64_policy(backend: str) -> None:
    policy = make_policy(GAUSSIAN, dtype=torch.float64)
    data = make_data(policy, GAUSSIAN)
    opt = optimizer(policy, backend)
    loss = opt.step(**data)
    assert loss.dtype is torch.float64
    assert result_of(opt).accepted
    assert result_of(opt).kl == pytest.approx(0.0075, rel=0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
def test_other_dtypes_are_refused_clearly(dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.zeros(3, dtype=dtype))
    with pytest.raises(ValueError, match=f"parameter 0 is torch.strided {dtype}.*float32"):
        TRPOOptimizer([parameter])
    policy = make_policy(GAUSSIAN)
    opt = TRPOOptimizer(policy)
    data = make_data(policy, GAUSSIAN)
    policy.to(torch.bfloat16)
    before = [p.detach().clone() for p in policy.parameters()]
    with pytest.raises(ValueError, match=r"log_std is torch.strided torch.bfloat16"):
        opt.step(**data)
    assert all(torch.equal(p, q) for p, q in zip(policy.parameters(), before, strict=True))


def test_sparse_parameters_and_inputs_are_refused() -> None:
    sparse = nn.Parameter(torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match="sparse"):
        TRPOOptimizer([sparse])
    policy, data, opt = setting("generic")
    before = bits(policy)
    with pytest.raises(ValueError, match="obs must be dense and real"):
        opt.step(**dict(data, obs=data["obs"].to_sparse()))
    with pytest.raises(ValueError, match="obs must be dense and real"):
        opt.step(**dict(data, obs=data["obs"].to(torch.complex64)))
    assert same_bits(policy, before)


def test_parameters_of_two_dtypes_are_refused() -> None:
    policy = make_policy(GAUSSIAN, dtype=torch.float32)
    policy.body[2].double()
    with pytest.raises(ValueError, match=r"body\.2\.weight is torch.float64.*log_std"):
        TRPOOptimizer(policy)


@every_backend
@pytest.mark.parametrize("name", ["obs", "actions", "advantages", "old_log_prob", "weights"])
def test_another_device_is_named(backend: str, name: str) -> None:
    policy, data, opt = setting(backend)
    before = bits(policy)
    data["weights"] = torch.ones(24)
    with pytest.raises(ValueError, match=f"{name} is on meta, the parameters are on cpu"):
        opt.step(**dict(data, **{name: data[name].to("meta")}))
    assert same_bits(policy, before)


@every_backend
@pytest.mark.parametrize(
    ("name", "index", "value"),
    [
        ("categorical", (3,), 4),
        ("categorical", (3,), -1),
        ("categorical_masked", (0,), 5),
        ("multi_categorical", (5, 1), 4),
        ("multi_categorical", (5, 0), -1),
        ("multi_categorical_masked", (5, 0), 2**40),
    ],
)
def test_a_discrete_action_out_of_range(
    backend: str, name: str, index: tuple[int, ...], value: int
) -> None:
    policy, data, opt = setting(backend, BY_NAME[name])
    before = bits(policy)
    actions = data["actions"].clone()
    actions[index] = value
    where = r"\[" + ", ".join(map(str, index)) + r"\]"
    with pytest.raises(IndexError, match=f"actions{where} is {value}, expected 0 to"):
        opt.step(**dict(data, actions=actions))
    assert same_bits(policy, before)
    assert_usable(opt, data)


@every_backend
def test_fractional_discrete_actions(backend: str) -> None:
    _policy, data, opt = setting(backend, BY_NAME["categorical"])
    with pytest.raises(ValueError, match="whole numbers"):
        opt.step(**dict(data, actions=data["actions"] + 0.5))
    opt.step(**dict(data, actions=data["actions"].float()))
    assert result_of(opt).accepted


@every_backend
def test_an_action_that_its_mask_forbids(backend: str) -> None:
    policy, data, opt = setting(backend, BY_NAME["categorical_masked"])
    before = bits(policy)
    mask = data["action_mask"].clone()
    mask[4] = True
    mask[4, data["actions"][4]] = False
    if backend == "generic":
        opt.step(**dict(data, action_mask=mask, old_log_prob=None))
        assert result_of(opt).status is Status.non_finite
    else:
        with pytest.raises(ValueError, match="row 4 is one that its action_mask forbids"):
            opt.step(**dict(data, action_mask=mask))
    assert same_bits(policy, before)


@every_backend
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda mask: mask[:, :3], r"action_mask has shape \(24, 3\), expected \(24, 5\)"),
        (lambda mask: mask[:9], "action_mask has shape .* expected 24 rows"),
        (lambda mask: mask & (torch.arange(24) != 6).unsqueeze(1), r"no action at index \[6\]"),
    ],
    ids=["narrow", "short", "empty-row"],
)
def test_bad_masks(backend: str, change: Any, text: str) -> None:
    policy, data, opt = setting(backend, BY_NAME["categorical_masked"])
    before = bits(policy)
    with pytest.raises(ValueError, match=text):
        opt.step(**dict(data, action_mask=change(data["action_mask"])))
    assert same_bits(policy, before)
    assert_usable(opt, data)


@every_backend
def test_a_mask_for_a_head_without_one(backend: str) -> None:
    _policy, data, opt = setting(backend)
    with pytest.raises(ValueError, match="needs a Discrete or MultiDiscrete"):
        opt.step(**data, action_mask=torch.ones(24, 3, dtype=torch.bool))


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
import resource, torch, warnings
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
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
opt = TRPOOptimizer(Wrapped(policy) if wrapped else policy, backend={backend!r}, cg_iters=1)
opt.step(obs=obs, actions=actions, advantages=advantages)
result = opt.last_result
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(result.status.name, grown, policy(obs[-1:]).log_prob(actions[-1:]).item())
"""


@pytest.mark.parametrize(
    "backend",
    [pytest.param(name, marks=() if name == "cpu" else pytest.mark.slow) for name in BACKENDS],
)
def test_a_million_rows_in_bounded_memory(backend: str, run_python: Any) -> None:
    wrapped = backend == "generic"
    code = MILLION_ROWS.replace("{wrapped}", str(wrapped))
    code = code.replace("{backend!r}", repr("auto" if wrapped else backend))
    done = run_python(code, timeout=300)
    assert done.returncode == 0, done.stderr
    status, grown, log_prob = done.stdout.split()
    assert status == "accepted"
    # The activations alone of all rows at once, with their graph, would be several times that.
    assert float(grown) < 700
    assert float(log_prob) > -10.85  # -(3^2) - log(2 pi) = -10.84 before


BAD_OPTIONS = [
    ("max_kl", [0, -1.0, math.nan, math.inf, "0.01", None, True]),
    ("damping", [-1e-9, math.nan, math.inf, "0.1"]),
    ("cg_iters", [0, -1, 2.5, "10", math.nan]),
    ("cg_tol", [-1e-4, 1.0, math.nan, "1"]),
    ("preconditioner", ["diagonal", "kfac", "jacobi", None, 3]),
    ("precision", ["bf16", "bf16x3", "fp64", None]),
    ("fisher_fraction", [0, 1.1, -0.5, math.nan]),
    ("backtrack_coeff", [0, 1, 1.5, -0.1, math.nan, "0.8"]),
    ("max_backtracks", [-1, 1.5, "3"]),
    ("accept_ratio", [-0.1, 1.0, math.nan]),
    ("constraint", ["soft", None, 1]),
    ("beta", [0, -1, math.nan, math.inf]),
    ("adaptive_beta", [1, "yes", None]),
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


def test_options_not_served_yet_say_what_is() -> None:
    with pytest.raises(ValueError, match=r"kfac.*not served.*use one of auto, none"):
        TRPOOptimizer(make_policy(GAUSSIAN), preconditioner="kfac")
    with pytest.raises(ValueError, match=r"bf16.*not served.*use one of auto, fp32"):
        TRPOOptimizer(make_policy(GAUSSIAN), precision="bf16")
    policy, data, opt = setting("reference")
    before = bits(policy)
    opt.param_groups[0]["backend"] = "cuda"
    with pytest.raises(ValueError, match=r"cuda.*not part of this build"):
        opt.step(**data)
    assert same_bits(policy, before)


def test_numpy_arrays_are_inputs() -> None:
    _, data, opt = setting("reference")
    opt.step(**{name: value.numpy() for name, value in data.items()})
    assert result_of(opt).accepted


@every_backend
@pytest.mark.parametrize("value", ["obs", object(), [[1.0], [1.0, 2.0]], {"a": "b"}])
def test_obs_that_are_no_tensor(backend: str, value: object) -> None:
    policy, data, opt = setting(backend)
    before = bits(policy)
    with pytest.raises(TypeError, match=r"obs.* does not become a tensor"):
        opt.step(**dict(data, obs=value))
    assert same_bits(policy, before)


@pytest.mark.parametrize("container", [list, tuple])
def test_nested_observations_of_the_wrong_kind_for_a_perceptron(container: type) -> None:
    _policy, data, opt = setting("reference")
    with pytest.raises(TypeError, match="obs is a tuple, expected one tensor"):
        opt.step(**dict(data, obs=container([data["obs"], data["obs"]])))


def test_numpy_numbers_are_numbers() -> None:
    _policy, data, opt = setting("reference", max_kl=np.float32(0.02), cg_iters=np.int64(5))
    opt.step(**data)
    assert result_of(opt).cg_iters == 5
    buffer = io.BytesIO()
    torch.save(opt.state_dict(), buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == opt.state_dict()


@every_backend
def test_a_nan_candidate_is_passed_over_for_a_smaller_one(backend: str) -> None:
    # Huge lr: the first candidates overflow to inf and NaN, later ones are fine.
    policy, data, opt = setting(backend, lr=1e38, backtrack_coeff=1e-6, max_backtracks=12)
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

    opt = TRPOOptimizer(module, lr=100.0, backtrack_coeff=0.5, max_backtracks=20)
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
    opt = TRPOOptimizer(policy.parameters(), lr=50.0, max_backtracks=30)
    with pytest.raises(type(error)) as caught:
        opt.step(closure)
    assert caught.value is error
    assert same_bits(policy, before)
    opt.step(closure)
    assert result_of(opt).accepted


@every_backend
def test_every_candidate_fails(backend: str) -> None:
    policy, data, opt = setting(backend, lr=100.0, max_backtracks=2)
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
    policy, data, opt = setting(backend, lr=100.0, max_backtracks=2)
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
    from trpo_fast.errors import _said

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
