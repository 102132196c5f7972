// The head made of heads: parts side by side in a row of outputs, of actions, of a mask. They are
// independent, so that everything is summed over them, or done to each in its place.
#pragma once

#include "common/beta.h"
#include "common/head_list.h"
#include "common/simple_heads.h"

namespace trpo_fast {

// gaussian, gaussian_state_std, categorical, multi_categorical (which has more blocks, and is the
// same here), bernoulli, beta.
using SimpleHeads = HeadList<Gaussian, GaussianStateStd, Categorical, Categorical, Bernoulli, Beta>;

struct Joint : AnyHead {
  // Where a part's own begins.
  struct Place {
    Index output, action, scale, block, mask, metric;

    TRPO_FAST_MEMBER const std::uint8_t* of_mask(const std::uint8_t* all) const {
      return all == nullptr ? nullptr : all + mask;
    }
    TRPO_FAST_MEMBER GaussianScale of_scale(const GaussianScale& all) const {
      return {all.log_std + scale, all.inv_std + scale};
    }
    template <class T>
    TRPO_FAST_MEMBER RowAction<T> of_action(const RowAction<T>& all) const {
      return {all.real + action * all.stride, nullptr, all.stride};
    }
  };

  // body(the part as its own struct, its place), in turn.
  template <class Body>
  TRPO_FAST_MEMBER void each_part(Body&& body) const {
    Place at{};
    for (Index k = 0; k < part_count; ++k) {
      const HeadPart& p = parts[k];
      with_head_from(
          {p.kind, p.outputs, p.actions, nvec + at.block}, 0,
          [&](auto part) {
            body(part, at);
            at.scale += part.scales();
            at.metric += part.metric_width();
            at.block += part.kCategories ? part.actions : 0;
            at.mask += part.kCategories ? part.outputs : 0;
          },
          SimpleHeads());
      at.output += p.outputs;
      at.action += p.actions;
    }
  }

  TRPO_FAST_MEMBER Index width() const {
    Index total = 0;
    each_part([&](auto part, const Place&) { total += part.width(); });
    return total;
  }
  TRPO_FAST_MEMBER Index scales() const {
    Index total = 0;
    each_part([&](auto part, const Place&) { total += part.scales(); });
    return total;
  }
  TRPO_FAST_MEMBER Index metric_width() const {
    Index total = 0;
    each_part([&](auto part, const Place&) { total += part.metric_width(); });
    return total;
  }
  TRPO_FAST_MEMBER Index mask_width() const {
    Index total = 0;
    each_part([&](auto part, const Place&) { total += part.kCategories ? part.outputs : 0; });
    return total;
  }

  template <class T>
  TRPO_FAST_MEMBER double log_prob(const T* o, const GaussianScale& scale,
                                   const RowAction<T>& action, const std::uint8_t* mask) const {
    double total = 0;
    each_part([&](auto part, const Place& at) {
      total +=
          part.log_prob(o + at.output, at.of_scale(scale), at.of_action(action), at.of_mask(mask));
    });
    return total;
  }

  template <class T>
  TRPO_FAST_MEMBER void log_prob_gradient(const T* o, const GaussianScale& scale,
                                          const RowAction<T>& action, const std::uint8_t* mask,
                                          double coefficient, T* delta) const {
    each_part([&](auto part, const Place& at) {
      part.log_prob_gradient(o + at.output, at.of_scale(scale), at.of_action(action),
                             at.of_mask(mask), coefficient, delta + at.output);
    });
  }

  template <class T>
  TRPO_FAST_MEMBER double log_std_slope(Index a, const T* o, const GaussianScale& scale,
                                        const RowAction<T>& action) const {
    double slope = 0;
    each_part([&](auto part, const Place& at) {
      if (a < at.scale || a >= at.scale + part.scales()) return;
      slope =
          part.log_std_slope(a - at.scale, o + at.output, at.of_scale(scale), at.of_action(action));
    });
    return slope;
  }

  TRPO_FAST_MEMBER double shared_kl(const GaussianScale& first, const GaussianScale& second) const {
    double total = 0;
    each_part([&](auto part, const Place& at) {
      total += part.shared_kl(at.of_scale(first), at.of_scale(second));
    });
    return total;
  }

  template <class T>
  TRPO_FAST_MEMBER double row_kl(const T* first, const T* second, const GaussianScale& second_scale,
                                 const std::uint8_t* mask) const {
    double total = 0;
    each_part([&](auto part, const Place& at) {
      total += part.row_kl(first + at.output, second + at.output, at.of_scale(second_scale),
                           at.of_mask(mask));
    });
    return total;
  }

  template <class T>
  TRPO_FAST_MEMBER void metric_cache(const T* o, const GaussianScale& scale,
                                     const std::uint8_t* mask, T* metric) const {
    each_part([&](auto part, const Place& at) {
      part.metric_cache(o + at.output, at.of_scale(scale), at.of_mask(mask), metric + at.metric);
    });
  }

  template <class T>
  TRPO_FAST_MEMBER void apply_metric(const T* metric, T weight, T* u) const {
    each_part([&](auto part, const Place& at) {
      part.apply_metric(metric + at.metric, weight, u + at.output);
    });
  }

  template <class T>
  TRPO_FAST_MEMBER double metric_square(const T* metric, const T* zdot) const {
    double total = 0;
    each_part([&](auto part, const Place& at) {
      total += part.metric_square(metric + at.metric, zdot + at.output);
    });
    return total;
  }

  template <class T>
  TRPO_FAST_MEMBER void metric_root(const double* inv_std, const std::uint8_t* mask, const T* signs,
                                    T* o) const {
    each_part([&](auto part, const Place& at) {
      part.metric_root(inv_std + at.scale, at.of_mask(mask), signs + at.output, o + at.output);
    });
  }

  template <class T>
  TRPO_FAST_MEMBER void draw(const T* o, const RowNoise<T>& noise, const std::uint8_t* mask,
                             const RowDraw<T>& to) const {
    each_part([&](auto part, const Place& at) {
      part.draw(o + at.output, RowNoise<T>{nullptr, noise.other + at.action}, at.of_mask(mask),
                RowDraw<T>{to.std + at.scale, to.real + at.action, nullptr});
    });
  }
};

}  // namespace trpo_fast
