// How matrices are laid out inside the core.
//
// A matrix [rows, features] is stored as slabs of up to 64 features, each slab row-major and
// contiguous: element (r, f) is at slab f / 64, row r, column f % 64. Every kernel then reads and
// writes short rows at one small stride, whatever the width of the layer: no power-of-two strides
// that fall into the same cache sets, no edge cases in the inner loop. Features are padded to a
// multiple of 16 with zeros.
#pragma once

#include <cstddef>

#include "common/layers.h"

namespace trpo_fast {

constexpr Index kSlabWidth =
    64;                         // a multiple of every vector length; 4 AVX-512 registers of floats
constexpr Index kPadding = 16;  // an AVX-512 register of floats
constexpr std::size_t kAlignment = 64;

// Files compiled for different instruction sets must not share one out-of-line copy.
#define TRPO_FAST_INLINE inline __attribute__((always_inline))

TRPO_FAST_INLINE Index round_up(Index value, Index multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

struct Slabs {
  Index features;  // as the layer has them
  Index width;     // columns of one slab
  Index count;     // slabs

  TRPO_FAST_INLINE explicit Slabs(Index features_)
      : features(features_),
        // One feature's worth where there is none: a width of 0 would be divided by.
        width(features_ < kSlabWidth ? round_up(features_ > 0 ? features_ : 1, kPadding)
                                     : kSlabWidth),
        count((features_ + width - 1) / width) {}

  // Columns that hold features, padded, in one slab; the rest is never touched.
  TRPO_FAST_INLINE Index used(Index slab) const {
    const Index left = features - slab * width;
    return left < width ? round_up(left, kPadding) : width;
  }
  TRPO_FAST_INLINE Index size(Index rows) const { return count * width * rows; }
};

}  // namespace trpo_fast
