"""Values of a rollout, natively or by the module's own forward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from trpo_fast import ValueFunction
from trpo_fast.agent.critic import state_values

SPACE = spaces.Box(-np.inf, np.inf, (5,))


def made(dtype: torch.dtype = torch.float32, activation: str = "tanh") -> ValueFunction:
    generator = torch.Generator().manual_seed(0)
    return ValueFunction(SPACE, (8, 7), activation, generator=generator).to(dtype)


def rows(count: int) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ["tanh", "relu", "silu"])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_values_are_those_of_the_module(dtype: torch.dtype, activation: str, count: int) -> None:
    value_function, observations = made(dtype, activation), rows(count)
    found = state_values(value_function, observations)
    assert (found.shape, found.dtype, found.requires_grad) == ((count,), dtype, False)
    torch.testing.assert_close(found, value_function(observations).detach())


def test_another_module_answers_for_itself() -> None:
    class Doubled(ValueFunction):
        def forward(self, obs: Tensor) -> Tensor:
            return 2 * super().forward(obs)

    value_function = Doubled(SPACE, (8,))
    found = state_values(value_function, rows(3))
    assert torch.equal(found, value_function(rows(3)).detach())
    assert not found.requires_grad


def test_hooks_are_called() -> None:
    value_function = made()
    value_function.body.register_forward_hook(lambda *_: torch.full((3, 1), 9.0))
    assert state_values(value_function, rows(3)).tolist() == [9.0] * 3


def test_half_precision_is_left_to_torch() -> None:
    value_function = made(torch.bfloat16)
    found = state_values(value_function, rows(4))
    assert torch.equal(found, value_function(rows(4)).detach())


def test_observations_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="6"):
        state_values(made(), torch.zeros(3, 6))


class Untouched(nn.Module):
    """A module of the user's own, in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))

    def forward(self, obs: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return obs @ self.weight


def test_a_foreign_module_is_evaluated_outside_autograd() -> None:
    assert torch.equal(state_values(Untouched(), torch.ones(2, 5)), torch.tensor([5.0, 5.0]))


@pytest.mark.parametrize("sizes", [64, "8", (8, 0), None])
def test_hidden_sizes_that_are_no_widths_are_refused(sizes: Any) -> None:
    with pytest.raises(ValueError, match="widths of the hidden layers"):
        ValueFunction(spaces.Box(-1, 1, (3,)), sizes)
