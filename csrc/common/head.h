// What policy heads have in common: sizes, a row's actions and noise, and what most heads leave as
// it is.
#pragma once

#include "common/probabilities.h"

namespace trpo_fast {

// A part of a joint head.
struct HeadPart {
  int kind;  // its place in Heads
  int outputs, actions;
};

// Which head, and its sizes.
struct Head {
  int kind;           // its place in Heads
  Index outputs;      // width of the last layer
  Index actions;      // A; of categorical heads the number of blocks, of joint ones all parts' A
  const Index* nvec;  // sizes of the categorical blocks, all parts' in turn; else null
  const HeadPart* parts = nullptr;  // [part_count] of a joint head, else null
  Index part_count = 0;
};

// A log std that is a parameter, and what is made of it. [A] each.
struct GaussianScale {
  const double *log_std, *inv_std;
};
constexpr int kLogStdMetric = 2;  // the Fisher metric of such a log std, whatever the data

// One row's action: real numbers [A] or category numbers [blocks]. A joint head's are all real.
template <class T>
struct RowAction {
  const T* real;
  const std::int64_t* category;
  Index stride;

  TRPO_FAST_MEMBER Index chosen(Index a) const {
    return category != nullptr ? Index(category[a * stride]) : Index(real[a * stride]);
  }
};

// One row's noise: standard normal numbers [A], or others [A], which are uniform ones in [0, 1) but
// for a joint head's Gaussian parts. The other is null.
template <class T>
struct RowNoise {
  const T* normal;
  const double* other;

  TRPO_FAST_MEMBER double gaussian(Index a) const {
    return normal != nullptr ? double(normal[a]) : other[a];
  }
};

// Where a drawn action goes: to `real` [A] or `category` [blocks]. std [A]: of a log std that is a
// parameter.
template <class T>
struct RowDraw {
  const double* std;
  T* real;
  std::int64_t* category;

  TRPO_FAST_MEMBER void choose(Index a, Index chosen) const {
    if (category != nullptr) {
      category[a] = chosen;
    } else {
      real[a] = T(chosen);
    }
  }
};

// What most heads leave as it is.
struct AnyHead : Head {
  static constexpr bool kCategories = false;   // actions are category numbers
  static constexpr bool kNormalNoise = false;  // draws take normal noise, else uniform
  // The metric is 1 / sigma^2 [A] in every row, of a log std that is a parameter: none is kept.
  static constexpr bool kSharedMetric = false;

  // Log stds that are parameters: log_std_slope gives d log_prob / d each.
  TRPO_FAST_MEMBER Index scales() const { return 0; }
  template <class T>
  TRPO_FAST_MEMBER double log_std_slope(Index, const T*, const GaussianScale&,
                                        const RowAction<T>&) const {
    return 0;
  }

  // Numbers that metric_cache writes, and a mask has.
  TRPO_FAST_MEMBER Index metric_width() const { return outputs; }
  TRPO_FAST_MEMBER Index mask_width() const { return outputs; }

  // What every row's KL owes to scales that are no outputs.
  TRPO_FAST_MEMBER double shared_kl(const GaussianScale&, const GaussianScale&) const { return 0; }
};

// M is diagonal: metric [outputs] is its diagonal.
struct DiagonalMetric : AnyHead {
  template <class T>
  TRPO_FAST_MEMBER void apply_metric(const T* metric, T weight, T* u) const {
    for (Index i = 0; i < outputs; ++i) u[i] *= weight * metric[i];
  }

  template <class T>
  TRPO_FAST_MEMBER double metric_square(const T* metric, const T* zdot) const {
    double total = 0;
    for (Index i = 0; i < outputs; ++i) {
      total += double(metric[i]) * double(zdot[i]) * double(zdot[i]);
    }
    return total;
  }
};

// Outputs are logits in blocks of nvec[0], nvec[1], ... categories.
struct LogitBlocks : AnyHead {
  static constexpr bool kCategories = true;

  TRPO_FAST_MEMBER Index width() const {
    Index total = 0;
    for (Index a = 0; a < actions; ++a) total += nvec[a];
    return total;
  }

  struct Block {
    Index action, first, size;
    const std::uint8_t* mask;  // the block's own

    TRPO_FAST_MEMBER bool allows(Index i) const { return mask == nullptr || mask[i]; }
    template <class T>
    TRPO_FAST_MEMBER LogNormalizer normalizer(const T* o) const {
      return log_normalizer(o + first, mask, size);
    }
  };

  template <class Body>
  TRPO_FAST_MEMBER void each_block(const std::uint8_t* mask, Body&& body) const {
    Index first = 0;
    for (Index a = 0; a < actions; ++a) {
      body(Block{a, first, nvec[a], mask == nullptr ? nullptr : mask + first});
      first += nvec[a];
    }
  }
};

}  // namespace trpo_fast
