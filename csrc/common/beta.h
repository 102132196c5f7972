// The Beta head: actions in (0, 1), one mode each. Outputs: those of alpha [A] and of beta [A],
// which are 1 + softplus of them (Chou et al. 2017, "Improving stochastic policy gradients in
// continuous control with deep reinforcement learning using the Beta distribution").
#pragma once

#include <limits>

#include "common/gamma.h"
#include "common/head.h"

namespace trpo_fast {

struct Beta : AnyHead {
  TRPO_FAST_MEMBER Index width() const { return 2 * actions; }
  // L of M = L L', pair by pair: l11 [A], l21 [A], l22 [A].
  TRPO_FAST_MEMBER Index metric_width() const { return 3 * actions; }

  template <class T>
  TRPO_FAST_MEMBER double log_prob(const T* o, const GaussianScale&, const RowAction<T>& action,
                                   const std::uint8_t*) const {
    double total = 0;
    for (Index a = 0; a < actions; ++a) {
      const double alpha = concentration(o[a]), beta = concentration(o[actions + a]);
      const double x = action.real[a * action.stride];
      total += (alpha - 1) * std::log(x) + (beta - 1) * std::log1p(-x) +
               gamma_values(alpha + beta).log - gamma_values(alpha).log - gamma_values(beta).log;
    }
    return total;
  }

  template <class T>
  TRPO_FAST_MEMBER void log_prob_gradient(const T* o, const GaussianScale&,
                                          const RowAction<T>& action, const std::uint8_t*,
                                          double coefficient, T* delta) const {
    for (Index a = 0; a < actions; ++a) {
      const Concentration alpha(o[a]), beta(o[actions + a]);
      const double x = action.real[a * action.stride];
      const double sum = gamma_values(alpha.value + beta.value).first;
      const double by_alpha = std::log(x) + sum - gamma_values(alpha.value).first;
      const double by_beta = std::log1p(-x) + sum - gamma_values(beta.value).first;
      delta[a] = T(coefficient * alpha.slope * by_alpha);
      delta[actions + a] = T(coefficient * beta.slope * by_beta);
    }
  }

  // The divergence of the log-normaliser log Gamma(alpha) + log Gamma(beta) - log Gamma(alpha +
  // beta), which the KL of an exponential family is.
  template <class T>
  TRPO_FAST_MEMBER double row_kl(const T* first, const T* second, const GaussianScale&,
                                 const std::uint8_t*) const {
    double total = 0;
    for (Index a = 0; a < actions; ++a) {
      const double alpha = concentration(first[a]), beta = concentration(first[actions + a]);
      const double alpha_2 = concentration(second[a]), beta_2 = concentration(second[actions + a]);
      total += log_gamma_divergence(alpha, alpha_2) + log_gamma_divergence(beta, beta_2) -
               log_gamma_divergence(alpha + beta, alpha_2 + beta_2);
    }
    return total;
  }

  template <class T>
  TRPO_FAST_MEMBER void metric_cache(const T* o, const GaussianScale&, const std::uint8_t*,
                                     T* metric) const {
    for (Index a = 0; a < actions; ++a) {
      const Root root = root_of(o[a], o[actions + a]);
      metric[a] = T(root.first);
      metric[actions + a] = T(root.below);
      metric[2 * actions + a] = T(root.second);
    }
  }

  template <class T>
  TRPO_FAST_MEMBER void apply_metric(const T* metric, T weight, T* u) const {
    for (Index a = 0; a < actions; ++a) {
      const T first = metric[a], below = metric[actions + a], second = metric[2 * actions + a];
      const T z_alpha = weight * (first * u[a] + below * u[actions + a]);
      const T z_beta = weight * (second * u[actions + a]);
      u[a] = first * z_alpha;
      u[actions + a] = below * z_alpha + second * z_beta;
    }
  }

  template <class T>
  TRPO_FAST_MEMBER double metric_square(const T* metric, const T* zdot) const {
    double total = 0;
    for (Index a = 0; a < actions; ++a) {
      const double z_alpha = double(metric[a]) * double(zdot[a]) +
                             double(metric[actions + a]) * double(zdot[actions + a]);
      const double z_beta = double(metric[2 * actions + a]) * double(zdot[actions + a]);
      total += z_alpha * z_alpha + z_beta * z_beta;
    }
    return total;
  }

  template <class T>
  TRPO_FAST_MEMBER void metric_root(const double*, const std::uint8_t*, const T* signs,
                                    T* o) const {
    for (Index a = 0; a < actions; ++a) {
      const Root root = root_of(o[a], o[actions + a]);
      o[a] = T(root.first) * signs[a];
      o[actions + a] = T(root.below) * signs[a] + T(root.second) * signs[actions + a];
    }
  }

  template <class T>
  TRPO_FAST_MEMBER void draw(const T* o, const RowNoise<T>& noise, const std::uint8_t*,
                             const RowDraw<T>& to) const {
    constexpr T kLeast = std::numeric_limits<T>::min();
    constexpr T kMost = 1 - std::numeric_limits<T>::epsilon() / 2;
    for (Index a = 0; a < actions; ++a) {
      UniformStream uniforms{std::uint64_t(noise.other[a] * 9007199254740992.0)};
      const double first = draw_gamma(concentration(o[a]), uniforms);
      const double second = draw_gamma(concentration(o[actions + a]), uniforms);
      const T x = T(first / (first + second));
      to.real[a] = x < kLeast ? kLeast : x > kMost ? kMost : x;  // NaN passes through
    }
  }

 private:
  struct Root {
    double first, below, second;
  };

  // 1 + softplus(output) and its derivative, the sigmoid, from one exponential.
  struct Concentration {
    double value, slope;

    TRPO_FAST_MEMBER explicit Concentration(double output) {
      const double e = std::exp(-std::fabs(output)), share = 1 / (1 + e);
      value = 1 + ((output > 0 ? output : 0) + std::log1p(e));
      slope = output > 0 ? share : e * share;
    }
  };

  TRPO_FAST_MEMBER static double concentration(double output) {
    return Concentration(output).value;
  }

  // By alpha and beta M is diag(trigamma(alpha), trigamma(beta)) - trigamma(alpha + beta).
  TRPO_FAST_MEMBER static Root root_of(double of_alpha, double of_beta) {
    const Concentration alpha(of_alpha), beta(of_beta);
    const double by_alpha = gamma_values(alpha.value).second;
    const double by_beta = gamma_values(beta.value).second;
    const double by_sum = gamma_values(alpha.value + beta.value).second;
    const double first = std::sqrt(by_alpha - by_sum);
    const double determinant = by_alpha * by_beta - by_sum * (by_alpha + by_beta);
    return {alpha.slope * first, beta.slope * (-by_sum / first),
            beta.slope * (determinant > 0 ? std::sqrt(determinant) : 0) / first};
  }
};

}  // namespace trpo_fast
