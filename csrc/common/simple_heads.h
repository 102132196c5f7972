// The heads of one kind of action: how a row of network outputs parametrises its distribution. One
// struct a head; a new one is a struct and its place in `SimpleHeads` (joint.h), and no other C++
// names one (Python: backends/codes.py).
//
// Every function works on one row. `mask` [outputs] says which categories are allowed, null: all.
//   width              columns that the last layer has
//   log_prob           of an action
//   log_prob_gradient  delta = coefficient d log_prob / d outputs; delta may be the outputs' place
//   row_kl             KL(first || second) over the action dimensions, but for shared_kl
//   metric_cache       what the outputs' Fisher metric M needs, [metric_width], written once an
//                      update
//   apply_metric       u = weight M zdot, in place
//   metric_square      zdot' M zdot, never negative
//   metric_root        e = B s in place of the outputs, with B B' = M and s of +-1: over all sign
//                      patterns the mean of e e' is M
//   draw               an action from given noise
// KL terms are written without cancellation near 0.
#pragma once

#include "common/head.h"

namespace trpo_fast {

// Outputs: mean [A]; log std [A] is a parameter.
struct Gaussian : DiagonalMetric {
  static constexpr bool kNormalNoise = true, kSharedMetric = true;

  TRPO_FAST_MEMBER Index width() const { return actions; }
  TRPO_FAST_MEMBER Index scales() const { return actions; }

  template <class T>
  TRPO_FAST_MEMBER double log_prob(const T* o, const GaussianScale& scale,
                                   const RowAction<T>& action, const std::uint8_t*) const {
    double total = 0;
    for (Index a = 0; a < actions; ++a) {
      const double z = standardized(a, o, scale, action);
      total -= 0.5 * z * z + scale.log_std[a] + kHalfLog2Pi;
    }
    return total;
  }

  template <class T>
  TRPO_FAST_MEMBER void log_prob_gradient(const T* o, const GaussianScale& scale,
                                          const RowAction<T>& action, const std::uint8_t*,
                                          double coefficient, T* delta) const {
    for (Index a = 0; a < actions; ++a) {
      const double z = standardized(a, o, scale, action);
      delta[a] = T(coefficient * z * scale.inv_std[a]);
    }
  }

  template <class T>
  TRPO_FAST_MEMBER double log_std_slope(Index a, const T* o, const GaussianScale& scale,
                                        const RowAction<T>& action) const {
    const double z = standardized(a, o, scale, action);
    return z * z - 1;
  }

  TRPO_FAST_MEMBER double shared_kl(const GaussianScale& first, const GaussianScale& second) const {
    double total = 0;
    for (Index a = 0; a < actions; ++a) {
      total += scale_kl(2 * (first.log_std[a] - second.log_std[a]));
    }
    return total;
  }

  template <class T>
  TRPO_FAST_MEMBER double row_kl(const T* first, const T* second, const GaussianScale& second_scale,
                                 const std::uint8_t*) const {
    double total = 0;
    for (Index a = 0; a < actions; ++a) {
      const double d = (double(first[a]) - double(second[a])) * second_scale.inv_std[a];
      total += 0.5 * d * d;
    }
    return total;
  }

  // Of a part: beside others every row keeps its own.
  template <class T>
  TRPO_FAST_MEMBER void metric_cache(const T*, const GaussianScale& scale, const std::uint8_t*,
                                     T* metric) const {
    for (Index a = 0; a < actions; ++a) metric[a] = T(scale.inv_std[a] * scale.inv_std[a]);
  }

  template <class T>
  TRPO_FAST_MEMBER void metric_root(const double* inv_std, const std::uint8_t*, const T* signs,
                                    T* o) const {
    for (Index a = 0; a < actions; ++a) o[a] = T(inv_std[a]) * signs[a];
  }

  template <class T>
  TRPO_FAST_MEMBER void draw(const T* o, const RowNoise<T>& noise, const std::uint8_t*,
                             const RowDraw<T>& to) const {
    for (Index a = 0; a < actions; ++a) {
      to.real[a] = T(double(o[a]) + to.std[a] * noise.gaussian(a));
    }
  }

 private:
  template <class T>
  TRPO_FAST_MEMBER static double standardized(Index a, const T* o, const GaussianScale& scale,
                                              const RowAction<T>& action) {
    return (double(action.real[a * action.stride]) - double(o[a])) * scale.inv_std[a];
  }
};

// Outputs: mean [A], log std [A].
struct GaussianStateStd : DiagonalMetric {
  static constexpr bool kNormalNoise = true;

  TRPO_FAST_MEMBER Index width() const { return 2 * actions; }

  template <class T>
  TRPO_FAST_MEMBER double log_prob(const T* o, const GaussianScale&, const RowAction<T>& action,
                                   const std::uint8_t*) const {
    double total = 0;
    for (Index a = 0; a < actions; ++a) {
      const double log_std = o[actions + a];
      const double z = (double(action.real[a * action.stride]) - double(o[a])) * std::exp(-log_std);
      total -= 0.5 * z * z + log_std + kHalfLog2Pi;
    }
    return total;
  }

  template <class T>
  TRPO_FAST_MEMBER void log_prob_gradient(const T* o, const GaussianScale&,
                                          const RowAction<T>& action, const std::uint8_t*,
                                          double coefficient, T* delta) const {
    for (Index a = 0; a < actions; ++a) {
      const double inv_std = std::exp(-double(o[actions + a]));
      const double z = (double(action.real[a * action.stride]) - double(o[a])) * inv_std;
      delta[a] = T(coefficient * z * inv_std);
      delta[actions + a] = T(coefficient * (z * z - 1));
    }
  }

  template <class T>
  TRPO_FAST_MEMBER double row_kl(const T* first, const T* second, const GaussianScale&,
                                 const std::uint8_t*) const {
    double total = 0;
    for (Index a = 0; a < actions; ++a) {
      const double log_std = second[actions + a];
      const double d = (double(first[a]) - double(second[a])) * std::exp(-log_std);
      total += 0.5 * d * d + scale_kl(2 * (double(first[actions + a]) - log_std));
    }
    return total;
  }

  template <class T>
  TRPO_FAST_MEMBER void metric_cache(const T* o, const GaussianScale&, const std::uint8_t*,
                                     T* metric) const {
    for (Index a = 0; a < actions; ++a) {
      metric[a] = T(std::exp(-2 * double(o[actions + a])));
      metric[actions + a] = T(2);
    }
  }

  template <class T>
  TRPO_FAST_MEMBER void metric_root(const double*, const std::uint8_t*, const T* signs,
                                    T* o) const {
    for (Index a = 0; a < actions; ++a) {
      o[a] = T(std::exp(-double(o[actions + a]))) * signs[a];
      o[actions + a] = T(1.4142135623730951) * signs[actions + a];
    }
  }

  template <class T>
  TRPO_FAST_MEMBER void draw(const T* o, const RowNoise<T>& noise, const std::uint8_t*,
                             const RowDraw<T>& to) const {
    for (Index a = 0; a < actions; ++a) {
      const double deviation = std::exp(double(o[actions + a]));
      to.real[a] = T(double(o[a]) + deviation * noise.gaussian(a));
    }
  }
};

// Outputs: logits, one block an action dimension. Of a block M = diag(p) - p p', of which the
// metric keeps p, and B = diag(sqrt p) - p sqrt(p)'.
struct Categorical : LogitBlocks {
  template <class T>
  TRPO_FAST_MEMBER double log_prob(const T* o, const GaussianScale&, const RowAction<T>& action,
                                   const std::uint8_t* mask) const {
    double total = 0;
    each_block(mask, [&](const Block& block) {
      const Index chosen = action.chosen(block.action);
      total += block.allows(chosen)
                   ? normalized(double(o[block.first + chosen]), block.normalizer(o))
                   : -INFINITY;
    });
    return total;
  }

  template <class T>
  TRPO_FAST_MEMBER void log_prob_gradient(const T* o, const GaussianScale&,
                                          const RowAction<T>& action, const std::uint8_t* mask,
                                          double coefficient, T* delta) const {
    each_block(mask, [&](const Block& block) {
      const Index chosen = action.chosen(block.action);
      const LogNormalizer normalizer = block.normalizer(o);
      for (Index i = 0; i < block.size; ++i) {
        const Index at = block.first + i;
        const double p = block.allows(i) ? std::exp(normalized(double(o[at]), normalizer)) : 0;
        delta[at] = T(coefficient * (double(i == chosen) - p));
      }
    });
  }

  template <class T>
  TRPO_FAST_MEMBER double row_kl(const T* first, const T* second, const GaussianScale&,
                                 const std::uint8_t* mask) const {
    double total = 0;
    each_block(mask, [&](const Block& block) {
      const LogNormalizer first_normalizer = block.normalizer(first);
      const LogNormalizer second_normalizer = block.normalizer(second);
      for (Index i = 0; i < block.size; ++i) {
        if (!block.allows(i)) continue;
        const Index at = block.first + i;
        total += category_kl(normalized(double(first[at]), first_normalizer),
                             normalized(double(second[at]), second_normalizer));
      }
    });
    return total;
  }

  template <class T>
  TRPO_FAST_MEMBER void metric_cache(const T* o, const GaussianScale&, const std::uint8_t* mask,
                                     T* metric) const {
    each_block(mask, [&](const Block& block) {
      const LogNormalizer normalizer = block.normalizer(o);
      for (Index i = 0; i < block.size; ++i) {
        const Index at = block.first + i;
        metric[at] = block.allows(i) ? T(std::exp(normalized(double(o[at]), normalizer))) : T(0);
      }
    });
  }

  template <class T>
  TRPO_FAST_MEMBER void apply_metric(const T* metric, T weight, T* u) const {
    for (Index a = 0; a < actions; ++a) {
      const Index n = nvec[a];
      T mean = 0;
      for (Index i = 0; i < n; ++i) mean += metric[i] * u[i];
      for (Index i = 0; i < n; ++i) u[i] = weight * metric[i] * (u[i] - mean);
      u += n;
      metric += n;
    }
  }

  template <class T>
  TRPO_FAST_MEMBER double metric_square(const T* metric, const T* zdot) const {
    double total = 0;
    for (Index a = 0; a < actions; ++a) {
      const Index n = nvec[a];
      double mean = 0;
      for (Index i = 0; i < n; ++i) mean += double(metric[i]) * double(zdot[i]);
      for (Index i = 0; i < n; ++i) {
        const double d = double(zdot[i]) - mean;
        total += double(metric[i]) * d * d;
      }
      zdot += n;
      metric += n;
    }
    return total;
  }

  template <class T>
  TRPO_FAST_MEMBER void metric_root(const double*, const std::uint8_t* mask, const T* signs,
                                    T* o) const {
    each_block(mask, [&](const Block& block) {
      const LogNormalizer normalizer = block.normalizer(o);
      double sum = 0;
      for (Index at = block.first; at < block.first + block.size; ++at) {
        if (!block.allows(at - block.first)) continue;
        sum += std::exp(0.5 * normalized(double(o[at]), normalizer)) * signs[at];
      }
      for (Index at = block.first; at < block.first + block.size; ++at) {
        const bool allowed = block.allows(at - block.first);
        const double root = allowed ? std::exp(0.5 * normalized(double(o[at]), normalizer)) : 0;
        o[at] = T(root * (double(signs[at]) - root * sum));
      }
    });
  }

  template <class T>
  TRPO_FAST_MEMBER void draw(const T* o, const RowNoise<T>& noise, const std::uint8_t* mask,
                             const RowDraw<T>& to) const {
    each_block(mask, [&](const Block& block) {
      to.choose(block.action,
                draw_category(o + block.first, block.mask, block.size, noise.other[block.action]));
    });
  }
};

// Outputs: logits [A].
struct Bernoulli : DiagonalMetric {
  TRPO_FAST_MEMBER Index width() const { return actions; }

  template <class T>
  TRPO_FAST_MEMBER double log_prob(const T* o, const GaussianScale&, const RowAction<T>& action,
                                   const std::uint8_t*) const {
    double total = 0;
    for (Index a = 0; a < actions; ++a) {
      // 0 or 1, so that log p and log (1 - p) keep their digits where they are nearly 0
      const bool one = action.real[a * action.stride] > T(0.5);
      total -= softplus(one ? -double(o[a]) : double(o[a]));
    }
    return total;
  }

  template <class T>
  TRPO_FAST_MEMBER void log_prob_gradient(const T* o, const GaussianScale&,
                                          const RowAction<T>& action, const std::uint8_t*,
                                          double coefficient, T* delta) const {
    for (Index a = 0; a < actions; ++a) {
      // 1 - p or -p, without the difference
      const bool one = action.real[a * action.stride] > T(0.5);
      const double slope =
          one ? std::exp(-softplus(double(o[a]))) : -std::exp(-softplus(-double(o[a])));
      delta[a] = T(coefficient * slope);
    }
  }

  template <class T>
  TRPO_FAST_MEMBER double row_kl(const T* first, const T* second, const GaussianScale&,
                                 const std::uint8_t*) const {
    double total = 0;
    for (Index a = 0; a < actions; ++a) {
      const double x = first[a], y = second[a];
      total += category_kl(-softplus(-x), -softplus(-y)) + category_kl(-softplus(x), -softplus(y));
    }
    return total;
  }

  template <class T>
  TRPO_FAST_MEMBER void metric_cache(const T* o, const GaussianScale&, const std::uint8_t*,
                                     T* metric) const {
    for (Index a = 0; a < actions; ++a) {
      // p (1 - p), both from the side that does not cancel
      const double x = o[a];
      metric[a] = T(std::exp(-softplus(-x) - softplus(x)));
    }
  }

  template <class T>
  TRPO_FAST_MEMBER void metric_root(const double*, const std::uint8_t*, const T* signs,
                                    T* o) const {
    for (Index a = 0; a < actions; ++a) {
      const double x = o[a];
      o[a] = T(std::exp(-0.5 * (softplus(-x) + softplus(x)))) * signs[a];
    }
  }

  template <class T>
  TRPO_FAST_MEMBER void draw(const T* o, const RowNoise<T>& noise, const std::uint8_t*,
                             const RowDraw<T>& to) const {
    for (Index a = 0; a < actions; ++a) {
      to.real[a] = T(noise.other[a] < std::exp(-softplus(-double(o[a]))));
    }
  }
};

}  // namespace trpo_fast
