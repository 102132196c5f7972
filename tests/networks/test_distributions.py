"""Distributions that torch lacks, their KL, and the helpers for any distribution."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Distribution,
    Gamma,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    kl_divergence,
)
from torch.distributions.transforms import AffineTransform, TanhTransform

from trpo_fast import MaskedCategorical, MultiCategorical
from trpo_fast.networks.distributions import detached, in_double, mode

NVEC = (2, 3, 2)


def logits(seed: int = 0, rows: int = 6, width: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


def some_mask() -> Tensor:
    mask = torch.ones(6, 7, dtype=torch.bool)
    mask[0, 0] = mask[1, 1] = mask[2, 3] = mask[2, 4] = mask[3, 6] = False
    return mask


def every_action(nvec: tuple[int, ...]) -> Tensor:
    return torch.tensor(list(itertools.product(*(range(n) for n in nvec))))


class TestMultiCategorical:
    @pytest.mark.parametrize("masked", [False, True])
    def test_equals_the_flat_joint_distribution(self, masked: bool) -> None:
        mask = some_mask() if masked else None
        p, q = MultiCategorical(logits(0), NVEC, mask), MultiCategorical(logits(1), NVEC, mask)
        actions = every_action(NVEC)
        log_p = torch.stack([p.log_prob(a.expand(6, 3)) for a in actions], dim=1)
        log_q = torch.stack([q.log_prob(a.expand(6, 3)) for a in actions], dim=1)
        assert torch.allclose(log_p.exp().sum(1), torch.ones(6, dtype=torch.float64))
        terms = torch.where(log_p.exp() > 0, log_p.exp() * (log_p - log_q), 0.0)
        assert torch.allclose(kl_divergence(p, q), terms.sum(1), atol=1e-12)
        plogp = torch.where(log_p.exp() > 0, log_p.exp() * log_p, 0.0)
        assert torch.allclose(p.entropy(), -plogp.sum(1), atol=1e-12)

    def test_shapes_and_samples(self) -> None:
        p = MultiCategorical(logits(), NVEC)
        assert (p.batch_shape, p.event_shape) == (torch.Size([6]), torch.Size([3]))
        torch.manual_seed(0)
        samples = p.sample((4000,))
        assert samples.shape == (4000, 6, 3)
        assert samples.dtype is torch.int64
        start = 0
        for k, size in enumerate(NVEC):
            expected = logits()[:, start : start + size].softmax(1)
            found = torch.nn.functional.one_hot(samples[..., k], size).double().mean(0)
            assert torch.allclose(found, expected, atol=0.04)
            start += size

    def test_expand_and_mode(self) -> None:
        p = MultiCategorical(logits(rows=1), NVEC, some_mask()[:1])
        wide = p.expand((5, 1))
        assert wide.batch_shape == (5, 1)
        action = p.mode
        assert torch.allclose(wide.log_prob(action), p.log_prob(action).expand(5, 1))
        for other in every_action(NVEC):
            assert p.log_prob(other.unsqueeze(0)) <= p.log_prob(action)

    @pytest.mark.parametrize(
        ("nvec", "text"), [((2, 2), "width 7"), ((), "width 7"), ((7, 0), "width 7")]
    )
    def test_widths_that_disagree(self, nvec: tuple[int, ...], text: str) -> None:
        with pytest.raises(ValueError, match=text):
            MultiCategorical(logits(), nvec)

    def test_action_and_space_mismatch(self) -> None:
        p = MultiCategorical(logits(), NVEC)
        with pytest.raises(ValueError, match="actions have width 2, expected 3"):
            p.log_prob(torch.zeros(6, 2))
        with pytest.raises(ValueError, match="different action spaces"):
            kl_divergence(p, MultiCategorical(logits(), (3, 4)))


class TestMasks:
    def test_forbidden_actions_have_probability_exactly_0(self) -> None:
        mask = some_mask()
        p = MaskedCategorical(100 * logits(), mask)
        assert (p.probs[~mask] == 0).all()
        assert torch.allclose(p.probs.sum(1), torch.ones(6, dtype=torch.float64))
        torch.manual_seed(0)
        samples = p.sample((2000,))
        assert mask[torch.arange(6), samples].all()
        assert torch.isfinite(p.entropy()).all()
        assert p.log_prob(torch.tensor([0, 1, 3, 6, 0, 0]))[:4].eq(-math.inf).all()

    def test_equals_a_categorical_over_the_allowed_actions(self) -> None:
        mask = some_mask()
        for row in range(6):
            allowed = mask[row].nonzero().squeeze(1)
            p = MaskedCategorical(logits(0)[row], mask[row])
            q = MaskedCategorical(logits(1)[row], mask[row])
            small_p = Categorical(logits=logits(0)[row, allowed])
            small_q = Categorical(logits=logits(1)[row, allowed])
            assert torch.allclose(kl_divergence(p, q), kl_divergence(small_p, small_q))
            assert torch.allclose(p.entropy(), small_p.entropy())
            assert torch.allclose(p.probs[allowed], small_p.probs)

    def test_derivatives_of_a_masked_kl_are_finite_twice(self) -> None:
        mask = torch.tensor([[True, False, True], [False, False, True]])
        at = logits(rows=2, width=3)[:, :3].clone().requires_grad_()
        p = MaskedCategorical(at.detach(), mask)

        def kl(x: Tensor) -> Tensor:
            return kl_divergence(p, MaskedCategorical(x, mask)).sum()

        slope = torch.autograd.functional.jacobian(kl, at.detach() + 0.3)
        assert torch.isfinite(slope).all()
        assert (slope[~mask] == 0).all()
        hessian = torch.autograd.functional.hessian(kl, at.detach()).reshape(6, 6)
        probs = p.probs
        expected = torch.block_diag(
            *[torch.diag(probs[n]) - torch.outer(probs[n], probs[n]) for n in range(2)]
        )
        assert torch.allclose(hessian, expected, atol=1e-12)

    @pytest.mark.parametrize("level", [1e8, 1e17, 1e300])
    def test_a_common_level_of_the_logits_does_not_matter(self, level: float) -> None:
        p = MaskedCategorical(torch.zeros(1, 4, dtype=torch.float64))
        q = MaskedCategorical(torch.full((1, 4), level, dtype=torch.float64))
        assert q.probs.tolist() == [[0.25] * 4]
        assert kl_divergence(p, q).item() == 0.0

    @pytest.mark.parametrize("scale", [1e4, 1e30])
    def test_extreme_logits(self, scale: float) -> None:
        at = torch.tensor([[scale, -scale, 0.0]])
        p, q = MaskedCategorical(at), MaskedCategorical(at.clone())
        assert kl_divergence(p, q).item() == 0.0
        assert p.probs.tolist() == [[1.0, 0.0, 0.0]]

    def test_support_that_the_old_policy_had_and_the_new_lacks(self) -> None:
        p = MaskedCategorical(torch.zeros(1, 2))
        q = MaskedCategorical(torch.zeros(1, 2), torch.tensor([[True, False]]))
        assert kl_divergence(p, q).item() == math.inf
        assert kl_divergence(q, p).item() == pytest.approx(math.log(2))

    @pytest.mark.parametrize(
        ("mask", "text"),
        [
            (torch.zeros(6, 7, dtype=torch.bool), r"no action at index \[0\]"),
            (torch.ones(6, 6, dtype=torch.bool), r"\(6, 6\), expected \(6, 7\)"),
            (torch.ones(7, dtype=torch.bool), r"\(7,\), expected \(6, 7\)"),
        ],
    )
    def test_bad_masks(self, mask: Tensor, text: str) -> None:
        with pytest.raises(ValueError, match=text):
            MaskedCategorical(logits(), mask)
        with pytest.raises(ValueError, match=text):
            MultiCategorical(logits(), NVEC, mask)

    def test_a_block_that_allows_nothing(self) -> None:
        mask = torch.ones(6, 7, dtype=torch.bool)
        mask[4, 2:5] = False
        with pytest.raises(ValueError, match=r"no action at index \[4\]"):
            MultiCategorical(logits(), NVEC, mask)

    def test_masks_of_0_and_1(self) -> None:
        mask = some_mask()
        p = MaskedCategorical(logits(), mask.to(torch.int8))
        assert torch.equal(p.probs, MaskedCategorical(logits(), mask).probs)

    def test_actions_out_of_range(self) -> None:
        p = MaskedCategorical(logits(), validate_args=True)
        with pytest.raises(ValueError, match=r"lie in \[0, 7\)"):
            p.log_prob(torch.full((6,), 7))


def test_pitfall_05_the_kl_for_logits_is_a_kl_whose_hessian_is_the_fisher() -> None:
    # E[score score'] by enumeration, against the KL's Hessian at equality.
    at = logits(rows=1)[0]
    for make in (
        lambda x: MultiCategorical(x, NVEC),
        MaskedCategorical,
        lambda x: Independent(Bernoulli(logits=x), 1),
    ):
        p = make(at)
        hessian = torch.autograd.functional.hessian(
            lambda x, p=p, make=make: kl_divergence(p, make(x)), at
        )
        if isinstance(p, MultiCategorical):
            actions = every_action(NVEC)
        elif isinstance(p, MaskedCategorical):
            actions = torch.arange(7)
        else:
            actions = every_action((2,) * 7).double()
        fisher = torch.zeros(7, 7, dtype=torch.float64)
        for action in actions:
            score = torch.autograd.functional.jacobian(
                lambda x, a=action, make=make: make(x).log_prob(a), at
            )
            fisher += p.log_prob(action).exp() * torch.outer(score, score)
        assert torch.allclose(hessian, fisher, atol=1e-12)
        # A KL is 0 at equality and grows to either side.
        assert kl_divergence(p, make(at.clone())).abs().item() < 1e-15
        assert kl_divergence(p, make(at + 0.1 * torch.arange(7))).item() > 0


class TestMode:
    def test_of_every_kind(self) -> None:
        normal = Normal(torch.tensor([[0.3, -0.2]]), torch.tensor([[1.0, 2.0]]))
        squashed = TransformedDistribution(normal, [TanhTransform(), AffineTransform(1.0, 2.0)])
        assert torch.equal(mode(Independent(normal, 1)), normal.loc)
        assert torch.allclose(mode(squashed), 1 + 2 * torch.tanh(normal.loc))
        assert mode(Categorical(logits=torch.tensor([[0.0, 2.0, 1.0]]))).tolist() == [1]
        masked = MaskedCategorical(
            torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([[True, False, True]])
        )
        assert mode(masked).tolist() == [2]
        bernoulli = Independent(Bernoulli(probs=torch.tensor([[0.2, 0.5, 0.7]])), 1)
        assert mode(bernoulli).tolist() == [[0.0, 0.0, 1.0]]
        assert mode(MultiCategorical(torch.tensor([[0.0, 1, 5, 4, 3]]), (2, 3))).tolist() == [
            [1, 0]
        ]

    def test_falls_back_to_the_mean(self) -> None:
        class Uniformish(Distribution):
            arg_constraints = {}  # noqa: RUF012

            @property
            def mean(self) -> Tensor:
                return torch.tensor([0.5])

        assert mode(Uniformish(validate_args=False)).tolist() == [0.5]


def everything() -> list[Distribution]:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    normal = Normal(x, x.exp())
    return [
        Independent(normal, 1),
        # Narrow: a tanh that is 1 to rounding has no inverse.
        TransformedDistribution(Independent(Normal(x, 0.25), 1), [TanhTransform()]),
        Categorical(logits=x),
        Categorical(probs=x.softmax(1)),
        MaskedCategorical(x, x > x.min(1, keepdim=True).values),
        MultiCategorical(x, (1, 2)),
        Independent(Bernoulli(logits=x), 1),
        Independent(Bernoulli(probs=x.sigmoid()), 1),
        MultivariateNormal(x, torch.eye(3) + 0.1),
        Independent(Beta(x.exp(), x.cosh()), 1),
        Independent(Gamma(x.exp(), x.cosh()), 1),
    ]


@pytest.mark.parametrize("p", everything(), ids=lambda p: repr(p)[:30])
class TestHelpers:
    def test_in_double_is_the_same_distribution(self, p: Distribution) -> None:
        q = in_double(p)
        action = p.sample()
        assert torch.allclose(q.log_prob(action).double(), p.log_prob(action).double(), atol=1e-5)
        assert (q.batch_shape, q.event_shape) == (p.batch_shape, p.event_shape)
        kl = kl_divergence(in_double(p), in_double(detached(p)))
        assert kl.shape == (5,)
        assert float(kl.abs().max()) < 1e-6

    def test_detached_shares_no_memory_and_no_graph(self, p: Distribution) -> None:
        action = p.sample()
        copy, before = detached(p), p.log_prob(action).clone()
        pending, seen = [vars(p)], []
        while pending:
            for value in pending.pop().values():
                if isinstance(value, Tensor):
                    seen.append(value)
                elif isinstance(value, Distribution):
                    pending.append(vars(value))
                elif isinstance(value, list):
                    pending += [vars(v) for v in value if isinstance(v, Distribution)]
        saved = [t.clone() for t in seen]
        for t in seen:
            if t.is_floating_point() and not t._is_view():
                t.mul_(3)
        try:
            assert torch.equal(copy.log_prob(action), before)
        finally:
            for t, old in zip(seen, saved, strict=True):
                if t.is_floating_point() and not t._is_view():
                    t.copy_(old)


def test_detached_cuts_the_graph() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    p = MultiCategorical(x, (1, 2))
    assert p.log_prob(torch.zeros(2, 2)).requires_grad
    assert not detached(p).log_prob(torch.zeros(2, 2)).requires_grad


@pytest.mark.parametrize("epsilon", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("kind", ["categorical", "multi", "bernoulli", "normal", "scale"])
def test_kl_near_0_of_float32_models_has_no_cancellation(kind: str, epsilon: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=generator)
    y = x + epsilon * torch.randn(50, 4, generator=generator)
    make = {
        "categorical": lambda t: Categorical(logits=t),
        "multi": lambda t: MultiCategorical(t, (2, 2)),
        "bernoulli": lambda t: Independent(Bernoulli(logits=t), 1),
        "normal": lambda t: Independent(Normal(t, torch.ones_like(t)), 1),
        "scale": lambda t: Independent(Normal(torch.zeros_like(t), t.double().exp()), 1),
    }[kind]
    found = float(kl_divergence(in_double(make(x)), in_double(make(y))).mean())
    # Second order in the (exactly known) difference, with its third-order error.
    d = y.double() - x.double()
    exact = x.double()
    if kind == "normal":
        quadratic = 0.5 * d.square().sum(1)
    elif kind == "scale":
        quadratic = d.square().sum(1)
    elif kind == "bernoulli":
        s = exact.sigmoid()
        quadratic = 0.5 * (s * (1 - s) * d.square()).sum(1)
    else:
        blocks = [4] if kind == "categorical" else [2, 2]
        pairs = zip(exact.split(blocks, 1), d.split(blocks, 1), strict=True)
        quadratic = sum(
            0.5 * ((e.softmax(1) * b * b).sum(1) - (e.softmax(1) * b).sum(1).square())
            for e, b in pairs
        )
    assert found == pytest.approx(float(quadratic.mean()), rel=20 * epsilon + 1e-4)


def test_the_kl_of_a_categorical_by_hand() -> None:
    p = Categorical(probs=torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64))
    q = Categorical(probs=torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64))
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    found = kl_divergence(in_double(p), in_double(q))
    assert found.item() == pytest.approx(expected, rel=1e-12)
