"""How options that may adapt themselves change after a step."""

from __future__ import annotations

from trpo_fast.update.options import Options
from trpo_fast.update.result import Status, TrustRegionResult

BETA_RANGE = (1e-10, 1e10)  # keeps an adapted beta finite whatever the steps give
DAMPING_RANGE = (1e-6, 1e2)
DAMPING_FACTOR = 1.5  # Martens 2010, section 4.1


def adapted_beta(options: Options, kl: float) -> float:
    """Schulman et al. 2017 (1707.06347), section 4."""
    beta = options.beta
    if kl > 1.5 * options.max_kl:
        beta = 2 * beta
    elif kl < options.max_kl / 1.5:
        beta = beta / 2
    return min(max(beta, BETA_RANGE[0]), BETA_RANGE[1])


def adapted_damping(options: Options, result: TrustRegionResult) -> float:
    """Levenberg-Marquardt's rule, after Martens 2010, section 4.1.

    There the ratio of actual to expected improvement alone decides. A trust region has a second
    witness, the KL: with it, damping falls only while x'(F + damping I)x is half as much again as
    the KL says that x'Fx is.
    """
    damping = options.damping
    if options.constraint == "none" or result.status in (Status.zero_gradient, Status.zero_step):
        return damping
    ratio = result.actual_improvement / max(result.expected_improvement, 1e-300)
    modelled, overshot = options.max_kl, result.backtracks > 0
    if options.constraint == "hard":
        # s^2 x'(F + dI)x / 2, since x'g = x'(F + dI)x
        modelled = 0.5 * result.step_size * result.expected_improvement
        overshot &= options.step_size == "damped"  # else a later candidate may be a longer one
    if not result.accepted or overshot or ratio < 0.25:
        damping *= DAMPING_FACTOR
    elif ratio > 0.75 and result.kl < modelled / DAMPING_FACTOR:
        damping /= DAMPING_FACTOR
    else:
        return damping
    return min(max(damping, DAMPING_RANGE[0]), DAMPING_RANGE[1])
