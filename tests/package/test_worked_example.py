"""examples/worked_example.py and docs/worked-example.md, against figures worked out here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from scripts import ROOT, script
from torch.distributions import Categorical, kl_divergence

OLD = torch.tensor([0.20, 0.80], dtype=torch.float64)


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        yield script("examples/worked_example.py", patch)


def true_kl(probability: float) -> float:
    """KL(old, new) of the whole distribution, by torch."""
    new = torch.tensor([probability, 1 - probability], dtype=torch.float64)
    return float(kl_divergence(Categorical(probs=OLD), Categorical(probs=new)))


def test_a_ratio_of_3_breaks_the_constraint(example: ModuleType) -> None:
    by_hand = 0.20 * math.log(0.20 / 0.60) + 0.80 * math.log(0.80 / 0.40)
    assert by_hand == pytest.approx(0.3348, abs=5e-5)
    assert true_kl(0.60) == pytest.approx(by_hand, rel=1e-12)
    assert example.kl_two(0.20, 0.60) == pytest.approx(by_hand, rel=1e-12)
    assert by_hand > 33 * example.MAX_KL


def test_the_single_term_is_no_kl() -> None:
    terms = [0.20 * math.log(0.20 / q) for q in (0.21, 0.60, 0.999)]
    assert max(terms) < 0 < true_kl(0.21)
    # "term <= 0.01" forbids nothing: it is largest where nothing moved at all.
    assert max(terms) < 0.01


def test_three_actions_cost_no_less_than_two() -> None:
    old = Categorical(probs=torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64))
    costs = []
    for share in torch.linspace(0.01, 0.99, 99, dtype=torch.float64):
        new = torch.stack([torch.full_like(share, 0.6), 0.4 * share, 0.4 * (1 - share)])
        costs.append(float(kl_divergence(old, Categorical(probs=new))))
    assert min(costs) >= true_kl(0.60) - 1e-12
    assert min(costs) == pytest.approx(true_kl(0.60), rel=1e-3)


def test_how_far_it_may_go(example: ModuleType) -> None:
    edge = example.reach(0.20, 0.01)
    assert edge == pytest.approx(0.2603, abs=5e-5)
    assert true_kl(edge) <= 0.01 < true_kl(edge + 1e-6)
    assert true_kl(0.25) == pytest.approx(0.0070, abs=5e-5)


def test_the_hard_constraint_scales_a_step_to_0_60_back(example: ModuleType) -> None:
    free = example.outcomes()["natural gradient, sized for 0.60"]
    assert free.probability == pytest.approx(0.60, abs=1e-9)
    assert free.kl == pytest.approx(true_kl(0.60), rel=1e-9)
    held = example.outcomes()["hard, damped, first at 0.60"]
    # The log-odds move by 1.79 times 0.8 for each rejection, until the KL fits.
    start, full = math.log(0.25), math.log(1.5) - math.log(0.25)
    odds = [math.exp(start + full * 0.8**j) for j in range(11)]
    candidates = [o / (1 + o) for o in odds]
    expected = next(j for j, q in enumerate(candidates) if true_kl(q) <= 0.01)
    assert candidates[0] == pytest.approx(0.60)
    assert held.backtracks == expected == 8
    assert held.probability == pytest.approx(candidates[8], rel=1e-9)


def test_the_boundary_rule_spends_the_bound(example: ModuleType) -> None:
    found = example.outcomes()["hard"]
    assert 0.258 <= found.probability <= example.reach(0.20, 0.01)
    assert found.backtracks <= 2


def test_only_the_hard_form_keeps_the_bound(example: ModuleType) -> None:
    found = example.outcomes()
    for name, outcome in found.items():
        assert outcome.probability > 0.20
        if outcome.probability < 1 - 1e-9:
            assert outcome.kl == pytest.approx(true_kl(outcome.probability), rel=1e-6)
        assert (outcome.kl <= 0.01) == name.startswith("hard"), name
    assert found["penalty, beta 100"].kl < found["penalty, beta 1"].kl
    assert found["hard"].probability > found["hard, damped"].probability
    # The penalty form's step is x / beta: the log-odds move by 50 / beta.
    odds = 0.25 * math.exp(50 / 100)
    assert found["penalty, beta 100"].probability == pytest.approx(odds / (1 + odds), rel=1e-9)


def test_the_page_shows_what_the_example_prints(example: ModuleType) -> None:
    page = (ROOT / "docs" / "worked-example.md").read_text()
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) \| ([\d.]+) \| (.+?) \|$", page, re.MULTILINE)
    assert len(rows) == 6
    for (_, probability, kl, further), found in zip(rows, example.outcomes().values(), strict=True):
        assert float(probability) == pytest.approx(found.probability, abs=5e-5)
        assert float(kl) == pytest.approx(found.kl, abs=5 * 10.0 ** -(len(kl.split(".")[1]) + 1))
        assert further in (str(found.backtracks), "nothing is checked")


def test_it_prints(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    example.main()
    printed = capsys.readouterr().out
    assert "0.3348" in printed
    assert "0.2603" in printed
