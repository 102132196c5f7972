"""The joint distribution: sums over its parts, in any nesting."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Distribution,
    Independent,
    Normal,
    Poisson,
    VonMises,
    kl_divergence,
)

from trpo_fast import JointDistribution, MaskedCategorical, MultiCategorical
from trpo_fast.networks.distribution_parts import parts_of
from trpo_fast.networks.distributions import detached, in_double, mode

N = 5


def normal(seed: int = 0, width: int = 2) -> Distribution:
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(N, width, generator=generator)
    return Independent(Normal(loc, 0.5 + loc.abs()), 1)


def tree(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed + 100)
    logits = torch.randn(N, 9, generator=generator)
    mask = torch.arange(3) != 1
    return {
        "arm": (normal(seed), {"grip": Categorical(logits=logits[:, :4])}),
        "bits": Independent(Bernoulli(logits=logits[:, 4:6]), 1),
        "tools": MultiCategorical(logits[:, :5], (2, 3)),
        "masked": MaskedCategorical(logits[:, 6:], mask.expand(N, 3)),
        "speed": Beta(1 + logits[:, 0].exp(), 1 + logits[:, 1].exp()),
    }


def test_everything_is_the_sum_over_the_parts() -> None:
    p, q = JointDistribution(tree(0)), JointDistribution(tree(1))
    actions = p.sample()
    assert p.batch_shape == (N,)
    assert p.event_shape == (2 + 1 + 2 + 2 + 1 + 1,)
    parts = [p.parts["arm"][0], p.parts["arm"][1]["grip"], *list(p.parts.values())[1:]]
    assert p.leaves == parts
    others = q.leaves
    taken = [actions["arm"][0], actions["arm"][1]["grip"], *list(actions.values())[1:]]
    log_prob = sum(part.log_prob(a) for part, a in zip(parts, taken, strict=True))
    assert torch.allclose(p.log_prob(actions), log_prob)
    assert torch.allclose(p.log_prob(p.flatten(actions)), log_prob)
    assert torch.allclose(p.entropy(), sum(part.entropy() for part in parts))
    kl = sum(kl_divergence(a, b) for a, b in zip(parts, others, strict=True))
    assert torch.allclose(kl_divergence(p, q), kl)
    assert torch.allclose(kl_divergence(in_double(p), in_double(q)).float(), kl, rtol=1e-4)


def test_flat_actions_are_the_nested_ones_side_by_side() -> None:
    joint = JointDistribution(tree())
    actions = joint.sample((3,))
    rows = joint.flatten(actions)
    assert rows.shape == (3, N, 9)
    assert rows.dtype is torch.float32
    again = joint.unflatten(rows)
    assert torch.equal(again["arm"][0], actions["arm"][0])
    assert torch.equal(again["arm"][1]["grip"], actions["arm"][1]["grip"].float())
    assert again["speed"].shape == (3, N)
    assert torch.allclose(joint.log_prob(again), joint.log_prob(actions))


def test_it_takes_part_where_every_distribution_does() -> None:
    joint = JointDistribution(tree())
    larger = joint.expand((4, N))
    assert larger.batch_shape == (4, N)
    assert larger.log_prob(larger.sample()).shape == (4, N)
    best = mode(joint)
    assert torch.equal(best["arm"][0], joint.parts["arm"][0].mean)
    assert not joint.has_rsample
    smooth = JointDistribution((normal(), Beta(torch.ones(N), torch.ones(N))))
    assert smooth.has_rsample
    assert torch.equal(smooth.mean[1], torch.full((N,), 0.5))
    assert torch.equal(smooth.variance[1], torch.full((N,), 1 / 12))
    assert smooth.rsample()[1].shape == (N,)
    cut = detached(joint)
    assert torch.equal(cut.log_prob(best), joint.log_prob(best))
    assert cut.leaves[0] is not joint.leaves[0]
    parts = parts_of(joint)
    assert parts is not None
    assert torch.allclose(parts.make(parts.tensors).log_prob(best), joint.log_prob(best))
    inner = JointDistribution({"whole": joint, "more": (normal(),)})
    assert len(inner.leaves) == len(joint.leaves) + 1


@pytest.mark.parametrize(
    ("parts", "error", "text"),
    [
        ({}, ValueError, "at least one part"),
        ({"a": ()}, ValueError, "at least one part"),
        (normal(), TypeError, "expected a dict or a tuple"),
        ({"a": (normal(), 3)}, TypeError, r"parts\['a'\]\[1\] is a int"),
        (
            (normal(), Normal(torch.zeros(N, 2), 1.0)),
            ValueError,
            r"parts\[1\] has batch_shape \(5, 2",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(parts: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        JointDistribution(parts)


@pytest.mark.parametrize(
    ("actions", "text"),
    [
        (torch.zeros(N, 8), r"shape \(5, 8\), expected a nesting of them, or \[..., 3\]"),
        ((torch.zeros(N, 2),), "tuple of 2 parts, got 1 parts"),
        ({"a": torch.zeros(N, 2)}, "tuple of 2 parts, got a dict"),
        ((torch.zeros(N, 1), {"b": torch.zeros(N)}), r"action\[0\] has shape \(5, 1\)"),
        ((torch.zeros(N, 2), {"c": torch.zeros(N)}), r"action\[1\] .*\['b'\], got keys \['c'\]"),
    ],
)
def test_actions_that_do_not_fit_are_named(actions: Any, text: str) -> None:
    joint = JointDistribution((normal(), {"b": Categorical(logits=torch.zeros(N, 3))}))
    with pytest.raises(ValueError, match=text):
        joint.log_prob(actions)


def test_a_kl_is_of_one_nesting_and_names_the_part_that_has_none() -> None:
    with pytest.raises(ValueError, match=r"parts is expected to be a dict of \['a'\]"):
        kl_divergence(JointDistribution({"a": normal()}), JointDistribution({"b": normal()}))
    angle = VonMises(torch.zeros(N), torch.ones(N))
    odd = JointDistribution({"rate": Poisson(torch.ones(N)), "way": (normal(), angle)})
    with pytest.raises(NotImplementedError, match=r"VonMises, action\['way'\]\[1\]"):
        kl_divergence(odd, odd)
