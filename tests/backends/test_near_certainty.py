"""Every backend at policies that are all but certain, where probabilities round to 0 and 1."""

from __future__ import annotations

import math

import pytest
import torch
from parity_cases import Backend, assert_close, every_backend, every_dtype, in_dtype, pair
from torch import Tensor
from torch.nn.functional import logsigmoid
from update_cases import BY_NAME, dense_fisher, flat_of

from trpo_fast import MlpPolicy
from trpo_fast.update.options import Options


def log_probabilities(policy: MlpPolicy, obs: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Each categorical choice's ``[N, n]``; a bit's choices are 0 and 1."""
    outputs = policy.body(obs)
    if policy.head.kind == "bernoulli":
        return [torch.stack([logsigmoid(-x), logsigmoid(x)], 1) for x in outputs.unbind(1)]
    if mask is not None:
        outputs = outputs.masked_fill(~mask, -torch.inf)
    return [block.log_softmax(1) for block in outputs.split(list(policy.head.nvec), 1)]


@every_backend
@pytest.mark.parametrize("direction", ["old_new", "new_old"])
@pytest.mark.parametrize(
    "name", ["categorical", "categorical_masked", "multi_categorical_masked", "bernoulli"]
)
def test_the_kl_to_a_candidate_that_is_all_but_certain(
    backend: Backend, name: str, direction: str
) -> None:
    """Its probabilities round to 0 and 1, where a KL is large and not infinite."""
    policy, exact, data = pair(BY_NAME[name], torch.float64)
    problem = backend.build(policy, data, Options(kl_direction=direction))
    problem.surrogate_gradient()
    with torch.no_grad():
        old = log_probabilities(exact, data["obs"], data.get("action_mask"))
        signs = (-1.0) ** torch.arange(len(exact.body[-1].bias))
        exact.body[-1].bias.add_(900 * signs)
        new = log_probabilities(exact, data["obs"], data.get("action_mask"))
    pairs = zip(*((old, new) if direction == "old_new" else (new, old)), strict=True)
    rows = [torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(1) for p, q in pairs]
    expected = float(sum(row.mean() for row in rows))
    assert math.isfinite(expected)
    _, kl = problem.evaluate(flat_of(exact).read())
    assert kl == pytest.approx(expected, rel=1e-12)


@every_backend
@pytest.mark.parametrize("name", ["categorical", "multi_categorical"])
def test_a_gradient_does_not_depend_on_what_all_logits_have_in_common(
    backend: Backend, name: str
) -> None:
    found = []
    for common in (0.0, 2.0**20):
        policy, _, data = pair(BY_NAME[name], torch.float64)
        sizes, last = list(policy.head.nvec), policy.body[-1]
        with torch.no_grad():
            last.weight.zero_()
            for block in last.bias.split(sizes):
                block.copy_(common - 12 * torch.arange(len(block)))
        data |= {"actions": torch.zeros_like(data["actions"]), "old_log_prob": None}
        found.append(backend.build(policy, data, Options()).surrogate_gradient()[1])
    assert_close(found[1], found[0], 1e-10)


@every_backend
def test_the_gradient_and_loss_of_bits_that_are_all_but_certain(backend: Backend) -> None:
    """log p is -e^-33: what is left of it decides whether a candidate is an improvement."""
    policy, _, data = pair(BY_NAME["bernoulli"], torch.float64)
    last = policy.body[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(33.0)
    data["actions"] = torch.ones_like(data["actions"])
    data |= {"advantages": torch.ones_like(data["advantages"]), "old_log_prob": None}
    problem = backend.build(policy, data, Options())
    before, g = problem.surrogate_gradient()
    if problem.backend != "generic":  # whose log_prob is torch's
        assert g[-3:].tolist() == pytest.approx([math.exp(-33)] * 3, rel=1e-12)
    theta = problem.parameters.read()
    theta[-3:] += 1
    after, _ = problem.evaluate(theta)
    # Three bits, each log p from -e^-33 to -e^-34
    assert before - after == pytest.approx(3 * (math.exp(-33) - math.exp(-34)), abs=1e-15, rel=0)


@every_backend
@every_dtype
def test_the_fisher_product_of_bits_that_are_all_but_certain(
    backend: Backend, dtype: torch.dtype
) -> None:
    policy, exact, data = pair(BY_NAME["bernoulli"], dtype)
    for module in (policy, exact):
        with torch.no_grad():
            module.body[-1].weight.mul_(0.1)
            module.body[-1].bias.fill_(14.0)
    problem = backend.build(policy, in_dtype(data, dtype), Options())
    F = dense_fisher(exact, data)
    v = torch.randn(len(F), generator=torch.Generator().manual_seed(0)).to(dtype)
    tolerance = max(backend.tolerance[dtype], 1e-9)  # the oracle's own p (1 - p) in float64
    assert_close(problem.fisher_product(v), F @ v.double(), tolerance)
