"""Which rows a share of a batch takes, and means that leave rows out."""

from __future__ import annotations

import math

import torch

from trpo_fast.base.tensors import strided_rows, weighted_mean


def test_strided_rows() -> None:
    device = torch.device("cpu")
    assert strided_rows(10, 1.0, device).tolist() == list(range(10))
    assert strided_rows(10, 0.5, device).tolist() == [0, 2, 4, 6, 8]
    assert strided_rows(7, 0.01, device).tolist() == [0]
    assert strided_rows(7, 0.4, device).tolist() == [0, 2, 4]
    # Beyond 32 bits.
    assert strided_rows(3_000_000_000, 1e-9, device).tolist()[-1] > 2**30


def test_weighted_mean_ignores_rows_of_weight_0() -> None:
    values = torch.tensor([1.0, math.nan, 3.0, math.inf])
    weights = torch.tensor([1.0, 0.0, 3.0, 0.0])
    assert float(weighted_mean(values, weights)) == 2.5
