// Log-probabilities and divergences of the numbers that heads are made of, without cancellation
// near 0 and without overflow. In double: a row has few outputs, and the sums that decide a step
// lose nothing to the network's precision.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace trpo_fast {

constexpr double kHalfLog2Pi = 0.91893853320467274178;

// log(1 + exp(x)) without overflow.
TRPO_FAST_HOST_DEVICE double softplus(double x) {
  return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
}

// log sum exp over the allowed logits of a block, in two parts: added up, the lesser one would be
// lost to the rounding of large logits, and with it what tells a probability from 1.
struct LogNormalizer {
  double top, rest;
};

TRPO_FAST_HOST_DEVICE double normalized(double logit, const LogNormalizer& by) {
  return (logit - by.top) - by.rest;
}

template <class T>
TRPO_FAST_HOST_DEVICE LogNormalizer log_normalizer(const T* logits, const std::uint8_t* mask,
                                                   Index n) {
  double top = -INFINITY;
  for (Index i = 0; i < n; ++i) {
    // Written so that a NaN logit is not skipped.
    if ((mask == nullptr || mask[i]) && !(double(logits[i]) <= top)) top = logits[i];
  }
  double sum = 0;
  for (Index i = 0; i < n; ++i) {
    if (mask == nullptr || mask[i]) sum += std::exp(double(logits[i]) - top);
  }
  return {top, std::log(sum)};
}

// p's share of KL(p || q), with the term q - p that sums to 0 added so that every share is >= 0.
TRPO_FAST_HOST_DEVICE double category_kl(double log_p, double log_q) {
  const double p = std::exp(log_p), d = log_q - log_p;
  if (std::fabs(d) < 1e-4) return p * d * d * (0.5 + d * (1.0 / 6 + d / 24));
  if (std::fabs(d) < 30) return p * (std::expm1(d) - d);
  const double cross = p > 0 ? p * d : 0;  // p = 0 and log q = -inf: a category neither can take
  return std::exp(log_q) - p - cross;
}

// The first allowed category whose cumulative probability exceeds u: inversion. Rounding at the end
// of the sum, or NaN logits, take the last allowed one.
template <class T>
TRPO_FAST_HOST_DEVICE Index draw_category(const T* logits, const std::uint8_t* mask, Index n,
                                          double u) {
  const LogNormalizer normalizer = log_normalizer(logits, mask, n);
  double cumulative = 0;
  Index last = 0;
  for (Index i = 0; i < n; ++i) {
    if (mask != nullptr && !mask[i]) continue;
    const double p = std::exp(normalized(double(logits[i]), normalizer));
    if (p == 0) continue;
    cumulative += p;
    last = i;
    if (cumulative > u) break;
  }
  return last;
}

// KL between two Gaussians of one mean, e = 2 (log s_first - log s_second): (expm1(e) - e) / 2.
// With means d stds of the second apart it is d^2 / 2 more.
TRPO_FAST_HOST_DEVICE double scale_kl(double e) {
  // expm1(e) - e loses e^2 / 2 to rounding where e is tiny; its series does not.
  const double excess =
      std::fabs(e) < 1e-4 ? e * e * (0.5 + e * (1.0 / 6 + e / 24)) : std::expm1(e) - e;
  return 0.5 * excess;
}

}  // namespace trpo_fast
