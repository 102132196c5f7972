"""What K-FAC costs, in Fisher products and from sizes alone, and so when "auto" takes it."""

from __future__ import annotations

import math

from trpo_fast.networks.network import Network
from trpo_fast.preconditioning.kfac import EIGEN_WIDTH

# Rows that A is made of, anew at every update: observations have heavy tails, and what A has not
# seen costs an iteration (docs/preconditioning.md).
INPUT_ROWS = 8192
# Rows that G is made of: with 256 the first iterations gain a little less, with more nothing that
# pays (docs/preconditioning.md).
OUTPUT_ROWS = 512
# Most updates that use the same G: beyond, three iterations more are needed.
REFRESH = 5
# A new G may cost so many products an update: a little less, at what they really cost beside each
# other, than the iteration that a G of the update before costs (benchmarks/factor_quality.py).
REFRESH_PRODUCTS = 0.4
# Products that K-FAC must save to pay for its statistics: of ten, four are usually left.
PAYS_BELOW = 4.0
# Flop of a product below which there is nothing to save: plain iterations take microseconds.
LEAST_FLOP = 1 << 24
# Damping below which "auto" leaves it: there the solution itself is no good, having long components
# that the quadratic model is wrong about, and ten plain iterations do not get to them
# (docs/choosing-max-kl-and-damping.md).
LEAST_DAMPING, LEAST_RELATIVE_DAMPING = 1e-2, 5e-3
# What factorising [m, m] costs, in m^3 of the products' flop: as measured for m = 64 and m = 1024.
EIGEN_FLOP, INVERSE_FLOP = 100, 3


def kfac_pays(network: Network, rows: int, *, lasts: bool) -> bool:
    """Whether K-FAC saves more than it costs, from sizes alone.

    Args:
        network: The recognised policy.
        rows: Of the batch.
        lasts: Whether statistics are kept for the next solves.
    """
    if product_flop(network, rows) < LEAST_FLOP:
        return False
    interval = refresh_interval(network, rows) if lasts else 1
    return input_cost(network, rows) + output_cost(network, rows) / interval <= PAYS_BELOW


def damped_enough(damping: float, *, relative: bool) -> bool:
    """Whether the solution is one that should be found well."""
    return damping >= (LEAST_RELATIVE_DAMPING if relative else LEAST_DAMPING)


def product_flop(network: Network, rows: int) -> int:
    """Of one Fisher product: two GEMM pairs a layer, the first layer needs half of one."""
    weights = [layer.weight.numel() for layer in network.layers]
    return rows * (8 * sum(weights) - 4 * weights[0])


def input_cost(network: Network, rows: int) -> float:
    """Of a new A for every layer, in Fisher products; from sizes alone, never from the clock."""
    used, flop = min(rows, INPUT_ROWS), 0
    for layer in network.layers:
        m = layer.weight.shape[1] + 1
        flop += used * m * m + _factorising(network) * m**3
    return flop / max(product_flop(network, rows), 1)


def output_cost(network: Network, rows: int) -> float:
    """Of a new G for every layer, likewise."""
    used, flop = min(rows, OUTPUT_ROWS), 0
    for layer in network.layers:
        out = layer.weight.shape[0]
        flop += used * (out * out + 4 * layer.weight.numel()) + _factorising(network) * out**3
    return flop / max(product_flop(network, rows), 1)


def _factorising(network: Network) -> int:
    return INVERSE_FLOP if widest(network) > EIGEN_WIDTH else EIGEN_FLOP


def refresh_interval(network: Network, rows: int) -> int:
    """Updates that use the same G."""
    return min(max(math.ceil(output_cost(network, rows) / REFRESH_PRODUCTS), 1), REFRESH)


def widest(network: Network) -> int:
    """The largest side of its weights."""
    return max(max(layer.weight.shape) for layer in network.layers)
