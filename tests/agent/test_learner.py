"""What the learner makes of a rollout: advantages and statistics."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from agent_cases import small, weights
from tensor_environments import TensorCartPole
from torch import nn
from toy_environments import Scripted, Sorting, Walk

from trpo_fast.agent.learner import COLUMNS, normalize_advantages


def test_pitfall_22_advantages_of_one_sample_or_a_constant_are_not_divided_by_zero():
    for advantages in (torch.tensor([3.0]), torch.full((7,), 2.5), torch.zeros(4), torch.empty(0)):
        scaled, ok = normalize_advantages(advantages)
        assert not ok
        assert torch.equal(scaled, advantages)
    constant = torch.full((1000,), 0.1) + 1e-9 * torch.randn(1000)
    assert not normalize_advantages(constant)[1]


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_advantages_are_normalised_at_any_scale(scale):
    scaled, ok = normalize_advantages(scale * (torch.randn(1000) + 5))
    assert ok
    assert abs(float(scaled.mean())) < 1e-5
    assert float(scaled.std(correction=0)) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("vectorization", ["sync", "tensor"])
def test_value_lam_is_the_critics_targets_alone(monkeypatch, vectorization):
    """The policy steps along advantages of ``lam``, the critic is fitted to others' returns."""
    from trpo_fast.agent import learner as module

    options = {"vectorization": vectorization, "normalize_advantages": False}
    make = TensorCartPole if vectorization == "tensor" else "CartPole-v1"
    fitted, stepped = {}, {}
    fit = module.fit_critic

    def learnt(value_lam, lam=0.5):
        def spy(critic, observations, targets, *rest):
            fitted.setdefault((value_lam, lam), targets.clone())
            return fit(critic, observations, targets, *rest)

        monkeypatch.setattr(module, "fit_critic", spy)
        with small(make, **options, lam=lam, value_lam=value_lam) as agent:
            step = agent.optimizer.step

            def advantages(**rows):
                stepped.setdefault((value_lam, lam), rows["advantages"].clone())
                return step(**rows)

            agent.optimizer.step = advantages
            agent.learn(64, progress_bar=False)
            return [p.detach().clone() for p in agent.policy.parameters()]

    one, other = learnt(None), learnt(1.0)
    torch.testing.assert_close(one, other, rtol=0, atol=0)  # the first update's policy
    learnt(None, lam=1.0)
    learnt(0.5)
    torch.testing.assert_close(stepped[1.0, 0.5], stepped[None, 0.5], rtol=0, atol=0)
    torch.testing.assert_close(fitted[1.0, 0.5], fitted[None, 1.0], rtol=0, atol=0)
    torch.testing.assert_close(fitted[0.5, 0.5], fitted[None, 0.5], rtol=0, atol=0)
    assert not torch.equal(fitted[1.0, 0.5], fitted[None, 0.5])
    assert not torch.equal(stepped[None, 1.0], stepped[None, 0.5])


def test_equal_advantages_warn_once_and_are_counted():
    class Constant(Scripted):
        def step(self, action):
            observation, _, terminated, truncated, info = super().step(action)
            return observation * 0, 0.0, terminated, truncated, info

        def reset(self, **keywords):
            observation, info = super().reset(**keywords)
            return observation * 0, info

    zero_value = nn.Linear(3, 1)
    nn.init.zeros_(zero_value.weight)
    nn.init.zeros_(zero_value.bias)

    class Zero(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = zero_value

        def forward(self, obs):
            return self.layer(obs).squeeze(-1)

    with small(Constant, value_function=Zero()) as agent:
        with pytest.warns(UserWarning, match="all equal") as caught:
            agent.learn(192, progress_bar=False)
        assert len([w for w in caught if "all equal" in str(w.message)]) == 1
        assert agent.learner.counters["train/unscaled_advantages"] == 3
        assert torch.isfinite(weights(agent)).all()


def test_pitfall_03_statistics_of_a_rollout_apply_from_the_next_one_on():
    with small("Pendulum-v1") as agent:
        seen = []
        normalizer = agent.learner.normalizer
        step = agent.optimizer.step

        def spy(**keywords):
            seen.append((keywords["obs"].clone(), normalizer.statistics.count))
            return step(**keywords)

        agent.optimizer.step = spy
        agent.learn(128, progress_bar=False)
        # The first update sees raw observations, the second the first rollout's statistics.
        assert [count for _, count in seen] == [0, 64]
        assert float(seen[0][0][:, :2].norm(dim=1).sub(1).abs().max()) < 1e-5
        assert normalizer.statistics.count == 128


@pytest.mark.parametrize(
    ("env", "options"),
    [
        (Walk, {"distribution": "gaussian"}),
        (Walk, {"distribution": "beta"}),
        (Walk, {"state_dependent_std": True}),
        (Walk, {"distribution": "beta", "policy": "recurrent", "cell_size": 4}),
        (Sorting, {"distribution": "gaussian"}),
        (Sorting, {"distribution": "beta"}),
    ],
)
def test_the_deviation_of_box_actions_is_told_in_units_of_half_the_range(env, options):
    found = {}
    with small(env, log_std_init=-1.0, **options) as agent:
        agent.learn(64, lambda scope, _: found.update(scope["row"]), progress_bar=False)
    # One step from the first deviation.
    assert found["train/std"] == pytest.approx(np.exp(-1.0), rel=0.2)


def test_every_figure_of_an_update_has_its_column(monkeypatch):
    rows = []
    with small(Scripted) as agent:
        update = agent.learner.update

        def kept(*arguments, **keywords):
            figures = update(*arguments, **keywords)
            rows.append(set(figures))  # the agent adds its own to them
            return figures

        monkeypatch.setattr(agent.learner, "update", kept)
        agent.learn(64, progress_bar=False)
    assert set(COLUMNS) - rows[0] <= {"train/std"}  # of Boxes
    assert rows[0] <= set(COLUMNS)
    assert {
        "train/status",
        "train/kl_divergence_loss",
        "train/policy_objective",
        "train/is_line_search_success",
        "train/value_loss",
        "train/explained_variance",
    } <= set(COLUMNS)


class Bounded(Walk):
    def __init__(self, low, high):
        super().__init__()
        self.action_space = gymnasium.spaces.Box(np.array(low), np.array(high), dtype=np.float64)

    def step(self, action):
        return super().step(np.tanh(action[:2]))


DISTANT = [
    ([300.0] * 2, [500.0] * 2, r"lie outside the bounds of action 0, \[300, 500\]"),
    ([-1.0, -500.0], [1.0, -300.0], r"lie outside the bounds of action 1"),
    ([-1.0, 3.0], [1.0, np.inf], r"lie outside the bounds of action 1, \[3, inf\]"),
    ([-7000.0] * 2, [7000.0] * 2, r"span under 1% of the bounds of action 0"),
]


@pytest.mark.reliability("distant_bounds")
@pytest.mark.parametrize(("low", "high", "text"), DISTANT)
@pytest.mark.parametrize("state_dependent_std", [False, True])
def test_bounds_that_the_first_actions_hardly_meet_are_warned_of(
    low, high, text, state_dependent_std
):
    def make():
        return Bounded(low, high)

    kwargs = {"state_dependent_std": state_dependent_std}
    unbounded = not np.isfinite(high).all()
    # Neither units nor a squashed Gaussian there are with an infinite bound.
    advice = "TransformAction" if unbounded else "scale_actions be True.*distribution='squashed'"
    with pytest.warns(UserWarning, match=f"{text}.*{advice}"):
        small(make, scale_actions=unbounded, **kwargs).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if not unbounded:
            small(make, distribution="squashed").close()
            small(make, **kwargs).close()
        for near in ([-2.0] * 2, [0.0] * 2, [-np.inf] * 2):
            small(lambda near=near: Bounded(near, [2.0, np.inf])).close()
        small(make, scale_actions=False, log_std_init=6.0, **kwargs).close()  # enough of a spread


@pytest.mark.parametrize("high", [1.0, 7000.0])
def test_too_little_of_a_spread_is_warned_of_in_units_of_the_bounds(high: float) -> None:
    with pytest.warns(UserWarning, match=r"span under 1% of the bounds.*Raise log_std_init"):
        small(lambda: Bounded([-high] * 2, [high] * 2), log_std_init=-7.0).close()
