"""One thread for small products, and the caller's number afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from trpo_fast.base.threads import (
    SMALL_PRODUCT,
    largest_product,
    one_thread_if_small,
    usable_cores,
)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_small_networks_run_on_one_thread(three_threads):
    with one_thread_if_small(nn.Linear(64, 64), 128):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_large_products_keep_their_threads(three_threads):
    rows = SMALL_PRODUCT // 64**2 + 1
    with one_thread_if_small(nn.Linear(64, 64), rows):
        assert torch.get_num_threads() == 3


def test_the_number_is_put_back_after_an_error(three_threads):
    with pytest.raises(RuntimeError), one_thread_if_small(nn.Linear(2, 2), 1):
        raise RuntimeError
    assert torch.get_num_threads() == 3


def test_the_largest_product_counts_matrices_only():
    assert largest_product(nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)), 10) == 150
    assert largest_product(nn.Module(), 10) == 10


def test_the_critics_bits_do_not_depend_on_the_number_of_threads():
    import numpy as np

    from trpo_fast.agent.critic import Critic

    weights = []
    before = torch.get_num_threads()
    for threads in (1, 4):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(17, 64), nn.Tanh(), nn.Linear(64, 1), nn.Flatten(0))
        observations, returns = torch.randn(2048, 17), torch.randn(2048)
        critic = Critic(net, learning_rate=1e-3, epochs=2, batch_size=128)
        critic.fit(observations, returns, np.random.default_rng(0))
        weights.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    torch.set_num_threads(before)
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "1600000 100000\n"}, 8),
        ({"cpu.max": "what is this\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({}, 8),
    ],
)
def test_a_quota_counts_as_so_many_cores(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("trpo_fast.base.threads._CONTROL_GROUP", tmp_path)
    assert usable_cores() == cores
