"""The critic's fit: it learns, it is reproducible, and nothing that is not finite gets in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from host_waits import HostWaits
from torch import nn

from trpo_fast.agent.critic import Critic, explained_variance


@pytest.fixture(autouse=True, params=["fused", "generic"])
def path(request, monkeypatch):
    """Everything here holds for the native fit and for torch's Adam alike."""
    if request.param == "generic":
        monkeypatch.setattr(Critic, "_native_fit", lambda *_: None)
    return request.param


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, obs):
        return self.layer(obs).squeeze(-1)


def make(seed=0, **keywords):
    torch.manual_seed(seed)
    settings = {"learning_rate": 1e-2, "epochs": 20, "batch_size": 32} | keywords
    return Critic(Linear(), **settings)


def data(n=256):
    generator = torch.Generator().manual_seed(1)
    observations = torch.randn(n, 3, generator=generator)
    return observations, observations @ torch.tensor([1.0, -2.0, 0.5]) + 3


def weights(critic):
    return torch.cat([p.detach().flatten() for p in critic.value_function.parameters()])


def test_it_fits_a_linear_target(path):
    critic, (observations, returns) = make(epochs=100), data()
    result = critic.fit(observations, returns, np.random.default_rng(0))
    assert critic.path == path
    assert result.skipped_rows == 0
    assert result.loss is not None
    assert result.loss < 0.01
    values = critic.value_function(observations).detach()
    assert explained_variance(values, returns) > 0.99


def test_the_same_rng_gives_the_same_bits():
    results = []
    for _ in range(2):
        critic = make()
        critic.fit(*data(), np.random.default_rng(5))
        results.append(weights(critic))
    assert torch.equal(*results)


def test_state_makes_the_next_fit_the_same():
    one, two = make(), make()
    one.fit(*data(), np.random.default_rng(0))
    two.value_function.load_state_dict(one.value_function.state_dict())
    two.load_state_dict(
        {k: {n: t.clone() for n, t in e.items()} for k, e in one.state_dict().items()}
    )
    for critic in (one, two):
        critic.fit(*data(), np.random.default_rng(1))
    assert torch.equal(weights(one), weights(two))


def test_state_of_another_network_is_refused():
    critic = make()
    critic.fit(*data(), np.random.default_rng(0))
    state = critic.state_dict()
    state["0"]["exp_avg"] = torch.zeros(7)
    with pytest.raises(ValueError, match="exp_avg of parameter 0"):
        make().load_state_dict(state)
    with pytest.raises(ValueError, match="no parameter '9'"):
        make().load_state_dict({"9": state["1"]})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_pitfall_23_rows_that_are_not_finite_never_reach_the_critic(bad):
    observations, returns = data()
    returns[7] = bad
    observations[9, 1] = bad
    critic, clean = make(), make()
    result = critic.fit(observations, returns, np.random.default_rng(0))
    assert result.skipped_rows == 2
    keep = [i for i in range(256) if i not in (7, 9)]
    clean.fit(*(x[keep] for x in data()), np.random.default_rng(0))
    assert torch.equal(weights(critic), weights(clean))


def test_a_gradient_that_overflows_is_not_stepped_on():
    observations, returns = data()
    returns[3] = 3e38
    critic = make(epochs=2)
    result = critic.fit(observations, returns, np.random.default_rng(0))
    assert result.skipped_rows > 0
    assert torch.isfinite(weights(critic)).all()
    assert result.loss is not None


def test_the_host_waits_once_a_fit_however_many_minibatches_it_has(path):
    if path == "fused":
        pytest.skip("the native fit is the host's own work")
    seen = []
    for settings in ({"epochs": 1, "batch_size": 256}, {"epochs": 3, "batch_size": 16}):
        critic = make(**settings)
        with HostWaits() as waits:
            critic.fit(*data(), np.random.default_rng(0))
        seen.append(waits.seen)
    assert seen[0] == seen[1]
    assert seen[0].count("tolist") == 1


def test_only_bad_rows_leave_the_critic_alone():
    observations, returns = data()
    critic = make()
    before = weights(critic)
    result = critic.fit(observations, returns * float("nan"), np.random.default_rng(0))
    assert result.loss is None
    assert result.skipped_rows == 256
    assert torch.equal(weights(critic), before)


def test_explained_variance_of_constant_returns_is_undefined():
    assert explained_variance(torch.randn(5), torch.ones(5)) is None
    assert explained_variance(torch.empty(0), torch.empty(0)) is None
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.zeros(3), returns) == 0.0


def test_a_parameter_the_values_do_not_depend_on_stays_as_it_is():
    class Spare(Linear):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(2, 2)

    torch.manual_seed(0)
    net = Spare()
    before = net.spare.weight.detach().clone()
    Critic(net, learning_rate=1e-2, epochs=2, batch_size=32).fit(*data(), np.random.default_rng(0))
    assert torch.equal(net.spare.weight, before)


def test_parameters_that_are_not_the_critics_to_move_stay_as_they_are():
    torch.manual_seed(0)
    net = Linear()
    bias, weight = net.layer.bias.detach().clone(), net.layer.weight.detach().clone()
    critic = Critic(net, learning_rate=1e-2, epochs=2, batch_size=32, leave=[net.layer.bias])
    critic.fit(*data(), np.random.default_rng(0))
    assert torch.equal(net.layer.bias, bias)
    assert not torch.equal(net.layer.weight, weight)
    with pytest.raises(ValueError, match="no parameter of its own"):
        Critic(net, learning_rate=1e-2, epochs=1, batch_size=1, leave=list(net.parameters()))
