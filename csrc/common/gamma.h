// The gamma function's logarithm and its derivatives, and variables of its distribution.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/probabilities.h"

namespace trpo_fast {

// log Gamma and its first four derivatives (digamma, trigamma, ...) at x > 0.
struct GammaValues {
  double log, first, second, third, fourth;
};

// By their recurrences up to kAsymptotic, and the asymptotic series from there (Abramowitz & Stegun
// 1964, 6.1.40, 6.3.18, 6.4.12-14), whose next terms are below 1e-16 of the sum.
TRPO_FAST_HOST_DEVICE GammaValues gamma_values(double x) {
  constexpr double kAsymptotic = 10;
  GammaValues below{0, 0, 0, 0, 0};
  double product = 1;
  while (x < kAsymptotic) {
    const double r = 1 / x, r2 = r * r;
    product *= x;
    below.first += r;
    below.second += r2;
    below.third += 2 * r2 * r;
    below.fourth += 6 * r2 * r2;
    x += 1;
  }
  const double r = 1 / x, s = r * r;
  // With B the Bernoulli numbers 1/6, -1/30, 1/42, -1/30, 5/66, -691/2730, 7/6, -3617/510: of the
  // n-th derivative the k-th term is B_2k (2k + n - 2)! / (2k)! x^-(2k + n - 1), up to the sign.
  const double log =
      r * (1. / 12 +
           s * (-1. / 360 +
                s * (1. / 1260 +
                     s * (-1. / 1680 + s * (1. / 1188 + s * (-691. / 360360 + s * (1. / 156)))))));
  const double first =
      s * (1. / 12 + s * (-1. / 120 +
                          s * (1. / 252 + s * (-1. / 240 + s * (1. / 132 + s * (-691. / 32760 +
                                                                                s * (1. / 12)))))));
  const double second =
      r * s *
      (1. / 6 +
       s * (-1. / 30 +
            s * (1. / 42 + s * (-1. / 30 + s * (5. / 66 + s * (-691. / 2730 +
                                                               s * (7. / 6 - s * 3617. / 510)))))));
  const double third =
      s * s *
      (1. / 2 +
       s * (-1. / 6 +
            s * (1. / 6 + s * (-3. / 10 + s * (5. / 6 + s * (-691. / 210 + s * 35. / 2))))));
  const double fourth =
      s * s * r * (2 + s * (-1 + s * (4. / 3 + s * (-3 + s * (10 + s * (-691. / 15 + s * 280))))));
  const double log_x = std::log(x);
  return {(x - 0.5) * log_x - x + kHalfLog2Pi + log - std::log(product),
          log_x - 0.5 * r - first - below.first, r + 0.5 * s + second + below.second,
          -(s + s * r + third + below.third), 2 * s * r + 3 * s * s + fourth + below.fourth};
}

// log Gamma(y) - log Gamma(x) - digamma(x) (y - x): never negative, without cancellation near 0.
TRPO_FAST_HOST_DEVICE double log_gamma_divergence(double x, double y) {
  const GammaValues at = gamma_values(x);
  const double d = y - x;
  // What the series leaves out is 1e-9 of it there, and beyond, what the difference loses.
  if (std::fabs(d) < 1e-3 * x) {
    return d * d * (0.5 * at.second + d * (at.third / 6 + d * at.fourth / 24));
  }
  return gamma_values(y).log - at.log - at.first * d;
}

// Numbers in (0, 1): SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
// generators").
struct UniformStream {
  std::uint64_t state;

  TRPO_FAST_MEMBER double next() {
    state += 0x9E3779B97F4A7C15u;
    std::uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return (double(z >> 11) + 0.5) * (1.0 / 9007199254740992.0);
  }
};

// A gamma variable of shape >= 1 (Marsaglia & Tsang 2000, "A simple method for generating gamma
// variables"), on normal numbers by Box & Muller 1958. NaN for a shape that is not finite, of which
// no round would be taken.
TRPO_FAST_HOST_DEVICE double draw_gamma(double shape, UniformStream& uniforms) {
  constexpr double kTwoPi = 6.28318530717958647693;
  const double d = shape - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  if (!std::isfinite(d)) return NAN;
  while (true) {
    const double radius = uniforms.next(), angle = uniforms.next(), u = uniforms.next();
    const double x = std::sqrt(-2 * std::log(radius)) * std::cos(kTwoPi * angle);
    const double root = 1 + c * x, v = root * root * root, x2 = x * x;
    if (!(v > 0)) continue;
    // Their squeeze, which the exact condition follows from, without a logarithm.
    if (u < 1 - 0.0331 * x2 * x2) return d * v;
    if (std::log(u) < 0.5 * x2 + d * (1 - v + std::log(v))) return d * v;
  }
}

}  // namespace trpo_fast
