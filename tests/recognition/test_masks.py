"""Modules that lay an action mask over their logits: fused as the module says, or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from recognizer_cases import WIDTH, Wrapped2, flat, made, observations
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Distribution, Independent, Normal
from torch.nn import functional

from trpo_fast import JointDistribution, MaskedCategorical, MultiCategorical, TRPOOptimizer
from trpo_fast.networks.network import Network
from trpo_fast.recognition.recognizer import network_of

pytestmark = pytest.mark.filterwarnings("ignore::trpo_fast.FallbackWarning")
ENTRIES = 6
Made = Callable[[Tensor, Tensor], Distribution]


class Masking(nn.Module):
    """Outputs and mask, made into a distribution."""

    def __init__(self, of: Made, outputs: int = ENTRIES) -> None:
        super().__init__()
        self.of = of
        self.body = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, outputs))

    def forward(self, obs: Tensor, action_mask: Any = None) -> Distribution:
        return self.of(self.body(obs), action_mask)


class Hidden(Wrapped2):
    def forward(self, obs: Tensor, action_mask: Tensor | None = None) -> Distribution:
        found: Distribution = self.inner(obs.neg().neg(), action_mask)
        return found


def masks(rows: int = 48, entries: int = ENTRIES) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    found = torch.rand(rows, entries, generator=generator) < 0.6
    found[:, 1::2] = True
    return found


def hybrid(outputs: Tensor, mask: Tensor) -> Distribution:
    first, mean, last = outputs.split([2, 3, 4], 1)
    return JointDistribution(
        {
            "first": MaskedCategorical(first, mask[:, :2]),
            "arm": Independent(Normal(mean, torch.ones_like(mean)), 1),
            "last": MultiCategorical(last, [2, 2], mask[:, 2:]),
        }
    )


RECOGNISED: dict[str, tuple[Made, int]] = {
    "our own": (MaskedCategorical, 6),
    "masked_fill": (lambda x, m: Categorical(logits=x.masked_fill(~m, -torch.inf)), 6),
    "where": (lambda x, m: Categorical(logits=torch.where(m, x, torch.tensor(-torch.inf))), 6),
    "log_softmax": (
        lambda x, m: Categorical(
            logits=functional.log_softmax(x.masked_fill(m.logical_not(), float("-inf")), -1)
        ),
        6,
    ),
    "multi": (lambda x, m: MultiCategorical(x, [2, 4], m), 6),
    "hybrid": (hybrid, 9),
}


def data_of(policy: nn.Module, obs: Tensor, mask: Tensor) -> dict[str, Any]:
    with torch.no_grad(), torch.random.fork_rng([]):
        torch.manual_seed(3)
        actions = policy(obs, action_mask=mask).sample()
    advantages = torch.randn(len(obs), generator=torch.Generator().manual_seed(4))
    return {"obs": obs, "action_mask": mask, "actions": actions, "advantages": advantages}


def moved(policy: nn.Module, data: dict[str, Any], path: str, **options: Any) -> Tensor:
    before = flat(policy)
    opt = TRPOOptimizer(Hidden(policy) if path == "generic" else policy, **options)
    opt.step(**data)
    assert opt.path == path
    assert opt.last_result is not None
    assert opt.last_result.accepted
    return flat(policy) - before


@pytest.mark.parametrize("name", RECOGNISED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_its_step_equals_the_generic_one(name: str, dtype: torch.dtype) -> None:
    of, outputs = RECOGNISED[name]
    policy = made(lambda: Masking(of, outputs), dtype)
    data = data_of(policy, observations(dtype=dtype), masks())
    few = {"cg_iters": 3, "preconditioner": "none"}
    fused = moved(copy.deepcopy(policy), data, "fused", **few)
    generic = moved(policy, data, "generic", **few)
    tolerance = 1e-8 if dtype == torch.float64 else 1e-4  # rounding, amplified by the iterations
    assert float((fused - generic).norm()) < tolerance * float(generic.norm())


def replaced(distribution: Distribution) -> Distribution:
    usual = distribution.log_prob
    distribution.log_prob = lambda value: 2 * usual(value)  # type: ignore[method-assign]
    return distribution


REFUSED: dict[str, tuple[Made, str]] = {
    "it is left out": (lambda x, _: Categorical(logits=x), "does not lay its action_mask"),
    "a part of it": (
        lambda x, m: MultiCategorical(x, [2, 4], torch.cat([m[:, :2], m[:, 2:]], 1)),
        "forward applies cat to the action mask",
    ),
    "features": (
        lambda x, m: MaskedCategorical(x + m.to(x.dtype), m),
        "forward applies to to the action mask",
    ),
    "the other way round": (
        lambda x, m: Categorical(logits=x.masked_fill(m, -torch.inf)),
        "forward applies masked_fill to the output of a layer",
    ),
    "a large number": (
        lambda x, m: Categorical(logits=x.masked_fill(~m, -1e8)),
        "forward applies masked_fill to the output of a layer",
    ),
    "without gradient": (
        lambda x, m: MaskedCategorical(x.detach(), m),
        "forward applies detach to the output of a layer",
    ),
    "one row for all": (
        lambda x, m: Categorical(logits=x.masked_fill(~m[:1], -torch.inf)),
        "forward applies getitem to the action mask",
    ),
    "a branch": (
        lambda x, m: MaskedCategorical(x if m.all() else 2 * x, m),
        "reads values of a tensor into Python",
    ),
    "a method of its own": (
        lambda x, m: replaced(MaskedCategorical(x, m)),
        "forward replaces log_prob of the distribution",
    ),
    "in a joint one, a method of its own": (
        lambda x, m: JointDistribution([replaced(MaskedCategorical(x, m))]),
        "forward replaces log_prob of the distribution",
    ),
    "bits": (
        lambda x, m: Independent(Bernoulli(logits=x.masked_fill(~m, -torch.inf)), 1),
        "does not lay its action_mask",
    ),
    "a Gaussian": (
        lambda x, _: Independent(Normal(x, torch.ones_like(x)), 1),
        "does not lay its action_mask",
    ),
    "in a joint one, swapped": (
        lambda x, m: JointDistribution(
            [MaskedCategorical(x[:, :3], m[:, 3:]), MaskedCategorical(x[:, 3:], m[:, :3])]
        ),
        "action[0]: forward does not lay its action_mask",
    ),
    "in a joint one, one part alone": (
        lambda x, m: JointDistribution(
            [MaskedCategorical(x[:, :3], m[:, :3]), MaskedCategorical(x[:, 3:])]
        ),
        "action[1]: forward does not lay its action_mask",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_near_misses_are_refused_with_their_reason(name: str) -> None:
    of, words = REFUSED[name]
    found = network_of(made(lambda: Masking(of)), observations(), masks())
    assert isinstance(found, str), "it was recognised"
    assert words in found


def test_columns_of_a_mask_that_are_not_used_are_refused() -> None:
    for of in (
        lambda x, m: MaskedCategorical(x, m[:, :6]),
        lambda x, m: JointDistribution([MaskedCategorical(x, m[:, :6])]),
    ):
        found = network_of(made(lambda of=of: Masking(of)), observations(), masks(48, 8))
        assert "does not lay its action_mask" in str(found)


def test_masks_of_another_kind_take_the_generic_path() -> None:
    policy = made(lambda: Masking(MaskedCategorical))
    for mask in (masks().int(), masks()[0], {"first": masks()}, masks(24)):
        found = network_of(policy, observations(), mask)
        assert "the action_mask is not one tensor [N, n] of bool" in str(found)


def test_a_module_is_known_with_a_mask_and_without_one() -> None:
    policy = made(lambda: Masking(lambda x, m: MaskedCategorical(x if m is None else 2 * x, m)))
    assert isinstance(network_of(policy, observations()), Network)
    assert "forward applies mul" in str(network_of(policy, observations(), masks()))
    assert isinstance(network_of(policy, observations()), Network)


def test_a_mask_of_other_rows_is_compared_again() -> None:
    """What forward does with many rows is not taken from what it does with a few."""

    def of(outputs: Tensor, mask: Tensor) -> Distribution:
        return MaskedCategorical(outputs, mask if len(mask) < 16 else mask.roll(1, 0))

    policy = made(lambda: Masking(of))
    assert isinstance(network_of(policy, observations(8), masks(8)), Network)
    assert "forward applies roll" in str(network_of(policy, observations(), masks()))


@pytest.mark.parametrize("made_of", ["mask", "action"])
def test_what_the_mask_forbids_is_an_error(made_of: str) -> None:
    policy = made(lambda: Masking(MaskedCategorical))
    data, before = data_of(policy, observations(), masks()), flat(policy)
    if made_of == "mask":
        data["action_mask"] = data["action_mask"].clone()
        data["action_mask"][5] = False
    else:
        data["actions"] = torch.zeros_like(data["actions"])
    with pytest.raises(ValueError, match="action_mask"):
        TRPOOptimizer(policy).step(**data)
    assert torch.equal(flat(policy), before)
