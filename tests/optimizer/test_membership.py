"""A module that gains or loses trainable parameters after the optimizer was made is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizer_cases import BACKENDS, closure_of, optimizer, result_of, setting
from torch import nn
from update_cases import bits, same_bits

from trpo_fast import TRPOOptimizer

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")


def added_layer(policy: Any) -> None:
    policy.extra = nn.Linear(2, 2)


def added_bias(policy: Any) -> None:
    policy.scale = nn.Parameter(torch.ones(1))


def added_to_the_body(policy: Any) -> None:
    policy.body.append(nn.Linear(policy.head.outputs, policy.head.outputs))


def lost_log_std(policy: Any) -> None:
    policy.log_std = None


def lost_bias(policy: Any) -> None:
    policy.body[0].bias = None


def became_a_buffer(policy: Any) -> None:
    held = policy.log_std.detach()
    del policy.log_std
    policy.register_buffer("log_std", held)


def replaced_layer(policy: Any) -> None:
    policy.body[0] = nn.Linear(policy.body[0].in_features, policy.body[0].out_features)


def weight_norm(policy: Any) -> None:
    nn.utils.parametrizations.weight_norm(policy.body[0])


CHANGES: list[tuple[Callable[[Any], None], str]] = [
    (added_layer, r"extra\.weight, .*extra\.bias was added"),
    (added_bias, r"scale was added"),
    (added_to_the_body, r"body\.5\.weight, .*body\.5\.bias was added"),
    (lost_log_std, r"log_std is no parameter of the module any more"),
    (lost_bias, r"body\.0\.bias is no parameter"),
    (became_a_buffer, r"log_std is no parameter"),
    (replaced_layer, r"body\.0\.weight, .*body\.0\.bias was replaced"),
    (weight_norm, r"body\.0\.weight is no parameter"),
]


@pytest.mark.reliability("membership")
@pytest.mark.parametrize("path", [*BACKENDS, "closure"])
@pytest.mark.parametrize(
    ("change", "words"), CHANGES, ids=lambda item: getattr(item, "__name__", "")
)
def test_it_is_named_on_every_path(path: str, change: Callable[[Any], None], words: str) -> None:
    policy, data, _ = setting("generic" if path == "closure" else path)
    opt = TRPOOptimizer(policy) if path == "closure" else optimizer(policy, path)

    def step() -> None:
        if path == "closure":
            opt.step(closure_of(policy, data))
        else:
            opt.step(**data)

    step()
    assert result_of(opt).accepted
    change(policy)
    before = bits(policy)
    with pytest.raises(ValueError, match=f"{words}.*make a new TRPOOptimizer"):
        step()
    assert same_bits(policy, before)


@pytest.mark.reliability("membership")
@pytest.mark.parametrize("path", BACKENDS)
def test_frozen_additions_and_frozen_losses_are_no_matter(path: str) -> None:
    policy, data, _ = setting(path)
    assert policy.log_std is not None
    policy.log_std.requires_grad_(False)
    opt = optimizer(policy, path)
    policy.extra = nn.Linear(2, 2).requires_grad_(False)
    opt.step(**data)
    policy.body[0].bias.requires_grad_(False)
    opt.step(**data)
    policy.body[0].bias.requires_grad_(True)
    opt.step(**data)
    assert result_of(opt).accepted


def test_a_closure_over_bare_parameters_has_no_module_to_compare() -> None:
    policy, data, _ = setting("generic")
    opt = TRPOOptimizer(policy.parameters())
    added_bias(policy)
    opt.step(closure_of(policy, data))
    assert result_of(opt).accepted
