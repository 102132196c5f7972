"""The trial of preconditioners for convolutions: its factors are those of the Fisher matrix."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from trpo_fast import CnnPolicy

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
IMAGES, ROWS = spaces.Box(0, 255, (4, 5, 2), np.uint8), 160


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("convolution_factors")


@pytest.fixture
def case(script: Any) -> Any:
    torch.manual_seed(0)
    policy = CnnPolicy(IMAGES, spaces.Discrete(3), image_features=4)
    obs = torch.randint(0, 256, (ROWS, *(IMAGES.shape or ())), dtype=torch.uint8)
    actions = policy(obs).sample()
    advantages = torch.randn(ROWS)
    batch = {"policy": policy, "obs": obs, "actions": actions, "advantages": advantages}
    return script.Case({**batch, "stride": 2, "update": 1})


def test_the_diagonal_and_the_factors_are_near_the_fisher_matrix(script: Any, case: Any) -> None:
    P, product = case.parameters, case.linear.product
    exact = torch.stack([product(row) for row in torch.eye(P.count)])
    rows = script.Draw(case.train.obs, case.train.obs)
    damping = 1e-4
    M = script.diagonal(case.policy, rows, P, damping)
    found = 1 / M.diagonal - damping
    assert float((found - exact.diagonal()).norm() / exact.diagonal().norm()) < 0.3  # one draw
    seen = script.calls(case.policy, case.train.obs)
    gradients = script.slopes(case.policy, seen)
    for call, e in zip(seen, gradients, strict=True):
        at, flat = script.place(call.layer, P), e.flatten(0, 1)
        places = at.weight + torch.arange(at.inputs * at.outputs)
        block = exact[places][:, places]
        A, G = call.moment()[:-1, :-1], flat.T @ flat / len(flat)
        # that inputs and gradients, and positions, are independent is what the factors assume
        assert float(A.trace() * G.trace() / block.trace()) == pytest.approx(1, abs=0.4)


def test_every_solve_gets_to_the_same_solution(script: Any, case: Any) -> None:
    best = case.exact(0.1)
    for name, make in script.preconditioners(case, 0.1):
        M = make()
        solve = case.solver(None if M is None else M.apply, 0.1)
        shares = [case.share(solve(n).x, 0.1) / best for n in (1, 30)]
        assert shares[0] < shares[1] == pytest.approx(1, abs=1e-4), name
        assert np.isfinite(case.gained(solve(30).x))


def test_the_tables_are_printed(script: Any, case: Any, capsys: Any) -> None:
    script.print_quality(case)
    script.print_costs(case, 1)
    text = capsys.readouterr().out
    assert text.count("| K-FAC |") == len(script.DAMPINGS)
    assert "K-FAC: factors" in text
