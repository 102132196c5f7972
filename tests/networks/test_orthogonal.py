"""Orthogonal initial weights: torch's to rounding, in bits that depend on the seed alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from trpo_fast.networks.orthogonal import orthogonal_

SHAPES = [(1, 1), (1, 5), (5, 1), (64, 17), (17, 64), (64, 64), (200, 200), (6, 300)]


def made(shape: tuple[int, int], dtype: torch.dtype = torch.float32, seed: int = 3) -> torch.Tensor:
    weight = torch.empty(shape, dtype=dtype)
    orthogonal_(weight, math.sqrt(2), torch.Generator().manual_seed(seed))
    return weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_torchs_to_rounding(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = made(shape, dtype)
    expected = torch.empty(shape, dtype=dtype)
    nn.init.orthogonal_(expected, math.sqrt(2), generator=torch.Generator().manual_seed(3))
    bound = 2e-5 if dtype is torch.float32 else 1e-11
    torch.testing.assert_close(weight, expected, rtol=0, atol=bound)
    small = weight.double() if shape[0] < shape[1] else weight.double().T
    eye = 2 * torch.eye(min(shape), dtype=torch.float64)
    # Gram-Schmidt loses eps times the condition number of what was drawn (Bjorck 1967).
    bound = 5e-6 if dtype is torch.float32 else 5e-13
    torch.testing.assert_close(small @ small.T, eye, rtol=0, atol=bound)


def test_the_generator_is_used_and_moved() -> None:
    assert torch.equal(made((8, 8)), made((8, 8)))
    assert not torch.equal(made((8, 8)), made((8, 8), seed=4))
    torch.manual_seed(5)
    first, second = torch.empty(8, 8), torch.empty(8, 8)
    orthogonal_(first, 1.0)
    orthogonal_(second, 1.0)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    again = nn.Parameter(torch.empty(8, 8))
    orthogonal_(again, 1.0)
    assert torch.equal(again, first)


def test_without_memory_nothing_is_written() -> None:
    weight = torch.empty(8, 8, device="meta")
    orthogonal_(weight, 1.0)
    assert weight.is_meta


CODE = """
import hashlib, torch
from gymnasium import spaces
from trpo_fast.networks.mlp import MlpPolicy, ValueFunction
torch.set_num_threads({threads})
box = spaces.Box(-1, 1, (300,))
made = [f(generator=torch.Generator().manual_seed(1)) for f in (
    lambda **k: MlpPolicy(box, spaces.Box(-1, 1, (6,)), (257, 300), **k),
    lambda **k: ValueFunction(box, (300,), **k))]
bits = b"".join(p.detach().numpy().tobytes() for m in made for p in m.parameters())
print(hashlib.sha256(bits).hexdigest())
"""


@pytest.mark.reliability("initial_weights")
def test_a_seed_means_the_same_with_any_number_of_threads(
    run_python: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = set()
    for threads in (1, 2, 3, 8):
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            monkeypatch.setenv(name, str(threads))
        done = run_python(CODE.replace("{threads}", str(threads)))
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


FORKED = """
import os, sys, torch
from gymnasium import spaces
from trpo_fast.networks.mlp import MlpPolicy
torch.set_num_threads(4)
a = torch.randn(600, 600)
torch.linalg.qr(a @ a)  # OpenMP's threads are there now, and a child has none
box = spaces.Box(-1, 1, (300,))
if os.fork() == 0:
    MlpPolicy(box, spaces.Box(-1, 1, (6,)), (300, 300))
    os._exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.reliability("initial_weights")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_makes_a_policy(run_python: Any) -> None:
    done = run_python(FORKED)
    assert (done.returncode, done.stdout.strip()) == (0, "7"), done.stderr
