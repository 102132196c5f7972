"""The native fit of the critic is torch.optim.Adam, to rounding."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from trpo_fast.agent.critic import Critic
from trpo_fast.networks.activations import ACTIVATIONS
from trpo_fast.networks.mlp import ValueFunction

# Relative to the largest parameter. Adam divides by the root of the second moment: where a
# gradient is itself rounding, its sign is the step's, so the error is that of the steps' size.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}


def make(width, sizes, activation, dtype, *, epochs=2, batch_size=32):
    generator = torch.Generator().manual_seed(0)
    space = spaces.Box(-1.0, 1.0, (width,))
    network = ValueFunction(space, sizes, activation, generator=generator).to(dtype)
    return Critic(network, learning_rate=1e-3, epochs=epochs, batch_size=batch_size)


def generic(critic):
    """The same critic, fitted by torch."""
    twin = copy.deepcopy(critic)
    twin._native_fit = lambda _: None
    return twin


def data(rows, width, dtype):
    generator = torch.Generator().manual_seed(1)
    observations = torch.randn(rows, width, generator=generator)
    returns = observations.sum(1).sin() + 0.1 * torch.randn(rows, generator=generator)
    return observations.to(dtype), returns.to(dtype)


def assert_equal_to_rounding(fused, torchs, tolerance):
    for one, other in zip(
        fused.value_function.parameters(), torchs.value_function.parameters(), strict=True
    ):
        torch.testing.assert_close(
            one, other, rtol=0, atol=tolerance * float(other.detach().abs().max())
        )
    state, expected = fused.state_dict(), torchs.state_dict()
    assert state.keys() == expected.keys()
    for key, entry in state.items():
        assert int(entry["step"]) == int(expected[key]["step"])
        for name in ("exp_avg", "exp_avg_sq"):
            scale = float(expected[key][name].abs().max())
            torch.testing.assert_close(
                entry[name], expected[key][name], rtol=0, atol=50 * tolerance * scale
            )


def compare(critic, rows, dtype):
    twin = generic(critic)
    width = critic.value_function.obs_width
    results = [
        each.fit(*data(rows, width, dtype), np.random.default_rng(3)) for each in (critic, twin)
    ]
    assert (critic.path, twin.path) == ("fused", "generic")
    assert results[0].loss == pytest.approx(
        results[1].loss, rel=1e-4 if dtype == torch.float32 else 1e-9
    )
    assert results[0].skipped_rows == results[1].skipped_rows == 0
    assert_equal_to_rounding(critic, twin, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_640_steps_of_the_usual_critic(dtype):
    compare(make(17, (64, 64), "tanh", dtype, epochs=10, batch_size=128), 8192, dtype)


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "identity"])
def test_every_activation(activation):
    compare(make(5, (20, 12), activation, torch.float64), 100, torch.float64)


@pytest.mark.parametrize("sizes", [(), (1,), (3, 70), (130,), (130, 40), (17, 5, 9)])
@pytest.mark.parametrize(("rows", "batch_size"), [(1, 7), (45, 45), (300, 128), (1000, 600)])
@pytest.mark.parametrize("width", [1, 100])
def test_any_sizes(sizes, rows, batch_size, width):
    critic = make(width, sizes, "tanh", torch.float64, batch_size=batch_size)
    compare(critic, rows, torch.float64)


def test_the_number_of_threads_changes_no_bit():
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            critic = make(6, (64, 32), "relu", torch.float32, batch_size=400)
            critic.fit(*data(1000, 6, torch.float32), np.random.default_rng(0))
            found.append([p.detach().clone() for p in critic.value_function.parameters()])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_a_fit_goes_on_from_the_moments_that_torch_left():
    critic = make(6, (16,), "tanh", torch.float64)
    twin = generic(critic)
    twin.fit(*data(90, 6, torch.float64), np.random.default_rng(0))
    critic.value_function.load_state_dict(twin.value_function.state_dict())
    critic.load_state_dict(copy.deepcopy(twin.state_dict()))
    compare_rng = [np.random.default_rng(1) for _ in range(2)]
    for each, rng in zip((critic, twin), compare_rng, strict=True):
        each.fit(*data(70, 6, torch.float64), rng)
    assert_equal_to_rounding(critic, twin, TOLERANCE[torch.float64])


def test_strided_observations_and_parameters():
    critic = make(4, (8,), "tanh", torch.float64)
    with torch.no_grad():
        weight = critic.value_function.body[0].weight
        weight.data = weight.data.t().contiguous().t()
    twin = generic(critic)
    observations, returns = data(64, 8, torch.float64)
    wide = observations[:, ::2]
    assert not wide.is_contiguous()
    for each in (critic, twin):
        each.fit(wide, returns, np.random.default_rng(0))
    assert critic.path == "fused"
    assert_equal_to_rounding(critic, twin, TOLERANCE[torch.float64])


def test_an_error_in_mid_fit_leaves_everything_as_it_was(monkeypatch):
    from trpo_fast.backends.cpu.value_fit import AdamFit

    critic = make(4, (8,), "tanh", torch.float32)
    critic.fit(*data(64, 4, torch.float32), np.random.default_rng(0))
    before = copy.deepcopy((critic.value_function.state_dict(), critic.state_dict()))
    original, calls = AdamFit.epoch, []

    def interrupted(*arguments):
        calls.append(original(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(AdamFit, "epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        critic.fit(*data(64, 4, torch.float32), np.random.default_rng(1))
    assert len(calls) == 1
    torch.testing.assert_close(
        before, (critic.value_function.state_dict(), critic.state_dict()), rtol=0, atol=0
    )


class TwoHeaded(nn.Module):
    """Not a chain of layers: torch's Adam serves it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)
        self.out = nn.Linear(8, 1)

    def forward(self, obs):
        return self.out(torch.cat([self.a(obs).tanh(), self.b(obs)], -1)).squeeze(-1)


def test_what_the_native_fit_does_not_know_goes_to_torch():
    critic = Critic(TwoHeaded(), learning_rate=1e-3, epochs=1, batch_size=16)
    critic.fit(*data(32, 3, torch.float32), np.random.default_rng(0))
    assert critic.path == "generic"
    frozen = make(3, (4,), "tanh", torch.float32).value_function
    left = frozen.body[0].bias
    critic = Critic(frozen, learning_rate=1e-3, epochs=1, batch_size=16, leave=[left])
    critic.fit(*data(32, 3, torch.float32), np.random.default_rng(0))
    assert critic.path == "generic"
    assert torch.equal(left, torch.zeros(4))
