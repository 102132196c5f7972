"""Bad inputs of the update: each gets its error, and leaves every bit alone."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from optimizer_cases import GAUSSIAN, assert_usable, every_backend, optimizer, result_of, setting
from torch import nn
from update_cases import (
    BY_NAME,
    OBS_WIDTH,
    bits,
    make_data,
    make_policy,
    same_bits,
)

from trpo_fast import Status, TRPOOptimizer

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")


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
@pytest.mark.parametrize("obs", [{}, (), [{}], [()]])
def test_a_nesting_without_a_tensor_has_no_rows(backend: str, obs: Any) -> None:
    policy, data, opt = setting(backend)
    before = bits(policy)
    with pytest.raises(ValueError, match="empty batch"):
        opt.step(**{**data, "obs": obs})
    assert same_bits(policy, before)


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
        ({"obs": list(torch.zeros(24, OBS_WIDTH))}, "obs is 24 arrays; if each is a row, stack"),
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
