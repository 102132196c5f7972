"""trpo_fast.sb3.TRPO: options at the ends of their ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trpo_fast.sb3 import TRPO

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning"),
]
SMALL = {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2, "seed": 0, "device": "cpu"}


def made(options: dict[str, Any]) -> Any:
    return TRPO("MlpPolicy", "CartPole-v1", **{**SMALL, **options})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("target_kl", 0.0),
        ("target_kl", float("inf")),
        ("cg_damping", -1.0),
        ("cg_max_steps", 0),
        ("line_search_max_iter", 0),
        ("line_search_shrinking_factor", 1.0),
    ],
)
def test_an_option_out_of_range_is_refused_by_sb3s_name(option: str, value: float) -> None:
    model = made({option: value})
    before = [p.detach().clone() for p in model.policy.parameters()]
    with pytest.raises(ValueError, match=f"^{option} must be a .* got {value}$"):
        model.learn(64)
    assert all(map(torch.equal, before, model.policy.parameters()))


@pytest.mark.parametrize("factor", [0, -3, 1])
def test_no_sub_sampling_is_sb3s(factor: int) -> None:
    results = []
    for each in (factor, 1):
        model = made({"sub_sampling_factor": each})  # seeds the generators
        model.learn(64)
        results.append(model.last_result)
    assert results[0] == results[1]


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Softmin])  # the native fit, and torch's
def test_without_critic_updates_there_is_no_value_loss(activation: type[nn.Module]) -> None:
    model = made({"n_critic_updates": 0, "policy_kwargs": {"activation_fn": activation}})
    model.learn(64)
    assert np.isnan(model.logger.name_to_value["train/value_loss"])
