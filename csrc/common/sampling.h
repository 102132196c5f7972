// Drawing one row's action from its network outputs and given noise.
#pragma once

#include "common/heads.h"

namespace trpo_fast {

// Standard normal numbers [A] for the Gaussian heads, uniform ones in [0, 1) for the others: [A] of
// a Bernoulli head, one a block of a categorical head. The other pointer is null.
template <class T>
struct RowNoise {
  const T* normal;
  const double* uniform;
};

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

// real [A] or category [blocks] receives the action; std [A] is that of the Gaussian head whose log
// std is a parameter.
template <class T>
TRPO_FAST_HOST_DEVICE void draw_action(const Head& head, const T* o, const double* std,
                                       const RowNoise<T>& noise, const std::uint8_t* mask, T* real,
                                       std::int64_t* category) {
  switch (head.kind) {
    case HeadKind::gaussian:
      for (Index a = 0; a < head.actions; ++a) {
        real[a] = T(double(o[a]) + std[a] * double(noise.normal[a]));
      }
      break;
    case HeadKind::gaussian_state_std:
      for (Index a = 0; a < head.actions; ++a) {
        const double deviation = std::exp(double(o[head.actions + a]));
        real[a] = T(double(o[a]) + deviation * double(noise.normal[a]));
      }
      break;
    case HeadKind::categorical:
    case HeadKind::multi_categorical:
      for (Index a = 0; a < head.actions; ++a) {
        const Index n = head.nvec[a];
        category[a] = draw_category(o, mask, n, noise.uniform[a]);
        o += n;
        if (mask != nullptr) mask += n;
      }
      break;
    case HeadKind::bernoulli:
      for (Index a = 0; a < head.actions; ++a) {
        real[a] = T(noise.uniform[a] < std::exp(-softplus(-double(o[a]))));
      }
      break;
  }
}

}  // namespace trpo_fast
