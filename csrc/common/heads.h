// Policy heads: how a row of network outputs parametrises the action distribution, one row at a
// time.
//
// Every function works in double: the sums that decide a step (log-probabilities, KL) lose nothing
// to the network's precision, and a row has few outputs. KL terms are written without cancellation
// near 0.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/activations.h"

namespace trpo_fast {

using Index = std::int64_t;

enum class HeadKind : int {
  gaussian = 0,            // outputs: mean [A]; log std [A] is a parameter
  gaussian_state_std = 1,  // outputs: mean [A], log std [A]
  categorical = 2,         // outputs: logits, one block
  multi_categorical = 3,   // outputs: logits, one block an action dimension
  bernoulli = 4,           // outputs: logits [A]
};
constexpr int kHeadCount = 5;

struct Head {
  HeadKind kind;
  Index outputs;      // width of the last layer
  Index actions;      // A; for categorical heads the number of blocks
  const Index* nvec;  // sizes of the categorical blocks [actions], else null
};

// The state-independent log std at some parameters, and what is made of it. [A] each.
struct GaussianScale {
  const double* log_std;
  const double* inv_std;
};

// One row's action: real numbers [A] or category numbers [blocks].
template <class T>
struct RowAction {
  const T* real;
  const std::int64_t* category;
  Index stride;
};

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

template <class T>
TRPO_FAST_HOST_DEVICE double log_prob(const Head& head, const T* o, const GaussianScale& scale,
                                      const RowAction<T>& action, const std::uint8_t* mask) {
  double total = 0;
  switch (head.kind) {
    case HeadKind::gaussian:
      for (Index a = 0; a < head.actions; ++a) {
        const double z = (double(action.real[a * action.stride]) - double(o[a])) * scale.inv_std[a];
        total -= 0.5 * z * z + scale.log_std[a] + kHalfLog2Pi;
      }
      break;
    case HeadKind::gaussian_state_std:
      for (Index a = 0; a < head.actions; ++a) {
        const double log_std = o[head.actions + a];
        const double z =
            (double(action.real[a * action.stride]) - double(o[a])) * std::exp(-log_std);
        total -= 0.5 * z * z + log_std + kHalfLog2Pi;
      }
      break;
    case HeadKind::categorical:
    case HeadKind::multi_categorical:
      for (Index a = 0; a < head.actions; ++a) {
        const Index n = head.nvec[a], chosen = action.category[a * action.stride];
        const bool allowed = mask == nullptr || mask[chosen];
        total += allowed ? normalized(double(o[chosen]), log_normalizer(o, mask, n)) : -INFINITY;
        o += n;
        if (mask != nullptr) mask += n;
      }
      break;
    case HeadKind::bernoulli:
      for (Index a = 0; a < head.actions; ++a) {
        // 0 or 1, so that log p and log (1 - p) keep their digits where they are nearly 0
        const bool one = action.real[a * action.stride] > T(0.5);
        total -= softplus(one ? -double(o[a]) : double(o[a]));
      }
      break;
  }
  return total;
}

// delta = coefficient * d log_prob / d outputs; log_std_gradient [A] += coefficient * d log_prob /
// d log std, where it is not null.
template <class T>
TRPO_FAST_HOST_DEVICE void log_prob_gradient(const Head& head, const T* o,
                                             const GaussianScale& scale, const RowAction<T>& action,
                                             const std::uint8_t* mask, double coefficient, T* delta,
                                             double* log_std_gradient) {
  switch (head.kind) {
    case HeadKind::gaussian:
      for (Index a = 0; a < head.actions; ++a) {
        const double z = (double(action.real[a * action.stride]) - double(o[a])) * scale.inv_std[a];
        delta[a] = T(coefficient * z * scale.inv_std[a]);
        if (log_std_gradient != nullptr) log_std_gradient[a] += coefficient * (z * z - 1);
      }
      break;
    case HeadKind::gaussian_state_std:
      for (Index a = 0; a < head.actions; ++a) {
        const double inv_std = std::exp(-double(o[head.actions + a]));
        const double z = (double(action.real[a * action.stride]) - double(o[a])) * inv_std;
        delta[a] = T(coefficient * z * inv_std);
        delta[head.actions + a] = T(coefficient * (z * z - 1));
      }
      break;
    case HeadKind::categorical:
    case HeadKind::multi_categorical:
      for (Index a = 0; a < head.actions; ++a) {
        const Index n = head.nvec[a], chosen = action.category[a * action.stride];
        const LogNormalizer normalizer = log_normalizer(o, mask, n);
        for (Index i = 0; i < n; ++i) {
          const bool allowed = mask == nullptr || mask[i];
          const double p = allowed ? std::exp(normalized(double(o[i]), normalizer)) : 0;
          delta[i] = T(coefficient * (double(i == chosen) - p));
        }
        o += n;
        delta += n;
        if (mask != nullptr) mask += n;
      }
      break;
    case HeadKind::bernoulli:
      for (Index a = 0; a < head.actions; ++a) {
        // 1 - p or -p, without the difference
        const bool one = action.real[a * action.stride] > T(0.5);
        const double slope =
            one ? std::exp(-softplus(double(o[a]))) : -std::exp(-softplus(-double(o[a])));
        delta[a] = T(coefficient * slope);
      }
      break;
  }
}

// KL between two Gaussians of one mean, e = 2 (log s_first - log s_second): (expm1(e) - e) / 2.
// With means d stds of the second apart it is d^2 / 2 more.
TRPO_FAST_HOST_DEVICE double scale_kl(double e) {
  // expm1(e) - e loses e^2 / 2 to rounding where e is tiny; its series does not.
  const double excess =
      std::fabs(e) < 1e-4 ? e * e * (0.5 + e * (1.0 / 6 + e / 24)) : std::expm1(e) - e;
  return 0.5 * excess;
}

// What every row's KL owes to scales that are no outputs; 0 for heads without such.
TRPO_FAST_HOST_DEVICE double shared_kl(const Head& head, const GaussianScale& first,
                                       const GaussianScale& second) {
  double total = 0;
  for (Index a = 0; head.kind == HeadKind::gaussian && a < head.actions; ++a) {
    total += scale_kl(2 * (first.log_std[a] - second.log_std[a]));
  }
  return total;
}

// p's share of KL(p || q), with the term q - p that sums to 0 added so that every share is >= 0.
TRPO_FAST_HOST_DEVICE double category_kl(double log_p, double log_q) {
  const double p = std::exp(log_p), d = log_q - log_p;
  if (std::fabs(d) < 1e-4) return p * d * d * (0.5 + d * (1.0 / 6 + d / 24));
  if (std::fabs(d) < 30) return p * (std::expm1(d) - d);
  const double cross = p > 0 ? p * d : 0;  // p = 0 and log q = -inf: a category neither can take
  return std::exp(log_q) - p - cross;
}

// KL(first || second) of one row, summed over action dimensions, but for shared_kl.
template <class T>
TRPO_FAST_HOST_DEVICE double row_kl(const Head& head, const T* first, const T* second,
                                    const GaussianScale& second_scale, const std::uint8_t* mask) {
  double total = 0;
  const Index A = head.actions;
  switch (head.kind) {
    case HeadKind::gaussian:
      for (Index a = 0; a < A; ++a) {
        const double d = (double(first[a]) - double(second[a])) * second_scale.inv_std[a];
        total += 0.5 * d * d;
      }
      break;
    case HeadKind::gaussian_state_std:
      for (Index a = 0; a < A; ++a) {
        const double log_std = second[A + a];
        const double d = (double(first[a]) - double(second[a])) * std::exp(-log_std);
        total += 0.5 * d * d + scale_kl(2 * (double(first[A + a]) - log_std));
      }
      break;
    case HeadKind::categorical:
    case HeadKind::multi_categorical:
      for (Index a = 0; a < A; ++a) {
        const Index n = head.nvec[a];
        const LogNormalizer first_normalizer = log_normalizer(first, mask, n);
        const LogNormalizer second_normalizer = log_normalizer(second, mask, n);
        for (Index i = 0; i < n; ++i) {
          if (mask != nullptr && !mask[i]) continue;
          total += category_kl(normalized(double(first[i]), first_normalizer),
                               normalized(double(second[i]), second_normalizer));
        }
        first += n;
        second += n;
        if (mask != nullptr) mask += n;
      }
      break;
    case HeadKind::bernoulli:
      for (Index a = 0; a < A; ++a) {
        const double x = first[a], y = second[a];
        total +=
            category_kl(-softplus(-x), -softplus(-y)) + category_kl(-softplus(x), -softplus(y));
      }
      break;
  }
  return total;
}

// All of a row's KL.
template <class T>
TRPO_FAST_HOST_DEVICE double kl(const Head& head, const T* first, const GaussianScale& first_scale,
                                const T* second, const GaussianScale& second_scale,
                                const std::uint8_t* mask) {
  return row_kl(head, first, second, second_scale, mask) +
         shared_kl(head, first_scale, second_scale);
}

// What the metric M of a row needs, written once an update: metric [outputs] (not used for
// gaussian).
template <class T>
TRPO_FAST_HOST_DEVICE void metric_cache(const Head& head, const T* o, const std::uint8_t* mask,
                                        T* metric) {
  switch (head.kind) {
    case HeadKind::gaussian:
      break;
    case HeadKind::gaussian_state_std:
      for (Index a = 0; a < head.actions; ++a) {
        metric[a] = T(std::exp(-2 * double(o[head.actions + a])));
        metric[head.actions + a] = T(2);
      }
      break;
    case HeadKind::categorical:
    case HeadKind::multi_categorical:
      for (Index a = 0; a < head.actions; ++a) {
        const Index n = head.nvec[a];
        const LogNormalizer normalizer = log_normalizer(o, mask, n);
        for (Index i = 0; i < n; ++i) {
          const bool allowed = mask == nullptr || mask[i];
          metric[i] = allowed ? T(std::exp(normalized(double(o[i]), normalizer))) : T(0);
        }
        o += n;
        metric += n;
        if (mask != nullptr) mask += n;
      }
      break;
    case HeadKind::bernoulli:
      for (Index a = 0; a < head.actions; ++a) {
        // p (1 - p), both from the side that does not cancel
        const double x = o[a];
        metric[a] = T(std::exp(-softplus(-x) - softplus(x)));
      }
      break;
  }
}

// e = B s, in place of the outputs o, with B B' = M and s of +-1: over all sign patterns the mean
// of e e' is M. Categorical blocks: B = diag(sqrt p) - p sqrt(p)'. inv_std [A]: gaussian heads
// only.
template <class T>
TRPO_FAST_HOST_DEVICE void metric_root(const Head& head, const double* inv_std,
                                       const std::uint8_t* mask, const T* signs, T* o) {
  switch (head.kind) {
    case HeadKind::gaussian:
      for (Index a = 0; a < head.actions; ++a) o[a] = T(inv_std[a]) * signs[a];
      break;
    case HeadKind::gaussian_state_std:
      for (Index a = 0; a < head.actions; ++a) {
        o[a] = T(std::exp(-double(o[head.actions + a]))) * signs[a];
        o[head.actions + a] = T(1.4142135623730951) * signs[head.actions + a];
      }
      break;
    case HeadKind::categorical:
    case HeadKind::multi_categorical:
      for (Index a = 0; a < head.actions; ++a) {
        const Index n = head.nvec[a];
        const LogNormalizer normalizer = log_normalizer(o, mask, n);
        double sum = 0;
        for (Index i = 0; i < n; ++i) {
          if (mask == nullptr || mask[i])
            sum += std::exp(0.5 * normalized(double(o[i]), normalizer)) * signs[i];
        }
        for (Index i = 0; i < n; ++i) {
          const bool allowed = mask == nullptr || mask[i];
          const double root = allowed ? std::exp(0.5 * normalized(double(o[i]), normalizer)) : 0;
          o[i] = T(root * (double(signs[i]) - root * sum));
        }
        o += n;
        signs += n;
        if (mask != nullptr) mask += n;
      }
      break;
    case HeadKind::bernoulli:
      for (Index a = 0; a < head.actions; ++a) {
        const double x = o[a];
        o[a] = T(std::exp(-0.5 * (softplus(-x) + softplus(x)))) * signs[a];
      }
      break;
  }
}

// u = weight * M zdot, in place. metric: the row's cache; for gaussian 1 / sigma^2 [A], shared by
// all rows.
template <class T>
TRPO_FAST_HOST_DEVICE void apply_metric(const Head& head, const T* metric, T weight, T* u) {
  switch (head.kind) {
    case HeadKind::gaussian:
    case HeadKind::gaussian_state_std:
    case HeadKind::bernoulli:
      for (Index i = 0; i < head.outputs; ++i) u[i] *= weight * metric[i];
      break;
    case HeadKind::categorical:
    case HeadKind::multi_categorical:
      for (Index a = 0; a < head.actions; ++a) {
        const Index n = head.nvec[a];
        T mean = 0;
        for (Index i = 0; i < n; ++i) mean += metric[i] * u[i];
        for (Index i = 0; i < n; ++i) u[i] = weight * metric[i] * (u[i] - mean);
        u += n;
        metric += n;
      }
      break;
  }
}

// zdot' M zdot of one row, never negative; metric as for apply_metric.
template <class T>
TRPO_FAST_HOST_DEVICE double metric_square(const Head& head, const T* metric, const T* zdot) {
  double total = 0;
  switch (head.kind) {
    case HeadKind::gaussian:
    case HeadKind::gaussian_state_std:
    case HeadKind::bernoulli:
      for (Index i = 0; i < head.outputs; ++i) {
        total += double(metric[i]) * double(zdot[i]) * double(zdot[i]);
      }
      break;
    case HeadKind::categorical:
    case HeadKind::multi_categorical:
      for (Index a = 0; a < head.actions; ++a) {
        const Index n = head.nvec[a];
        double mean = 0;
        for (Index i = 0; i < n; ++i) mean += double(metric[i]) * double(zdot[i]);
        for (Index i = 0; i < n; ++i) {
          const double d = double(zdot[i]) - mean;
          total += double(metric[i]) * d * d;
        }
        zdot += n;
        metric += n;
      }
      break;
  }
  return total;
}

}  // namespace trpo_fast
