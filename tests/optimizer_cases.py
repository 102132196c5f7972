"""How the tests of the optimizer set it up, and the modules they step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    Independent,
    Normal,
)
from update_cases import (
    BY_NAME,
    CASES,
    HOST_BACKENDS,
    OBS_WIDTH,
    Case,
    Wrapped,
    make_data,
    make_policy,
)

from trpo_fast import MlpPolicy, TRPOOptimizer, TrustRegionResult

BACKENDS = ["generic", *HOST_BACKENDS]
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


def closure_of(module: nn.Module, data: dict[str, Any]) -> Callable[[], tuple[Any, ...]]:
    def closure() -> tuple[Any, ...]:
        extra = {} if "action_mask" not in data else {"action_mask": data["action_mask"]}
        distribution = module(data["obs"], **extra)
        ratio = (distribution.log_prob(data["actions"]) - data["old_log_prob"]).exp()
        values = ratio * data["advantages"]
        if "weights" not in data:
            return -values.mean(), distribution
        w = data["weights"]
        return -(w * values).sum() / w.sum(), distribution, w

    return closure


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


class Trunk(nn.Module):
    """A shared trunk with a policy and a value head, and a parameter named to mislead."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(OBS_WIDTH, 8)
        self.value_like_name_in_the_policy = nn.Parameter(0.5 * torch.ones(8))
        self.mean = nn.Linear(8, 2)
        self.critic = nn.Linear(8, 1)
        self.log_std = nn.Parameter(torch.zeros(2))

    def hidden(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.trunk(obs)) * self.value_like_name_in_the_policy

    def forward(self, obs: Tensor) -> Distribution:
        return Independent(Normal(self.mean(self.hidden(obs)), self.log_std.exp()), 1)

    def value(self, obs: Tensor) -> Tensor:
        return self.critic(self.hidden(obs)).squeeze(1)


def trunk_data(module: Trunk) -> dict[str, Tensor]:
    torch.manual_seed(1)
    obs = torch.randn(50, OBS_WIDTH)
    with torch.no_grad():
        distribution = module(obs)
        actions = distribution.sample()
    return {
        "obs": obs,
        "actions": actions,
        "advantages": torch.randn(50),
        "old_log_prob": distribution.log_prob(actions),
    }
