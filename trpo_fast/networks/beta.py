"""The Beta head: actions of a bounded Box, without mass outside it and without clipping.

Chou et al. 2017, "Improving stochastic policy gradients in continuous control with deep
reinforcement learning using the Beta distribution": both concentrations are 1 + softplus(output),
so that each density has one mode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from gymnasium import spaces
from torch import Tensor
from torch.distributions import Beta, Distribution, Independent
from torch.nn.functional import softplus

from trpo_fast.networks.head import Head, Outputs, Product, box_width, clipped


@dataclass(frozen=True)
class BetaHead(Head):
    """Independent Beta variables in (0, 1); the outputs are those of alpha ``[A]``, beta ``[A]``.

    ``MlpPolicy.to_env`` takes them to the Box's bounds. KL and Fisher matrix are those of the
    action there: both are invariant under an affine map.
    """

    kind = "beta"
    width: int

    @classmethod
    def for_space(
        cls, space: spaces.Space[Any], *, state_dependent_std: bool, distribution: str
    ) -> Self | None:
        width = box_width(space)
        return cls(width) if width is not None and distribution == "beta" else None

    @property
    def components(self) -> int:
        return self.width

    @property
    def outputs(self) -> int:
        return 2 * self.width

    def parts(self, at: Outputs) -> tuple[Tensor, ...]:
        alpha, beta = _concentrations(at.values).chunk(2, dim=-1)
        return alpha, beta

    def distribution(self, at: Outputs) -> Distribution:
        alpha, beta = self.parts(at)
        return Independent(Beta(alpha, beta, validate_args=False), 1, validate_args=False)

    def score(self, at: Outputs, actions: Tensor) -> tuple[Tensor, Tensor | None]:
        values = at.values.double()
        alpha, beta = _concentrations(values).chunk(2, dim=1)
        x, whole = actions.double(), torch.digamma(alpha + beta)
        slopes = [x.log() - torch.digamma(alpha), torch.log1p(-x) - torch.digamma(beta)]
        return torch.sigmoid(values) * (torch.cat(slopes, 1) + torch.cat([whole, whole], 1)), None

    def metric(self, at: Outputs) -> Product:
        first, below, second = (part.to(at.values.dtype) for part in _metric_root(at.values))

        def product(u: Tensor) -> Tensor:  # L L' u, pair by pair
            u_alpha, u_beta = u.chunk(2, dim=1)
            z_alpha, z_beta = first * u_alpha + below * u_beta, second * u_beta
            return torch.cat([first * z_alpha, below * z_alpha + second * z_beta], 1)

        return product

    def metric_root(self, at: Outputs, signs: Tensor) -> Tensor:
        first, below, second = (part.to(at.values.dtype) for part in _metric_root(at.values))
        s_alpha, s_beta = signs.chunk(2, dim=1)
        return torch.cat([first * s_alpha, below * s_alpha + second * s_beta], 1)

    def draw(self, at: Outputs, noise: Tensor) -> Tensor:
        alpha, beta = _concentrations(at.values.double()).chunk(2, dim=-1)
        drawn = beta_draw(alpha, beta, noise).to(at.values.dtype)
        limits = torch.finfo(drawn.dtype)
        return drawn.clamp(limits.tiny, 1 - limits.eps / 2)  # as torch's own samples

    def checked_actions(self, actions: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        actions = actions.to(dtype)
        inside = (actions > 0) & (actions < 1)
        if not bool(inside.all()):
            value = float(actions[~inside][0])
            raise ValueError(
                f"actions of a Beta distribution lie strictly within (0, 1), as its samples do; "
                f"got {value}"
            )
        return actions

    def to_env(self, actions: Tensor, low: Tensor, high: Tensor) -> Tensor:
        # A mean rounds to 1 beside a far smaller concentration, the map past the bound by one ulp.
        return clipped(actions, low, high)


# First log deviations, in units of half the range. At -0.55 a Beta is uniform, where softplus has
# no slope left; from -6 on float32 tells concentrations apart too coarsely for a KL.
LEAST_LOG_STD, GREATEST_LOG_STD = -5.0, math.log(0.5)


def output_for(log_std: float) -> float:
    """The output for which both concentrations c give this log deviation, or the nearest bound's.

    In units of half the range, in which Beta(c, c) has a variance of 1 / (2 c + 1).
    """
    log_std = min(max(log_std, LEAST_LOG_STD), GREATEST_LOG_STD)
    more = (math.exp(-2 * log_std) - 3) / 2  # c - 1, at least 1/2
    return more + math.log(-math.expm1(-more))  # softplus's inverse


def _concentrations(outputs: Tensor) -> Tensor:
    return 1 + softplus(outputs)


def _metric_root(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """L's entries l11, l21, l22 ``[n, A]`` in float64, with L L' the Fisher matrix of a pair.

    By alpha and beta that is diag(trigamma(alpha), trigamma(beta)) - trigamma(alpha + beta)
    (Johnson, Kotz & Balakrishnan 1995, Continuous Univariate Distributions, vol. 2, ch. 25); by the
    outputs, softplus's slopes multiply its rows and columns. Kept as a root, no rounding can make
    a product u'L L'u negative.
    """
    outputs = outputs.double()
    alpha, beta = _concentrations(outputs).chunk(2, dim=1)
    slope_alpha, slope_beta = torch.sigmoid(outputs).chunk(2, dim=1)
    of_alpha, of_beta, of_sum = (_trigamma(c) for c in (alpha, beta, alpha + beta))
    first = (of_alpha - of_sum).sqrt()
    below = -of_sum / first
    rest = of_alpha * of_beta - of_sum * (of_alpha + of_beta)  # the determinant
    second = rest.clamp_min(0).sqrt() / first
    return slope_alpha * first, slope_beta * below, slope_beta * second


def _trigamma(x: Tensor) -> Tensor:
    """By Hurwitz's zeta (Abramowitz & Stegun 1964, 6.4.10): torch's polygamma is 5e-10 off at 1."""
    found: Tensor = torch.special.zeta(torch.full_like(x, 2.0), x)
    return found


# Drawing: two gamma variables by rejection (Marsaglia & Tsang 2000, "A simple method for generating
# gamma variables"), on random numbers that a hash makes of the one that is given: a draw is then a
# function of outputs and noise alone, as every head's.
_MIXING = 0x9E3779B97F4A7C15
_ROUNDS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def beta_draw(alpha: Tensor, beta: Tensor, noise: Tensor) -> Tensor:
    """Beta variables from uniform noise in [0, 1), all of one shape, in float64."""
    state = (noise.double() * 2.0**53).to(torch.int64)
    first, state = _gamma_draw(alpha, state)
    second, _ = _gamma_draw(beta, state)
    return first / (first + second)


def _gamma_draw(shape: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Gamma variables of shape >= 1, and the state after them; as many rounds as the last needs."""
    d = shape - 1 / 3
    c = 1 / (9 * d).sqrt()
    drawn, pending = torch.zeros_like(d), torch.ones_like(d, dtype=torch.bool)
    while bool(pending.any()):
        uniforms = []
        moved = state
        for _ in range(3):
            moved = moved + _signed(_MIXING)
            uniforms.append(_uniform(moved))
        state = torch.where(pending, moved, state)
        # Box & Muller 1958
        x = (-2 * uniforms[0].log()).sqrt() * torch.cos(2 * math.pi * uniforms[1])
        v = (1 + c * x) ** 3
        positive = v > 0
        bound = 0.5 * x * x + d * (1 - v + torch.where(positive, v, 1.0).log())
        taken = pending & positive & (uniforms[2].log() < bound)
        drawn = torch.where(taken, d * v, drawn)
        # NaN and infinity are never taken, and never would be.
        drawn = torch.where(pending & ~d.isfinite(), torch.nan, drawn)
        pending = pending & ~taken & d.isfinite()
    return drawn, state


def _uniform(state: Tensor) -> Tensor:
    """A number in (0, 1) of a 64-bit state: SplitMix64's output (Steele, Lea & Flood 2014)."""
    z = state
    for shift, factor in _ROUNDS:
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    z = z ^ _shifted(z, 31)
    return (_shifted(z, 11).double() + 0.5) * 2.0**-53


def _shifted(z: Tensor, by: int) -> Tensor:
    """A right shift that brings zeros in, whatever the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word
